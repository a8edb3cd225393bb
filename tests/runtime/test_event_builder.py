"""Fields that a caller adds to events: numpy numbers become plain ones, and a failure is logged once."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import pytest

from innervoice.runtime.event_builder import EventBuilder
from innervoice.types import AudioChunk, EventField, Sampling


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
