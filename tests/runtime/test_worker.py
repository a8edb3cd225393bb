"""When a worker carries calls out: before each step and within it, and the end of a reply that one of them ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted_core import program
from served_core import Served

from innervoice.schedule import Schedule

SPOKEN = program(Schedule.from_dict({"cycle": [["reflection", 2], ["transcript", 3], ["speech", 4]]}))
PLACES: dict[str, Callable[[Served], tuple[Any, str]]] = {
    "before the step": lambda world: (world.core, "step_tokens"),
    "before the sound": lambda world: (world.core, "step_speech"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("phase", ["waiting", "decoding"])
def test_a_cancelled_reply_is_over_before_the_next_step(place: str, phase: str) -> None:
    world = Served(max_rows=2)
    world.submit("other", [1, 2, 3], SPOKEN)
    world.submit("gone", [4, 5, 6], SPOKEN)
    while phase == "decoding" and not world.received["gone"].ids:
        world.step()
    owner, name = PLACES[place](world)
    original, seen = getattr(owner, name), []

    def late(*args: Any) -> Any:
        seen.append([done.finish_reason for done in world.readers["gone"].ends])
        return original(*args)

    if place == "before the step":
        setattr(owner, name, late)
        world.worker.cancel("gone")
    else:
        tokens = world.core.step_tokens

        def cancels(now: float) -> Any:
            made = tokens(now)
            setattr(owner, name, late)
            world.worker.cancel("gone")
            return made

        world.core.step_tokens = cancels  # type: ignore[method-assign]
    world.step()
    assert seen[0] == ["cancelled"]
    assert world.core.table.find("gone") is None
    world.core.check_integrity()


def test_a_call_within_a_step_that_did_nothing_is_not_slept_upon() -> None:
    world = Served()
    rested: list[bool] = []
    tokens = world.core.step_tokens

    def submits(now: float) -> Any:
        made = tokens(now)
        if "late" not in world.readers:
            world.submit("late", [1, 2, 3], SPOKEN)
        return made

    world.core.step_tokens = submits  # type: ignore[method-assign]
    world.worker._step()
    rested.append(world.worker._is_resting)
    assert rested == [False]
    world.run()
    assert world.received["late"].done is not None
