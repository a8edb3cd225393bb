"""The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, as a program without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

from innervoice_kernels import _C

pytestmark = pytest.mark.long

SOURCES = (
    "attention_plan", "codebook", "decoder", "experts", "gemm", "isa", "thread_team", "kernels_plain", "large_pages", "sample",
    "source", "lanes/kernels", "lanes/plain", "voice/conv", "voice/double_conv", "voice/plain", "voice/stream_conv",
)  # fmt: skip
PARTS = {"avxvnni": ("lanes/",)}  # of a set of instructions; else all
FLAGS = {
    "avxvnni": ("-mavx2", "-mfma", "-mf16c", "-mavxvnni"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (*(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16")), "-mfma", "-mf16c"),
}


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_kernels_under(sanitizers: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    isas = _C.available_isas()
    isas = [isa for isa in isas[isas.index("plain") :] if isa in FLAGS]
    common = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g1",
        "-ffp-contract=off",
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
    ]
    common += [
        "-I",
        str(ROOT / "csrc"),
        "-I",
        str(ROOT / "csrc" / "include"),
        *(f"-DINNERVOICE_{isa.upper()}" for isa in isas),
    ]
    files = [(ROOT / "csrc" / "cpu" / f"{name}.cpp", ()) for name in SOURCES] + [
        (ROOT / "tests" / "native" / "native_check.cpp", ())
    ]
    files += [
        (ROOT / "csrc" / "cpu" / f"{part}{isa}.cpp", FLAGS[isa])
        for isa in isas
        for part in PARTS.get(isa, ("kernels_", "lanes/", "voice/"))
    ]
    builds = [
        subprocess.Popen(
            [
                *common,
                *flags,
                "-c",
                str(source),
                "-o",
                str(tmp_path / f"{source.parent.name}_{source.stem}.o"),
            ]
        )
        for source, flags in files
    ]
    assert [build.wait(600) for build in builds] == [0] * len(files)
    program = tmp_path / "check"
    subprocess.run(
        [*common, *map(str, tmp_path.glob("*.o")), "-lpthread", "-o", str(program)], check=True, timeout=600
    )
    # Where addresses are laid out too freely for ThreadSanitizer it cannot start: `setarch -R` lays them out as it expects.
    prefix = ["setarch", "-R"] if sanitizers == "thread" and shutil.which("setarch") else []
    done = subprocess.run([*prefix, str(program)], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stdout + done.stderr
