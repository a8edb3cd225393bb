"""A speech output on a stream of its own: what touches the device runs within it, and nothing else changes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from small_codec import SETTINGS, random_codes, small_decoder, speak

from innervoice.codec.own_stream import OwnStream
from innervoice.codec.speech_codec import SpeechOutput


def test_the_samples_are_those_of_the_output_itself() -> None:
    entered: list[int] = []

    @contextmanager
    def within() -> Iterator[None]:
        entered.append(1)
        yield
        entered.append(-1)

    codes = random_codes(50, 3)
    plain = small_decoder().steady(SETTINGS, num_slots=1)
    inner = small_decoder().steady(SETTINGS, num_slots=1)
    step, depth = inner.step, []
    inner.step = lambda keys=None: (depth.append(sum(entered)), step(keys))[1]  # type: ignore[method-assign, assignment]
    wrapped = OwnStream(inner, within)
    expected = speak(plain, codes, [7])
    wrapped.open("spoken")
    made = []
    for first in range(0, len(codes), 7):
        wrapped.push("spoken", codes[first : first + 7])
        made += wrapped.step(["spoken"])
    wrapped.finish("spoken")
    made += wrapped.step()
    wrapped.close("spoken")
    assert np.array_equal(np.concatenate([chunk.samples for chunk in made]), np.concatenate(expected))
    assert set(depth) == {1} and sum(entered) == 0 and wrapped.num_open == 0


def test_it_has_all_that_an_output_has() -> None:
    named = {name for name, _ in inspect.getmembers(SpeechOutput) if not name.startswith("_")}
    assert named <= set(dir(OwnStream))
