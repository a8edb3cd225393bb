"""The command line: what it writes, and that bad input is one sentence, exit code 2 and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import innervoice
import innervoice_kernels
from innervoice.api import preparation
from innervoice.api.engine import Engine
from innervoice.checkpoint.files import read_json
from innervoice.tools import environment
from innervoice.tools.cli.demo import PAUSE_S
from innervoice.tools.cli.main import main
from innervoice.tools.cli.outputs import ReplyFiles, staged
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed

FOLDERS = [str(Path(module.__file__ or "").parent.parent) for module in (innervoice, innervoice_kernels)]
SHORT = ["--greedy", "--max-new-tokens", "24", "--dtype", "float32", "--device", "cpu"]


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "innervoice.tools.cli.main", *map(str, words)]


def environ() -> dict[str, str]:
    plain = {
        name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")
    }
    return {**plain, "PYTHONPATH": os.pathsep.join(FOLDERS), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "2"}


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=folder, env=environ(), capture_output=True, text=True, timeout=300, check=False
    )


def assert_refused(code: int, stderr: str, *parts: str) -> None:
    assert code == 2, stderr
    assert len(stderr.splitlines()) == 1 and stderr.startswith("innervoice: ") and "Traceback" not in stderr
    for part in parts:
        assert part in stderr


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo, run once outside of any checkout."""
    folder = tmp_path_factory.mktemp("demo")
    place = folder / "new" / "out"
    return place, run(folder, "demo", "--out-dir", place)


