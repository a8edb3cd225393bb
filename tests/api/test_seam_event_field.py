"""A caller adds a field to events: it comes with them, stands in the event log, and a recorded reply has it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from innervoice import AudioChunk, Engine, EngineOptions, EventField, EventLog, Sampling, Text, Usage
from innervoice.api.event_log import write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay


def loudness(event: AudioChunk, usage: Usage) -> float:
    return round(float(np.sqrt(np.mean(np.square(event.pcm)))), 6)


FIELDS = (
    EventField("loudness", "audio", loudness),
    EventField("num_spoken", ("transcript", "done"), lambda event, usage: usage.transcript_tokens),
    EventField("broken", "done", lambda event, usage: math.nan),
)


def test_a_field_of_the_caller_is_in_events_log_and_recording(
    tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(device="cpu", dtype="float32", vocoder_noise=False, event_fields=FIELDS)
    path = tmp_path / "events.jsonl"
    with Engine.from_pretrained(tiny_dir, options) as engine, caplog.at_level(logging.WARNING):
        stream = engine.stream(Text("hi"), sampling=Sampling(seed=3, max_new_tokens=60))
        log, events = EventLog(), list(stream)
        write_events(path, [stream.record or {}, *(line for event in events for line in log.feed(event))])
        recording = RecordedReply.load(path)
        assert replay(engine, recording).mismatch is None

    audio = [event for event in events if event.kind == "audio"]
    num = sum(event.kind == "transcript" for event in events)
    counted = list(range(1, num + 1))
    assert [event.extra for event in audio] == [{"loudness": loudness(event, Usage())} for event in audio]
    assert [event.extra["num_spoken"] for event in events if event.kind == "transcript"] == counted
    assert events[-1].extra == {"num_spoken": num, "broken": None} and "field broken failed" in caplog.text
    assert {str(event.extra) for event in events if event.kind == "speech"} == {"{}"}

    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["loudness"] for line in lines if line["kind"] == "audio"] == [
        event.extra["loudness"] for event in audio
    ]
    spoken = [line["num_spoken"] for line in lines if line["kind"] == "transcript"]
    assert [number for one in spoken for number in one] == counted
    assert audio[0].extra in recording.extra and recording.extra[-1]["num_spoken"] == num
