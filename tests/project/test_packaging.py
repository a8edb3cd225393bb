"""The wheel: built in isolation, whole, and good for a demo outside a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
from paths import ROOT

pytestmark = pytest.mark.slow

SOURCES = (
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "README.md",
    "LICENSE",
    "csrc",
    "engine",
    "kernels",
)


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that finds no package of ours except the installed one."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (
        f"{command} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
    )
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the build may use and nothing else."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", work / "dist", cwd=source)
    (built,) = (work / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which borrows everything else from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("venv") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--force-reinstall", wheel, cwd=folder)
    return folder


def test_wheel_is_whole(wheel: Path) -> None:
    assert re.fullmatch(r"innervoice-0\.1\.0-cp3\d+-cp3\d+-.+\.whl", wheel.name)
    packed = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in packed if re.fullmatch(r"innervoice_kernels/_C\..+\.so", name)]) == 1
    expected = {"innervoice/py.typed", "innervoice_kernels/py.typed", "innervoice_kernels/_C.pyi"}
    expected.add("innervoice_kernels/_C_voice.pyi")
    for root, pattern in (
        ("engine", "**/*.py"),
        ("kernels", "**/*.py"),
        ("engine", "innervoice/assets/**/*"),
        ("engine", "innervoice/server/page/*"),
    ):
        expected |= {
            str(path.relative_to(ROOT / root)) for path in (ROOT / root).glob(pattern) if path.is_file()
        }
    assert "innervoice/assets/question.wav" in expected
    for_tests = {name for name in expected if name.startswith("innervoice/assets/tiny/")}
    assert for_tests and not for_tests & set(packed)
    expected -= for_tests
    assert sorted(expected - set(packed)) == []


def test_wheel_carries_no_tests_or_sources(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"innervoice", "innervoice_kernels", "innervoice-0.1.0.dist-info"}


def test_installed_package_is_the_one_imported(venv: Path, tmp_path: Path) -> None:
    code = "import innervoice, innervoice_kernels._C as c; print(innervoice.__file__, c.__file__, sep='\\n')"
    for path in run(venv / "bin" / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(venv)


def test_demo_outside_a_checkout(venv: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    run(venv / "bin" / "innervoice", "demo", "--out-dir", made, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "events-1.jsonl",
        "events-2.jsonl",
        "events-3.jsonl",
        "made",
        "reply.wav",
        "trace.json",
    ]
    samples, rate = soundfile.read(made / "reply.wav")
    assert rate > 0
    assert len(samples) > rate // 10
    lines = [json.loads(line) for line in (made / "events-1.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["kind"] == "done"
    assert {"reflection", "transcript", "speech", "audio"} <= {line["kind"] for line in lines}
    assert json.loads((made / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
