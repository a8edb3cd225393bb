"""A codec's step that is launched and collected later: tokens go on meanwhile, and the sound is the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch
from scripted_core import World, program

from innervoice.codec.speech_codec import SpeechCall, SpokenChunk
from innervoice.schedule import Schedule

SPOKEN = program(Schedule.from_dict({"cycle": [["reflection", 2], ["transcript", 3], ["speech", 4]]}))


class Launches:
    """A voice's steps, each there after some questions whether it is."""

    def __init__(self, world: World, questions: int, error: Exception | None = None) -> None:
        self._world = world
        self._questions = questions
        self._error = error
        self.tokens_meanwhile: list[int] = []
        world.voice.launch = self.launch  # type: ignore[attr-defined]

    def launch(self, keys: Collection[str] | None = None) -> SpeechCall:
        left, chunks = [self._questions], self._world.voice.step(keys)
        before = self._num_tokens()

        def is_done() -> bool:
            left[0] -= 1
            return left[0] < 0

        def collect() -> Sequence[SpokenChunk]:
            self.tokens_meanwhile.append(self._num_tokens() - before)
            if self._error is not None:
                raise self._error
            open_ones = self._world.voice._codes
            return [chunk for chunk in chunks if chunk.key in open_ones]

        return SpeechCall(is_done, collect, lambda: 0.25)

    def _num_tokens(self) -> int:
        return sum(len(one.ids) for one in self._world.received.values())


def spoken(questions: int | None) -> tuple[World, Launches | None]:
    world = World()
    launches = None if questions is None else Launches(world, questions)
    for name in ("one", "two"):
        world.submit(name, [1, 2, len(name)], SPOKEN, is_live=False)
    world.run()
    world.core.check_integrity()
    return world, launches


@pytest.mark.parametrize("questions", [0, 3])
def test_tokens_go_on_while_the_device_makes_sound(questions: int) -> None:
    plain, _ = spoken(None)
    world, launches = spoken(questions)
    assert launches is not None
    for name, expected in plain.received.items():
        received = world.received[name]
        assert received.ids == expected.ids and received.done is not None
        assert len(expected.samples) > 0 and (received.samples == expected.samples).all()
    assert max(launches.tokens_meanwhile) >= questions


def test_a_step_that_fails_when_it_is_collected_ends_its_replies() -> None:
    world = World()
    Launches(world, 2, RuntimeError("no sound today"))
    world.submit("one", [1, 2, 3], SPOKEN)
    world.run()
    done = world.received["one"].done
    assert done is not None and done.finish_reason == "error" and "no sound today" in str(done.error)
    world.core.check_integrity()


def test_a_lost_device_ends_more_than_a_reply() -> None:
    world = World()
    Launches(world, 2, torch.AcceleratorError("lost"))
    world.submit("one", [1, 2, 3], SPOKEN)
    with pytest.raises(torch.AcceleratorError):
        world.run()


def test_a_reply_that_is_cancelled_meanwhile_leaves_nothing() -> None:
    world = World()
    Launches(world, 100)
    world.submit("one", [1, 2, 3], SPOKEN, is_live=False)
    step = world.core._speech_step
    for _ in range(200):
        world.step()
        if step._launched is not None:
            break
    assert step._launched is not None
    world.core.cancel("one")
    world.submit("two", [1, 2, 3], SPOKEN, is_live=False)
    world.run()
    done = world.received["two"].done
    assert done is not None and done.finish_reason != "error" and len(world.received["two"].samples)
    world.core.check_integrity()