def test_the_demo_runs_outside_a_checkout(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = shown
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    logs = ["events-1.jsonl", "events-2.jsonl", "events-3.jsonl"]
    assert listing(place) == [*logs, "reply.wav", "trace.json"]
    assert "“Hi, my dog is very sick and I feel worried.” (plain)" in done.stdout.splitlines()[0]
    for word in (
        "worried",
        "gap",
        "reflection",
        "transcript",
        "speech",
        "first audio after",
        "a chunk of",
        "real-time factor",
    ):
        assert word in done.stdout
    assert done.stdout.splitlines()[-1].startswith("wrote ")
    assert "\x1b" not in done.stdout


def test_the_demo_s_files_agree(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = shown
    logs = [lines_of(place / f"events-{number}.jsonl") for number in (1, 2, 3)]
    lines = logs[0]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("reflection") >= 1 and kinds.count("transcript") >= 2 and kinds.count("speech") >= 2
    assert kinds.count("done") == 1 and kinds[-1] == "done"
    usage = lines[-1]["usage"]
    for kind in ("reflection", "transcript", "speech"):
        assert sum(len(line["ids"]) for line in lines if line["kind"] == kind) == usage[f"{kind}_tokens"]
    assert sum(len(line.get("ids", [])) for line in lines) == usage["total_new_tokens"]
    segments = [line["segment"] for line in lines if "segment" in line]
    assert segments == sorted(set(segments))
    audio = [line for line in lines if line["kind"] == "audio"]
    assert len(audio) >= 2 and audio[0]["start"] == 0
    info = soundfile.info(place / "reply.wav")
    samples = sum(line["samples"] for log in logs for line in log if line["kind"] == "audio")
    assert (
        info.frames == samples + 2 * round(PAUSE_S * info.samplerate) and info.samplerate == audio[0]["rate"]
    )
    assert np.abs(soundfile.read(place / "reply.wav")[0]).max() > 0
    assert {"X"} <= {event["ph"] for event in read_json(place / "trace.json")["traceEvents"]}


def test_every_generated_id_stands_in_one_line(
    folder: Path, tiny_dir: Path, assets_dir: Path, data_dir: Path
) -> None:
    words = [
        "--model",
        tiny_dir,
        "--schedule",
        "stitch.json",
        "--greedy",
        "--max-new-tokens",
        160,
        "--dtype",
        "float32",
    ]
    expected = read_json(data_dir / "tiny" / "expected.json")
    [case] = [case for case in expected.values() if case.get("wav") == "001.wav"]
    Path("stitch.json").write_text(json.dumps(expected["meta"]["schedules"]["stitch_s"]))
    words += ["--events", "events.jsonl", "--vocoder-noise", "off", "--device", "cpu"]
    assert main(["generate", str(assets_dir / "question.wav"), *map(str, words)]) == 0
    lines = lines_of(Path("events.jsonl"))
    assert [i for line in lines for i in line.get("ids", [])] == case["stitch_s"]["ids"]
    special = expected["meta"]
    for line in lines:
        if line["kind"] == "reflection":
            assert line["ids"][0] == special["reflection_open"]
    hidden = {special["reflection_open"], special["reflection_close"], special["reflection_done"]}
    assert all(hidden.isdisjoint(line["ids"]) for line in lines if line["kind"] in ("transcript", "speech"))
    assert not any(line["forced"] for line in lines if "forced" in line)
    assert listing(folder) == ["events.jsonl", "reply.wav", "stitch.json"]


def test_a_typed_question_of_any_script(folder: Path, tiny_dir: Path) -> None:
    words = [
        "--text",
        "你好, Grüße 🙂",
        "--system",
        "Kurz.",
        "--model",
        str(tiny_dir),
        "--schedule",
        "interleaved",
    ]
    assert (
        main(["generate", *words, *SHORT, "--out", "a.flac", "--events", "e.jsonl", "--trace", "t.json"]) == 0
    )
    assert listing(folder) == ["a.flac", "e.jsonl", "t.json"]
    lines = lines_of(folder / "e.jsonl")
    assert lines[-1]["kind"] == "done" and lines[-1]["usage"]["total_new_tokens"] <= 24
    assert lines[-1]["usage"]["sampling"]["temperature"] == 0


def test_a_seed_repeats_a_reply(folder: Path, tiny_dir: Path) -> None:
    words = [
        "generate",
        "--text",
        "hi",
        "--model",
        str(tiny_dir),
        "--max-new-tokens",
        "24",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    replies = []
    for name in ("1", "2"):
        assert main([*words, "--events", f"{name}.jsonl", "--out", f"{name}.wav"]) == 0
        replies.append([line.get("ids") for line in lines_of(folder / f"{name}.jsonl")])
    assert replies[0] == replies[1]


def test_plan_loads_nothing(tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(tiny_dir), "--device", "cpu", "--dtype", "float32", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (
        made["sessions"] >= 1
        and made["weight_bytes"] > 0
        and made["codec_bytes"] > 0
        and made["kv_bytes_per_token"] > 0
    )
    assert main(["plan", "--model", str(tiny_dir)]) == 0
    assert "sessions that fit" in capsys.readouterr().out


def test_env_runs_as_a_bare_file(tmp_path: Path) -> None:
    bare = [sys.executable, str(Path(environment.__file__))]
    for words in (bare, command("env")):
        done = subprocess.run(
            words, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stderr == ""
        for name in (
            "python",
            "torch",
            "triton",
            "flash-attn",
            "numpy",
            "native module",
            "cpu",
            "cores",
            "memory",
            "gpu",
        ):
            assert any(line.startswith(f"{name} ") for line in done.stdout.splitlines())


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("innervoice ")
    for words in ([], ["--help"]):
        assert main(words) == 0
        assert "generate" in capsys.readouterr().out


def bad_schedule(folder: Path) -> list[str | Path]:
    (folder / "bad.json").write_text('{"cycle": [["transcript", 13], ["song", 4]]}')
    return ["--text", "hi", "--schedule", "bad.json"]


def unknown_key(folder: Path) -> list[str | Path]:
    (folder / "bad.json").write_text('{"cycle": [["transcript", 13], ["speech", 26]], "prolog": []}')
    return ["--text", "hi", "--schedule", "bad.json"]


def broken_json(folder: Path) -> list[str | Path]:
    (folder / "bad.json").write_text('{"cycle": [["transcript", 13],')
    return ["--text", "hi", "--schedule", "bad.json"]


def garbage(folder: Path) -> list[str | Path]:
    (folder / "garbage.wav").write_bytes(bytes(range(256)) * 20)
    return ["garbage.wav"]


def empty(folder: Path) -> list[str | Path]:
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16000)
    return ["empty.wav"]


def not_a_number(folder: Path) -> list[str | Path]:
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    return ["nan.wav"]


def no_checkpoint(folder: Path) -> list[str | Path]:
    (folder / "nothing").mkdir()
    return ["--text", "hi", "--model", "nothing"]


def below_a_file(folder: Path) -> list[str | Path]:
    (folder / "file").touch()
    return ["--text", "hi", "--events", Path("file") / "events.jsonl"]


def a_directory(folder: Path) -> list[str | Path]:
    (folder / "reply.wav").mkdir()
    return ["--text", "hi"]


def truncated(folder: Path) -> list[str | Path]:
    return [
        "--text",
        "hi",
        "--model",
        copy_of_tiny(folder, "model-00002-of-00002.safetensors", lambda data: data[:-100]),
    ]


def copy_of_tiny(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    source = Path(innervoice.__file__ or "").parent / "assets" / "tiny" / "glm-4-voice-9b"
    copy = folder / "copy"
    copy.mkdir()
    for file in source.iterdir():
        data = file.read_bytes()
        (copy / file.name).write_bytes(change(data) if file.name == name else data)
    return copy


def fixed(*words: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: list(words)


SPAWNED = {
    "missing file": (fixed("missing.wav"), "missing.wav"),
    "garbage": (garbage, "garbage.wav"),
    "no checkpoint": (no_checkpoint, "nothing"),
    "negative limit": (fixed("--text", "hi", "--max-new-tokens", "-3"), "-3"),
    "unwritable output": (below_a_file, "events.jsonl"),
    "bad schedule": (bad_schedule, "song"),
    "unknown preset": (fixed("--text", "hi", "--schedule", "nonsense"), "stitch_s"),
}
CALLED = SPAWNED | {
    "empty recording": (empty, "empty.wav"),
    "samples that are not numbers": (not_a_number, "nan.wav"),
    "a misspelt key": (unknown_key, "prolog"),
    "broken schedule": (broken_json, "bad.json"),
    "no schedule file": (fixed("--text", "hi", "--schedule", "none.json"), "none.json"),
    "an output that is a directory": (a_directory, "reply.wav"),
    "no output directory": (fixed("--text", "hi", "--out", "none/reply.wav"), "none"),
    "a strange type of sound": (fixed("--text", "hi", "--out", "reply.txt"), ".wav"),
    "one path twice": (fixed("--text", "hi", "--events", "x.wav", "--out", "./x.wav"), "x.wav"),
    "no question": (fixed(), "--text"),
    "two questions": (fixed("a.wav", "--text", "hi"), "--text"),
    "greedy and a draw": (fixed("--text", "hi", "--greedy", "--top-k", "3"), "--top-k"),
    "a bad temperature": (fixed("--text", "hi", "--temperature", "-1"), "temperature"),
    "no number": (fixed("--text", "hi", "--seed", "abc"), "--seed"),
    "no such type": (fixed("--text", "hi", "--dtype", "int3"), "int3"),
    "no such option": (fixed("--nonsense"), "--nonsense"),
    "no such device": (fixed("--text", "hi", "--device", "nonsense"), "nonsense"),
    "truncated weights": (truncated, "model-00002-of-00002.safetensors"),
    "a prompt longer than the cache": (fixed("--text", "hi " * 200, "--max-model-len", "64"), "64"),
}


@pytest.mark.parametrize("case", SPAWNED)
def test_bad_input_ends_in_one_sentence(tmp_path: Path, tiny_dir: Path, case: str) -> None:
    make, part = SPAWNED[case]
    words = make(tmp_path)
    before = listing(tmp_path)
    done = run(tmp_path, "generate", "--model", tiny_dir, *words)
    assert_refused(done.returncode, done.stderr, part)
    assert done.stdout == "" and listing(tmp_path) == before


@pytest.mark.parametrize("case", CALLED)
def test_bad_input_leaves_nothing_behind(
    folder: Path, tiny_dir: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, part = CALLED[case]
    words = make(folder)
    before = listing(folder)
    code = main(["generate", "--model", str(tiny_dir), *map(str, words)])
    assert_refused(code, capfd.readouterr().err, part)
    assert listing(folder) == before


def test_a_question_is_not_overwritten(
    folder: Path, tiny_dir: Path, assets_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = (assets_dir / "question.wav").read_bytes()
    Path("a.wav").write_bytes(question)
    assert_refused(
        main(["generate", "a.wav", "--model", str(tiny_dir), "--out", "a.wav"]),
        capsys.readouterr().err,
        "a.wav",
    )
    assert Path("a.wav").read_bytes() == question


@pytest.mark.parametrize(
    "error", [OutOfCapacity("no room for 3 GB"), RequestFailed("the reply\nfailed"), EngineDead("it stopped")]
)
def test_the_engine_s_refusals_are_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*load: object) -> Engine:
        raise error

    monkeypatch.setattr(preparation, "prepare", refuse)
    code = main(["generate", "--text", "hi", "--model", "any"])
    assert_refused(code, capsys.readouterr().err, " ".join(str(error).split()))
    assert listing(folder) == []


def test_debug_shows_the_traceback(folder: Path, tiny_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["generate", "missing.wav", "--model", str(tiny_dir), "--debug"])


def test_demo_and_plan_refuse_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    assert_refused(
        main(["demo", "--out-dir", "taken/out"]), capsys.readouterr().err, "taken/out", "name another"
    )
    Path("taken").unlink()
    assert_refused(main(["demo", "--schedule", "nonsense"]), capsys.readouterr().err, "nonsense")
    assert_refused(main(["plan", "--model", "none"]), capsys.readouterr().err, "none")
    assert listing(folder) == []


def test_outputs_appear_together_or_not_at_all(folder: Path) -> None:
    Path("reply.wav").write_text("old")
    outputs = ReplyFiles(Path("reply.wav"), Path("events.jsonl"))

    def fail() -> None:
        with staged(outputs) as parts:
            parts.audio.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert listing(folder) == ["reply.wav"] and Path("reply.wav").read_text() == "old"
    with staged(outputs) as parts:
        assert parts.trace is None and parts.events is not None
        parts.audio.write_text("new")
        parts.events.write_text("{}")
    assert listing(folder) == ["events.jsonl", "reply.wav"] and Path("reply.wav").read_text() == "new"


def test_an_output_behind_a_link_keeps_the_link(folder: Path) -> None:
    Path("there").mkdir()
    Path("link.wav").symlink_to("there/real.wav")
    with staged(ReplyFiles(Path("link.wav"))) as parts:
        parts.audio.write_text("new")
    assert Path("link.wav").is_symlink() and Path("there/real.wav").read_text() == "new"


def test_no_sound_file_without_sound(
    folder: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of a schedule of text alone nor of a model without a decoder; asked for, it is refused."""
    silent = ["--model", str(tiny_dir), "--schedule", "thinking_in_speaking"]
    parts = [tiny_dir / f"glm-4-voice-{part}" for part in ("9b", "tokenizer")]
    mute = ["--model", str(parts[0]), "--speech-tokenizer", str(parts[1]), "--schedule", "interleaved"]
    for words in (silent, mute):
        assert main(["generate", "--text", "hi", *words, *SHORT, "--events", "e.jsonl"]) == 0
        output = capsys.readouterr().out
        assert "the reply has no sound, so reply.wav was not written" in output
        assert output.splitlines()[-1] == "wrote e.jsonl" and listing(folder) == ["e.jsonl"]
        assert main(["replay", "e.jsonl", "--out", "a.wav"]) == 2
        assert "the recorded reply has no sound" in capsys.readouterr().err
        code = main(["generate", "--text", "hi", *words, *SHORT, "--out", "a.wav", "--events", "f.jsonl"])
        assert_refused(code, capsys.readouterr().err, "a.wav", "make no sound: leave --out away")
        assert listing(folder) == ["e.jsonl"]


def test_a_rate_that_the_format_lacks_is_refused_before_the_reply(
    folder: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--text", "hi", "--model", str(tiny_dir), *SHORT]
    assert_refused(main([*words, "--out", "a.opus"]), capsys.readouterr().err, "22050 Hz", "another rate")
    assert listing(folder) == []
    assert main([*words, "--out", "a.WAV"]) == 0
    assert soundfile.info("a.WAV").format == "WAV"
