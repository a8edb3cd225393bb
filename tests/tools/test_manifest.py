"""Whole test sets: items answered once each whatever stops a run, broken lines named, other projects' files read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_requests import SHORT_REFLECTION

import innervoice
import innervoice_kernels
from innervoice import Schedule, Segment
from innervoice.tools.cli.main import main
from innervoice.tools.manifest.items import BrokenLine, ManifestItem, read_manifest
from innervoice.tools.manifest.results import RunFolder

OPTIONS = ["--schedule", "stitch_s", "--max-new-tokens", "30", "--dtype", "float32", "--device", "cpu"]


def words(model: Path, manifest: Path, out_dir: Path, *more: str) -> list[str]:
    return [
        "generate", "--model", str(model), "--manifest", str(manifest), "--out-dir", str(out_dir), *OPTIONS, *more,
    ]  # fmt: skip


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_items_are_answered_once_and_a_broken_run_goes_on(
    tmp_path: Path, tiny_dir: Path, assets_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded, typed and of two turns, beside lines that are none; then from a file that breaks off."""
    shutil.copy(assets_dir / "question.wav", tmp_path / "q.wav")
    manifest = write(
        tmp_path / "in.jsonl",
        {"id": "a/1", "audio": "q.wav", "label": "sad"},
        {"id": "two", "turns": [{"text": "I failed."}, {"audio": "q.wav"}]},
        "{broken",
        {"id": "none"},
        {"id": "a/1", "text": "again"},
        {"id": "gone", "audio": "missing.wav"},
        {"text": "How are you?"},
    )
    whole, schedule = tmp_path / "whole", tmp_path / "short.json"
    schedule.write_text(json.dumps(SHORT_REFLECTION.to_dict()))
    more = ("--schedule", str(schedule), "--max-new-tokens", "60")
    assert main(words(tiny_dir, manifest, whole, *more)) == 2
    shown = capsys.readouterr().err
    for part in (
        "in.jsonl, line 3 is not JSON",
        "in.jsonl, line 4: the item has no audio: give the path of a recording as audio, or text as text",
        "in.jsonl, line 5: the id 'a/1' is that of line 1 too",
        "item 'gone': ",
        "missing.wav",
        "4 of 7 items failed, which are named above",
    ):
        assert part in shown, shown
    results = lines_of(whole / "results.jsonl")
    assert [one["id"] for one in results] == ["a/1", "two", "7"]
    assert [len(one["turns"]) for one in results] == [1, 2, 1]
    assert results[0]["fields"] == {"id": "a/1", "audio": "q.wav", "label": "sad"}
    seeds = [turn["seed"] for one in results for turn in one["turns"]]
    assert len(set(seeds)) == 4
    assert results[1]["turns"][1]["usage"]["prompt_tokens"] > 0
    for one in results:
        for number, turn in enumerate(one["turns"], 1):
            assert bool(turn["usage"]["reflection_tokens"]) is bool(turn["reflections"])
            for thought in filter(None, turn["reflections"]):
                assert thought not in turn["transcript"]
            name = one["id"].replace("/", "%2F")
            assert turn["audio"] == f"audio/{name}-{number}.wav" and (whole / turn["audio"]).is_file()

    assert any(any(turn["reflections"]) for one in results for turn in one["turns"])

    # A run that was killed while it wrote its second line, and left a hidden file.
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    text = (whole / "results.jsonl").read_text()
    (broken / "results.jsonl").write_text(text[: text.index("\n") + 40])
    (broken / "audio" / ".x.12.part.wav").touch()
    before = contents(whole)
    assert main(words(tiny_dir, manifest, broken, *more)) == 2
    assert contents(broken) == before
    assert "3 of 7 items, 2 of them now" in capsys.readouterr().out
    assert main(words(tiny_dir, manifest, whole, *more, "--seed", "3")) == 2
    assert "holds a run with another sampling" in capsys.readouterr().err


