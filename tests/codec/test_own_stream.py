"""A speech output on a stream of its own: what touches the device runs within it, and nothing else changes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
from small_codec import SETTINGS, random_codes, small_decoder, speak

from innervoice.codec.own_stream import OwnStream
from innervoice.codec.speech_codec import LaunchingOutput, SpeechOutput
from innervoice_kernels.transfer import Arrival


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
    wrapped = OwnStream(inner, within, Clock().mark)
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


class Clock:
    """A device that comes to its marks when it is let, a second for each."""

    def __init__(self) -> None:
        self.reached = 0
        self.marks: list[Point] = []

    def mark(self) -> Point:
        self.marks.append(Point(self, len(self.marks) + 1))
        return self.marks[-1]


@dataclass
class Point:
    clock: Clock
    number: int

    def query(self) -> bool:
        return self.clock.reached >= self.number

    def elapsed_time(self, end_event: Point) -> float:
        return 1000.0 * (end_event.number - self.number)


def test_a_launched_step_is_collected_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before it is collected; the samples, and where they end, are those of a step that waits."""
    reads: list[int] = []
    wait = Arrival.wait
    monkeypatch.setattr(Arrival, "wait", lambda arrival: (reads.append(1), wait(arrival))[1])
    codes = random_codes(50, 3)
    expected = speak(small_decoder().steady(SETTINGS, num_slots=1), codes, [7])
    clock, made = Clock(), []
    output = OwnStream(small_decoder().steady(SETTINGS, num_slots=1), nullcontext, clock.mark)
    assert isinstance(output, LaunchingOutput)
    output.open("spoken")
    for first in range(0, len(codes), 7):
        output.push("spoken", codes[first : first + 7])
        if first + 7 >= len(codes):
            output.finish("spoken")
        reads.clear()
        call = output.launch(["spoken"])
        assert not reads and not call.is_done() and output.ready() == []
        clock.reached = len(clock.marks)
        assert call.is_done() and call.took_s() == 1.0
        made += call.chunks()
    assert [chunk.is_last for chunk in made][-1] and output.errors == {}
    assert np.array_equal(np.concatenate([chunk.samples for chunk in made]), np.concatenate(expected))


def test_a_reply_that_is_closed_or_breaks_meanwhile_spoils_no_other() -> None:
    """A closed one has no chunk, though its key is open again; one whose end was pushed since is not over before its time."""
    inner = small_decoder().steady(SETTINGS, num_slots=4)
    output = OwnStream(inner, nullcontext, Clock().mark)
    for key in "abc":
        output.open(key)
        output.push(key, random_codes(12, 3))
    call = output.launch()
    output.close("a")
    output.open("a")
    output.finish("b")
    output.push("c", random_codes(12, 3))
    later = output.launch(["c"])
    inner.table.fail("c", "it broke meanwhile")
    chunks = call.chunks()
    assert [(chunk.key, chunk.is_last) for chunk in chunks] == [("b", False)]
    assert [chunk for chunk in later.chunks() if len(chunk.samples)] == [] and list(output.errors) == ["c"]
    rest = output.step(["b"])
    assert rest[-1].is_last and {chunk.key for chunk in rest} == {"b"}
