"""The command line in a shell: streams that are cut, closed or full, signals, and a locale without UTF-8."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile

import innervoice
import innervoice_kernels
from innervoice.tools.cli import shell
from innervoice.tools.cli.__main__ import start
from innervoice.tools.cli.inputs import typed

FOLDERS = [str(Path(module.__file__ or "").parent.parent) for module in (innervoice, innervoice_kernels)]
SCRIPT = Path(__file__).resolve().parent.parent / "support" / "forked_commands.py"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SHORT = ["--max-new-tokens", "24", "--seed", "1", "--device", "cpu", "--schedule", "interleaved"]
LONG = ["--max-new-tokens", "8000", "--seed", "1", "--schedule", "../long.json", "--events", "e.jsonl"]


def plain_environment() -> dict[str, str]:
    names = ("FORCE_COLOR", "TTY_COMPATIBLE", "LANG")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | C_LOCALE | {"PYTHONPATH": os.pathsep.join(FOLDERS), "OMP_NUM_THREADS": "2"}


def run_all(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(list(cases.values())),
        cwd=folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path, assets_dir: Path
) -> Iterator[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("shell")
    (folder / "long.json").write_text('{"cycle": [["transcript", 1], ["speech", 1], ["reflection", 7000]]}')
    model = ["--model", str(tiny_dir)]
    ask = ["generate", *model, "--text", "größe 🙂"]
    far = folder / "ünï 🙂"
    shutil.copytree(tiny_dir, far)
    (folder / "casekept").mkdir()
    (folder / "casekept" / "reply.wav").touch(mode=0o640)
    (folder / "casekept" / "reply.wav").chmod(0o640)
    cases: dict[str, dict[str, Any]] = {
        "plan, cut": {"words": ["plan", *model], "stdout": "cut"},
        "plan, full": {"words": ["plan", *model], "stdout": "/dev/full"},
        "help, full": {"words": ["--help"], "stdout": "/dev/full"},
        "plan, closed": {"words": ["plan", *model], "stdout": "closed"},
        "generate, cut": {"words": [*ask, *SHORT], "stdout": "cut"},
        "generate, full": {"words": [*ask, *SHORT], "stdout": "/dev/full", "folder": "kept"},
        "generate, all closed": {
            "words": [*ask, *SHORT],
            **dict.fromkeys(("stdin", "stdout", "stderr"), "closed"),
        },
        "refused, all closed": {
            "words": ["generate", "-", *model],
            **dict.fromkeys(("stdin", "stdout", "stderr"), "closed"),
        },
        "refused, stdin closed": {"words": ["generate", "-", *model], "stdin": "closed"},
        "from standard input": {
            "words": ["generate", "-", *model, *SHORT],
            "stdin": str(assets_dir / "question.wav"),
        },
        "far": {
            "words": [*ask, *SHORT, "--model", str(far), "--out", "é.wav", "--events", "ö.jsonl"],
            "folder": "far",
        },
        "far, again": {"words": ["replay", "ö.jsonl", "--out", "again é.flac"], "folder": "far"},
        **{
            name: {"words": [*ask, *LONG], "signal": getattr(signal, name)}
            for name in ("SIGTERM", "SIGHUP", "SIGINT")
        },
    }
    made = run_all(folder, cases)
    yield made
    assert soundfile.info(folder / "casekept" / "reply.wav").frames > 0


def test_a_cut_pipe_costs_the_words_and_not_the_sound(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["plan, cut"] == {"code": 0, "stderr": "", "files": {}}
    done = outcomes["generate, cut"]
    assert (done["code"], done["stderr"], list(done["files"])) == (0, "", ["reply.wav"])


def test_output_on_a_full_disk_is_an_error_and_the_sound_is_written(
    outcomes: dict[str, dict[str, Any]],
) -> None:
    sentence = "innervoice: standard output: No space left on device\n"
    for name in ("plan, full", "help, full"):
        assert outcomes[name] == {"code": 2, "stderr": sentence, "files": {}}
    done = outcomes["generate, full"]
    assert (done["code"], done["stderr"], list(done["files"])) == (2, sentence, ["reply.wav"])


def test_a_replaced_sound_keeps_its_mode(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["generate, full"]["files"] == {"reply.wav": "0o640"}


def test_closed_streams_are_no_crash(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["plan, closed"] == {"code": 0, "stderr": "", "files": {}}
    assert outcomes["generate, all closed"]["code"] == 0
    assert list(outcomes["generate, all closed"]["files"]) == ["reply.wav"]
    assert (outcomes["refused, all closed"]["code"], outcomes["refused, all closed"]["files"]) == (2, {})


def test_a_question_comes_from_standard_input(outcomes: dict[str, dict[str, Any]]) -> None:
    done = outcomes["from standard input"]
    assert (done["code"], done["stderr"], list(done["files"])) == (0, "", ["reply.wav"])
    refused = outcomes["refused, stdin closed"]
    assert refused["code"] == 2 and refused["files"] == {}
    assert refused["stderr"].startswith("innervoice: the question is to come from standard input")
    assert refused["stderr"].count("\n") == 1


def test_a_locale_without_utf_8_reads_and_writes_all_names(outcomes: dict[str, dict[str, Any]]) -> None:
    for name in ("far", "far, again"):
        assert (outcomes[name]["code"], outcomes[name]["stderr"]) == (0, ""), name
    assert len(outcomes["far, again"]["files"]) == 3


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    assert outcomes[name] == {"code": 128 + getattr(signal, name), "stderr": "", "files": {}}


def test_text_of_another_locale_is_utf_8() -> None:
    assert typed("größe") == "größe"
    assert typed("gr\udcc3\udcb6\udcc3\udc9fe") == "größe"
    with pytest.raises(ValueError, match="not UTF-8"):
        typed("gr\udcff")


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "innervoice.tools.cli.main", Interrupted("main"))
    assert start() == 130


def test_the_package_runs_as_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["innervoice.tools.cli.__main__"], "start", lambda: 7)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("innervoice", run_name="__main__")
    assert ended.value.code == 7


def test_an_outlet_keeps_the_first_error() -> None:
    read, write = os.pipe()
    outlet = shell.Outlet(write)
    assert outlet.write(b"ab") == 2 and os.read(read, 9) == b"ab" and outlet.error is None
    os.close(read)
    assert outlet.write(b"ab") == 2 and isinstance(outlet.error, BrokenPipeError)
    assert outlet.write(b"ab") == 2
    os.close(write)


def test_an_outlet_waits_for_a_slow_reader() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    pid = os.fork()
    if pid == 0:
        os.close(write)
        num = sum(len(data) for data in iter(lambda: os.read(read, 1 << 16), b""))
        os._exit(0 if num == 1 << 20 else 1)
    os.close(read)
    assert shell.Outlet(write).write(bytes(1 << 20)) == 1 << 20
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