@pytest.mark.slow
def test_200_items_killed_twice_equal_an_unbroken_run(tmp_path: Path, tiny_dir: Path) -> None:
    """The process gets SIGKILL after some dozens of items, twice; each item is there once, as if nothing had been."""
    manifest = write(
        tmp_path / "in.jsonl", *({"id": f"item {n}", "text": f"Question number {n}?"} for n in range(200))
    )
    schedule = tmp_path / "text.json"  # without sound, which would take most of the time
    schedule.write_text(json.dumps(Schedule(cycle=(Segment("transcript"),)).to_dict()))
    more = ("--schedule", str(schedule), "--max-new-tokens", "12")
    folders = [str(Path(module.__file__ or "").parent.parent) for module in (innervoice, innervoice_kernels)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}

    def started(out_dir: Path) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "innervoice.tools.cli.main",
            *words(tiny_dir, manifest, out_dir, *more),
        ]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def count(out_dir: Path) -> int:
        path = out_dir / "results.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    assert started(tmp_path / "whole").wait() == 0
    for most in (40, 110):
        run = started(tmp_path / "killed")
        while count(tmp_path / "killed") < most and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert most <= count(tmp_path / "killed") < 200
    assert started(tmp_path / "killed").wait() == 0
    results = lines_of(tmp_path / "killed" / "results.jsonl")
    assert [one["id"] for one in results] == [f"item {n}" for n in range(200)]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_projects_files(tmp_path: Path) -> None:
    """VoiceBench's rows and HumDial's dialogues."""
    bench = write(
        tmp_path / "bench.jsonl",
        {
            "prompt": "What is it?",
            "reference": "a fox",
            "audio": {"path": "1.wav", "array": [0.0], "sampling_rate": 16000},
        },
        {"prompt": "text alone is no question"},
        {"prompt": "two", "turns": [{"audio": "2.wav"}, {"audio": "3.wav"}]},
    )
    one, none, two = read_manifest(bench, "voicebench")
    assert isinstance(one, ManifestItem) and isinstance(two, ManifestItem)
    assert (one.item_id, one.turns[0].audio, one.turns[0].text) == ("1", tmp_path / "1.wav", None)
    assert one.fields == {"prompt": "What is it?", "reference": "a fox"}
    assert [turn.audio for turn in two.turns] == [tmp_path / "2.wav", tmp_path / "3.wav"]
    assert isinstance(none, BrokenLine) and none.reason.endswith(
        "no audio: give the path of a recording as audio"
    )
    turns = [
        {"turn_id": 2, "emotion": "sad", "text": "I failed.", "split_audio_file": "b.wav", "response_audio": "x.wav"},
        {"turn_id": 1, "input_emotion": "neutral", "input_text": "I am tired.", "response_text": "x"},
    ]  # fmt: skip
    manifest = write(
        tmp_path / "h.jsonl", {"dialogue_id": 7, "turns": turns}, {"turns": [{"emotion": "sad"}]}
    )
    dialogue, broken = read_manifest(manifest, "humdial")
    assert isinstance(dialogue, ManifestItem) and dialogue.item_id == "7"
    assert [(turn.audio, turn.text) for turn in dialogue.turns] == [
        (None, "I am tired."),
        (tmp_path / "b.wav", None),
    ]
    assert isinstance(broken, BrokenLine) and broken.reason.endswith(
        "no audio: give the path of a recording as split_audio_file, or text as input_text"
    )
    assert dialogue.seed(1) != dialogue.seed(2)


@pytest.mark.parametrize("form", ["voicebench", "humdial"])
def test_other_projects_judges_read_what_was_said(
    tmp_path: Path, tiny_dir: Path, assets_dir: Path, form: str
) -> None:
    """Their own rows with the transcript, and the sound, and without a hidden word."""
    shutil.copy(assets_dir / "question.wav", tmp_path / "q.wav")
    row: dict[str, Any] = {"prompt": "What?", "audio": "q.wav", "reference": "a fox"}
    if form == "humdial":
        turns = [{"turn_id": n, "emotion": "sad", "text": "Oh.", "split_audio_file": "q.wav"} for n in (2, 1)]
        row = {"dialogue_id": "d", "turns": [{**turns[0], "response_audio": "given.wav"}, turns[1]]}
    schedule, out = tmp_path / "short.json", tmp_path / "out"
    schedule.write_text(json.dumps(SHORT_REFLECTION.to_dict()))
    more = ("--schedule", str(schedule), "--format", form, "--max-new-tokens", "60")
    assert main(words(tiny_dir, write(tmp_path / "in.jsonl", row), out, *more)) == 0
    (result,), (made,) = lines_of(out / "results.jsonl"), lines_of(out / f"{form}.jsonl")
    said = [turn["transcript"] for turn in result["turns"]]
    assert any(any(turn["reflections"]) for turn in result["turns"])
    if form == "voicebench":
        assert made == {"prompt": "What?", "reference": "a fox", "response": said[0]}
        return
    assert made["dialogue_id"] == "d" and [turn["turn_id"] for turn in made["turns"]] == [1, 2]
    for turn, text in zip(made["turns"], said, strict=True):
        sound = Path(turn.pop("response_audio"))
        assert sound.is_absolute() and sound.is_relative_to(out / "audio") and sound.is_file()
        given = {"emotion": "sad", "text": "Oh.", "split_audio_file": "q.wav", "response_text": text}
        assert turn == given | {"turn_id": turn["turn_id"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "holds no object"),
        ('{"id": "", "text": "x"}', "id is ''"),
        ('{"id": true, "text": "x"}', "id is 'True'"),
        ('{"turns": []}', "turns is '[]'"),
        ('{"turns": ["x"]}', "a turn is 'x'"),
        ('{"audio": 3}', "audio is '3'"),
        ('{"text": "  "}', "the item has no audio"),
    ],
)
def test_broken_lines(tmp_path: Path, line: str, reason: str) -> None:
    (found,) = read_manifest(write(tmp_path / "in.jsonl", line))
    assert isinstance(found, BrokenLine)
    assert "in.jsonl, line 1" in found.reason and reason in found.reason


def test_names_of_sound_files_stay_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", {})
    ids = ["a", "a/1", "../a", "a" * 400, "a" * 401, "é" * 100, "é" * 101]
    paths = [folder.audio_path(item_id, 1) for item_id in ids]
    assert len(set(paths)) == len(ids)
    assert all(path.parent == tmp_path / "out" / "audio" and len(path.name) < 200 for path in paths)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out-dir", "x"], "are for a test set: give --manifest too"),
        (["--manifest", "x"], "give --out-dir"),
        (["--manifest", "x", "--out-dir", "y", "--text", "hi"], "give --manifest and --out-dir alone"),
        (["--manifest", "gone.jsonl", "--out-dir", "y"], "there is no manifest gone.jsonl"),
    ],
)
def test_refusals(
    tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model", str(tiny_dir), *more]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
