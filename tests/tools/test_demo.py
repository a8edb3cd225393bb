"""The demo over several recordings: one sound with a pause between replies, a log for each that replays, gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from innervoice import Sampling, Schedule, SteadySettings
from innervoice.files import PackagedQuestion
from innervoice.tools.cli.demo import PAUSE_S, answer_all, gaps_of, joined
from innervoice.tools.cli.main import main
from innervoice.tools.packaged import logged
from innervoice.types import Audio


def test_all_recordings_are_answered_and_each_log_replays(
    tmp_path: Path, tiny_dir: Path, assets_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load: dict[str, Any] = {
        "model": str(tiny_dir),
        "device": "cpu",
        "dtype": "float32",
        "streaming": SteadySettings(steps=1),
        "vocoder_noise": False,
    }
    question = PackagedQuestion(assets_dir / "question.wav", "What he hoped would be so.", "plain")
    request = {"schedule": Schedule.preset("stitch_s"), "sampling": Sampling(seed=34, max_new_tokens=60)}
    answer_all(load, [question, question], request, tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("question.wav: “What he hoped would be so.” (plain)") == 2
    assert shown.count("first audio after") == shown.count("real-time factor") == 2
    assert shown.count("no gap") + shown.count("gaps in the playback") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "events-1.jsonl",
        "events-2.jsonl",
        "reply.wav",
        "trace.json",
    ]
    logs = [
        [json.loads(line) for line in (tmp_path / f"events-{number}.jsonl").read_text().splitlines()]
        for number in (1, 2)
    ]
    lengths = [sum(line["samples"] for line in lines if line["kind"] == "audio") for lines in logs]
    info = soundfile.info(tmp_path / "reply.wav")
    assert info.frames == sum(lengths) + round(PAUSE_S * info.samplerate)
    assert logs[0][0]["engine"]["streaming"]["steps"] == 1
    assert main(["replay", str(tmp_path / "events-2.jsonl")]) == 0


def test_sounds_are_joined_with_a_pause_between_them() -> None:
    made = joined([Audio(np.full(3, 0.5, np.float32), 10), Audio(np.full(2, -0.5, np.float32), 10)])
    assert made.samples.tolist() == [0.5] * 3 + [0.0] * 5 + [-0.5] * 2
    assert made.rate == 10


@pytest.mark.parametrize(
    ("second", "expected"),
    [(0.9, "no gap in the playback"), (1.75, "gaps in the playback: 1 chunks late, by 0.75 s at most")],
)
def test_gaps_are_those_of_a_player_that_starts_at_once(second: float, expected: str) -> None:
    chunks = [{"kind": "audio", "t": t, "samples": 100, "rate": 100} for t in (0.0, second)]
    assert gaps_of([{"kind": "done"}, *chunks]) == expected
    assert gaps_of(chunks[:1]) == "no gap: the sound came in one piece"


def test_options_are_logged_as_json() -> None:
    found = logged({"model": "m", "dtype": "float32", "streaming": SteadySettings(steps=1)})
    assert json.loads(json.dumps(found))["streaming"]["look_back"] == 688
    assert found["dtype"] == "float32"
