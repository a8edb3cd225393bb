"""Numbers and names of every command at their ends: one sentence with exit code 2, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from innervoice.api import loader
from innervoice.tools.cli.main import main
from innervoice.tools.decode_bench import DecodeModel

HUGE = "99999999999999999999"
ENGINE = {
    "--max-model-len": ("0", "-1", HUGE),
    "--device": ("tpu", ""),
    "--dtype": ("int3",),
}
WRONG = {
    "generate": {
        "--temperature": ("nan", "inf", "-1", "1e39", "warm"),
        "--top-k": (HUGE, "-1", "1.5"),
        "--top-p": ("0", "nan", "2"),
        "--seed": ("-1", "18446744073709551616", "1e3"),
        "--max-new-tokens": ("-1", "0", "1e3", HUGE),
        "--template": ("no sign",),
        "--schedule": ("none", "none.json", "/tmp"),
        "--system": ("\udcff",),
        "--text": ("", "\udcff"),
        "--out": ("x.txt", "nowhere/x.wav"),
        **ENGINE,
        "--max-model-len": ("0", "-1", "10", HUGE),
    },
    "plan": {"--memory-fraction": ("0", "nan", "-1", "2"), "--max-sessions": ("0", "-1", HUGE), **ENGINE},
    "serve": {
        "--max-sessions": ("0", "-1", HUGE, "1000000000"),
        "--threads": ("0", "-1", HUGE),
        "--max-load": ("nan", "-1"),
        "--max-waiting": ("-1", HUGE),
        "--reader-timeout-s": ("nan", "0"),
        "--port": ("-1", "65536", HUGE),
        "--drain-s": ("nan", "-1", "x"),
        "--max-session-s": ("nan", "-1", "0"),
        "--api-key": ("@none",),
        "--schedule": ("none",),
        "--host": ("none.invalid",),
    },
    "bench stream": {
        "--request-rate": ("nan", "0", "-1"),
        "--max-concurrency": ("0", "-1", HUGE),
        "--num-prompts": ("0", "-1", HUGE),
        "--num-warmups": ("-1", HUGE),
        "--max-new-tokens": ("-1", "0", HUGE),
        "--seed": ("-1", HUGE),
        "--manifest": ("none",),
        "--schedule": ("none",),
        "--out": ("nowhere/x.jsonl",),
    },
    "bench realtime": {
        "--url": ("", "none", "ftp://h", "ws://h:0"),
        "--callers": ("0", "-1", HUGE),
        "--num-turns": ("0", "-1"),
        "--seconds": ("nan", "0", "inf"),
        "--think-s": ("nan", "-1"),
        "--barge-in": ("nan", "-0.1", "1.1"),
        "--arrivals": ("nan", "0"),
        "--num-warmups": ("-1",),
        "--seed": ("-1", HUGE),
        "--timeout-s": ("nan", "0"),
        "--silence-ms": ("-1", HUGE),
        "--turns": ("none",),
        "--dialect": ("alpha",),
        "--audio": ("none",),
        "--session": ("none",),
        "--api-key": ("@none",),
        "--ca-file": ("none", "/dev/null"),
        "--json": ("nowhere/x.json",),
        "--out": ("nowhere/x.jsonl",),
    },
    "bench decode": {
        "--batch": ("0", "-1", HUGE),
        "--context": ("0", "-1", HUGE),
        "--steps": ("0", "-1", HUGE),
        "--warmup": ("-1", HUGE),
        "--prefill": ("-1", HUGE),
    },
    "simulate": {
        "--streams": ("0", "-1", HUGE),
        "--voice-call-ms": ("nan", "inf", "-1"),
        "--reflection": ("nan", "-1"),
        "--hidden": ("-1", HUGE),
        "--seconds": ("nan", "0", "-1", "inf"),
        "--seed": ("-1", HUGE),
        "--machine": ("none",),
        "--policy": ("none",),
        "--profile": ("none",),
    },
    "quantize": {"--group": ("0", "-1", "7", HUGE), "--to": ("int3",)},
    "codec encode": {"--codebooks": ("0", "x"), "--codec": ("none",)},
}


@pytest.mark.parametrize("command", list(WRONG))
def test_flags_are_refused(
    command: str,
    tiny_dir: Path,
    assets_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for made in (loader, DecodeModel):
        monkeypatch.setattr(made, "load", lambda *_, **__: pytest.fail("a model was loaded"), raising=False)
    plain: dict[str, Sequence[str]] = {
        "simulate": (),
        "bench realtime": ("--url", "ws://127.0.0.1:1"),
        "quantize": (str(tiny_dir / "glm-4-voice-9b"), "out", "--to", "int4"),
        "codec encode": (str(assets_dir / "question.wav"), "--codec", str(tiny_dir), "--out", "out.codes"),
    }
    words = [*command.split(), *plain.get(command, ("--model", str(tiny_dir)))]
    if command == "generate":
        words += ["--text", "hi"]
    for flag, values in WRONG[command].items():
        for value in values:
            code = main([*words, flag, value])
            written = capsys.readouterr()
            assert (code, written.out) == (2, ""), (flag, value)
            assert written.err.startswith("innervoice: ") and written.err.count("\n") == 1, written.err
            assert not list(tmp_path.iterdir()), (flag, value)
