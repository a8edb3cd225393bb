"""Events to JSON lines: one line a segment, every id once and in order, whatever comes in between."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.api.event_log import EventLog, to_json, write_events
from innervoice.runtime.record import Line
from innervoice.types import (
    AudioChunk,
    Done,
    End,
    Event,
    Reflection,
    Sampling,
    Speech,
    TokenEvent,
    Transcript,
    Usage,
)

KINDS = ("reflection", "transcript", "speech")


def token(
    kind: str, segment: int, ids: list[int], t: float = 0.0, text: str = "", forced: bool = False
) -> TokenEvent:
    common = {
        "reply_id": "r",
        "index": 0,
        "t": t,
        "segment": segment,
        "ids": ids,
        "text": text,
        "forced": forced,
    }
    if kind == "speech":
        return Speech(codes=np.asarray(ids, np.int32), **common)
    return {"reflection": Reflection, "transcript": Transcript, "end": End}[kind](**common)


def chunk(start: int, count: int, t: float) -> AudioChunk:
    return AudioChunk(reply_id="r", index=0, t=t, pcm=np.zeros(count, np.float32), rate=22050, start=start)


def done(t: float = 9.0, reason: str = "stop", error: str | None = None) -> Done:
    usage = Usage(total_new_tokens=3, sampling=Sampling(seed=2**64 - 1, stop_token_ids=(4, 5)))
    return Done(reply_id="r", index=0, t=t, finish_reason=reason, usage=usage, error=error)


def lines_of(events: list[Event]) -> list[Line]:
    log = EventLog()
    return [line for event in events for line in log.feed(event)] + log.finish()


def test_a_reply_becomes_a_line_a_segment() -> None:
    events = [
        token("transcript", 0, [1], 0.1, "he"),
        token("transcript", 0, [2], 0.2, "llo"),
        token("speech", 1, [100, 101], 0.3),
        token("reflection", 2, [90], 0.4, forced=True),
        token("reflection", 2, [7], 0.5, "why"),
        token("reflection", 2, [91], 0.6, forced=True),
        token("end", 3, [99], 0.7),
        chunk(0, 441, 0.8),
        done(0.9),
    ]
    lines = lines_of(events)
    assert [line["kind"] for line in lines] == ["transcript", "speech", "reflection", "audio", "end", "done"]
    first = {"kind": "transcript", "segment": 0, "ids": [1, 2], "text": "hello"}
    assert lines[0] == {**first, "t": 0.1, "t_end": 0.2, "forced": False}
    assert lines[2]["ids"] == [90, 7, 91] and lines[2]["text"] == "why" and not lines[2]["forced"]
    assert lines[3] == {
        "kind": "audio",
        "t": 0.8,
        "start": 0,
        "samples": 441,
        "rate": 22050,
        "crc32": 0x31408EF8,
    }
    assert lines[5]["reason"] == "stop" and lines[5]["error"] is None and lines[5]["t"] == 0.9


def test_a_done_drawn_after_a_close_joins_its_reflection() -> None:
    lines = lines_of(
        [token("reflection", 0, [90, 7, 91]), token("reflection", 0, [92]), token("transcript", 1, [1])]
    )
    assert [line["ids"] for line in lines] == [[90, 7, 91, 92], [1]]


def test_two_segments_of_one_kind_in_a_row_stay_apart() -> None:
    lines = lines_of([token("reflection", 0, [1]), token("reflection", 1, [2])])
    assert [(line["segment"], line["ids"]) for line in lines] == [(0, [1]), (1, [2])]


def test_audio_does_not_split_a_segment() -> None:
    lines = lines_of([token("speech", 0, [1], 0.1), chunk(0, 10, 0.2), token("speech", 0, [2], 0.3), done()])
    assert [line["kind"] for line in lines] == ["audio", "speech", "done"]
    assert lines[1]["ids"] == [1, 2] and (lines[1]["t"], lines[1]["t_end"]) == (0.1, 0.3)


def test_forced_only_if_every_id_is() -> None:
    both = lines_of([token("reflection", 0, [1], forced=True), token("reflection", 0, [2])])
    assert [line["forced"] for line in both] == [False]
    assert [line["forced"] for line in lines_of([token("speech", 0, [1, 2], forced=True)])] == [True]


def test_no_end_line_without_its_token_and_a_failure_is_told() -> None:
    lines = lines_of([token("speech", 0, [1]), done(reason="error", error="no memory")])
    assert [line["kind"] for line in lines] == ["speech", "done"]
    assert lines[-1]["error"] == "no memory"


def test_events_may_stop_without_done() -> None:
    log = EventLog()
    assert log.feed(token("transcript", 0, [1, 2])) == []
    assert log.open is not None and log.open["ids"] == [1, 2]
    assert [line["ids"] for line in log.finish()] == [[1, 2]]
    assert log.finish() == [] and log.open is None


def test_the_log_keeps_no_list_of_an_event() -> None:
    event = token("transcript", 0, [1])
    lines_of([event, token("transcript", 0, [2])])
    assert event.ids == [1]


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(TypeError, match="Event"):
        EventLog().feed(Event(kind="?", reply_id="r", index=0, t=0.0))


def test_usage_is_what_json_gives_back() -> None:
    line = lines_of([done()])[-1]
    assert json.loads(to_json(line)) == line
    assert line["usage"]["sampling"]["seed"] == 2**64 - 1
    assert line["usage"].keys() == asdict(Usage()).keys()


steps = st.lists(
    st.tuples(st.sampled_from((*KINDS, "audio")), st.booleans(), st.lists(st.integers(0, 500), min_size=1))
)


@given(steps)
def test_every_id_stands_in_one_line_in_order(plan: list[tuple[str, bool, list[int]]]) -> None:
    events: list[Event] = []
    segment, last = 0, ""
    for i, (kind, new, ids) in enumerate(plan):
        if kind == "audio":
            events.append(chunk(0, 1, float(i)))
            continue
        segment += bool(last) and (new or kind != last)
        last = kind
        events.append(token(kind, segment, ids, float(i)))
    lines = lines_of([*events, done()])
    generated = [i for event in events if isinstance(event, TokenEvent) for i in event.ids]
    assert [i for line in lines for i in line.get("ids", [])] == generated
    segments = [line["segment"] for line in lines if "segment" in line]
    assert segments == sorted(set(segments))
    assert sum(line["kind"] == "audio" for line in lines) == sum(
        isinstance(event, AudioChunk) for event in events
    )
    assert [line["kind"] for line in lines].count("done") == 1 and lines[-1]["kind"] == "done"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_is_one_line_of_utf8(texts: list[str]) -> None:
    written = "".join(to_json({"text": text}) + "\n" for text in texts)
    assert [json.loads(line)["text"] for line in written.encode().decode("utf-8").splitlines()] == texts


def test_text_stays_readable_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_events(path, lines_of([token("transcript", 0, [1], text="你好 🙂"), done()]))
    assert "你好 🙂" in path.read_text(encoding="utf-8")
    assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()] == ["transcript", "done"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_events(path, [{"kind": "audio", "t": float("nan")}])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="none"):
        write_events(tmp_path / "none" / "events.jsonl", [])
