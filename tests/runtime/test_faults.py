"""Thousands of random lives of a core under a virtual clock: whoever fails fails alone and says why, and
nothing leaks.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from random_lives import SPEAKS, Lives, SteppedLives
from scripted_core import MUTE, World


def live(cases: int, steps: int, lives: type[Lives] = Lives) -> None:
    """INNERVOICE_FAULT_CASES asks for another number."""
    cases = int(os.environ.get("INNERVOICE_FAULT_CASES", cases))
    health = list(HealthCheck)
    run_state_machine_as_test(
        lives,
        settings=settings(
            max_examples=cases, stateful_step_count=steps, deadline=None, suppress_health_check=health
        ),
    )


def test_random_lives() -> None:
    live(30, 25)


def test_random_lives_on_the_device() -> None:
    live(20, 25, SteppedLives)


@pytest.mark.long
@pytest.mark.parametrize("lives", [Lives, SteppedLives])
def test_many_random_lives(lives: type[Lives]) -> None:
    live(250, 40, lives)


def test_a_voice_that_breaks_ends_its_reply_alone() -> None:
    world = World(steady=False)
    for seed in range(12):
        world.submit(f"r{seed}", [seed], SPEAKS)
    world.run()
    reasons = Counter(received.done.finish_reason for received in world.received.values() if received.done)
    broken = {name for name, received in world.received.items() if MUTE in received.ids}
    assert broken, "no reply met the code that breaks the voice"
    assert {
        name
        for name, received in world.received.items()
        if received.done and received.done.finish_reason == "error"
    } == broken
    assert reasons["error"] == len(broken) and sum(reasons.values()) == 12


def test_a_lost_device_belongs_to_nobody() -> None:
    world = World()
    world.submit("one", [1, 2], SPEAKS)
    world.submit("two", [1, 3], SPEAKS)
    world.step()
    world.runner.is_broken = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        world.step()
    last = world.core.last_events(world.now, "the engine stopped")
    assert sorted(event.reply_id for event in last) == ["one", "two"]
