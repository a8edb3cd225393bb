"""Fields that a caller adds to events, a call that a paused reply had begun, names, choices and tags."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import pytest

from innervoice.api.event_log import EventLog
from innervoice.model.token_role import TokenRole
from innervoice.runtime.event_builder import EventBuilder
from innervoice.schedule import Cursor, Emission, Schedule, Segment, TokenKind, compile_schedule
from innervoice.types import AudioChunk, EventField, Sampling, Tool, ToolCall, Vocabulary


def chunks(*fields: EventField) -> list[AudioChunk]:
    """Three audio events of a reply whose events have these fields."""
    builder = EventBuilder(
        "r",
        cast(Any, None),
        num_prompt=1,
        num_cached=0,
        sampling=Sampling(),
        speech_start=0,
        rate=8000,
        fields=fields,
    )
    return [builder.audio(np.zeros(4, np.float32), t=0.1) for _ in range(3)]


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True)])
def test_numpy_numbers_become_plain_ones(number: np.generic) -> None:
    made = chunks(EventField("number", "audio", lambda event, usage: number))[0].extra["number"]
    assert made == number.item() and type(made) is type(number.item())


def test_a_field_that_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: AudioChunk, usage: Any) -> float:
        raise KeyError("no such key")

    with caplog.at_level(logging.WARNING, "innervoice"):
        made = chunks(
            EventField("broken", "audio", broken), EventField("array", "audio", lambda *_: np.ones(2))
        )
    assert [chunk.extra for chunk in made] == [{"broken": None, "array": None}] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "event field broken failed for the kind audio",
        "event field array failed for the kind audio",
    ]
    assert "no such key" in caplog.text


class Letters:
    """A tokenizer whose ids are bytes."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


@pytest.mark.parametrize("num_before", range(14))
def test_a_call_that_was_begun_elsewhere_is_read_whole(num_before: int) -> None:
    ids = [1, *'f{"a": "é"}'.encode(), 2]
    builder = EventBuilder(
        "r",
        cast(Any, Letters()),
        num_prompt=1,
        num_cached=0,
        sampling=Sampling(),
        speech_start=0,
        rate=8000,
        tool_marks=(1, 2),
    )
    for token in ids[:num_before]:
        builder.catch_up(TokenRole.CALL, token)
    kinds = [TokenKind.TOOL_MARK if token in (1, 2) else TokenKind.TOOL for token in ids]
    rest = list(zip(ids, kinds, strict=True))[num_before:]
    events = [builder.token(Emission(token, kind, 0, forced=False), None, t=0.1) for token, kind in rest]
    assert cast(Tool, events[-1]).call == ToolCall("f", '{"a": "é"}', 'f{"a": "é"}')


def test_the_beginning_of_a_close_is_no_text_until_it_comes_to_nothing() -> None:
    """`</t>` closes: what may be its beginning waits, and a stop id and a forced close say what it was."""
    schedule = Schedule(
        prologue=tuple(
            Segment("reflection", 9, name=name, open=(), close=tuple(b"</t>"), stop=tuple(b"!"))
            for name in ("think", "plan", "look")
        ),
        cycle=(Segment("choice", choices=(tuple(b"yes"), tuple(b"no")), voice_as="transcript"),),
    )
    vocabulary = Vocabulary(256, (0, 250), None, 251)
    cursor = Cursor(compile_schedule(schedule, vocabulary))
    builder = EventBuilder(
        "r", cast(Any, Letters()), num_prompt=1, num_cached=0, sampling=Sampling(), speech_start=0, rate=8000
    )
    made = []
    for token in b"a<b</</t>" + b"c</!" + b"1234567</" + b"y":
        emission = cursor.draw(token)
        while emission is not None:
            made.append(builder.token(emission, None, t=0.0))
            emission = cursor.emit_forced() if cursor.forced is not None and len(made) < 27 else None
    texts: dict[str | None, str] = {}
    for event in made:
        texts[event.name] = texts.get(event.name, "") + event.text
    assert texts == {"think": "a<b</", "plan": "c</", "look": "1234567", None: "yes"}
    assert [event.text for event in made[:5]] == ["a", "", "<b", "", ""]
    assert [event.choice for event in made if event.choice] == ["[121, 101, 115]"]

    # A segment's line of the log has its name and its choice, and no key where there is none.
    log = EventLog()
    lines = [line for event in made for line in log.feed(event)] + log.finish()
    assert [line.get("name") for line in lines] == ["think", "plan", "look", None]
    assert [line.get("choice") for line in lines] == [None, None, None, "[121, 101, 115]"]
    assert "choice" not in lines[0] and "name" not in lines[3]
