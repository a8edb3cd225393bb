"""The engine's loop with the device's step, interpreted, against the same loop whose tokens the host draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from overlapped import compare, make_world  # noqa: E402
from random_lives import Lives  # noqa: E402
from scripted_core import FREE, NAN, VOCABULARY, Received, World, program  # noqa: E402
from stepped import small_model  # noqa: E402

from innervoice.runtime.calibration import calibrate  # noqa: E402
from innervoice.runtime.overlap import Overlap  # noqa: E402
from innervoice.schedule import PRESETS, Schedule, Segment  # noqa: E402

WEIGHTED = program(
    Schedule(
        (Segment("transcript", 2), Segment("speech", 3), Segment("reflection", 3)), reflection_weight=1.4
    )
)
FORCED = program(
    Schedule(
        (Segment("transcript", 2), Segment("forced", ids=(3, 4)), Segment("speech", 4)),
        (Segment("forced", ids=(7, 8)),),
    )
)
THINKS = program(Schedule((Segment("transcript", 2), Segment("speech", 4), Segment("reflection", 12))))
WARM = {"temperature": 0.8, "ignore_eos": True, "logprobs": True}
CUT = WARM | {"top_k": 7, "top_p": 0.9}


def test_two_replies_are_the_host_s() -> None:
    """One begins while the other is drawn; the first ends by its limit, the second is not a number."""
    model = small_model(vocabulary=VOCABULARY)
    model.weights.embedding[NAN] = torch.nan  # type: ignore[index]
    worlds = make_world(model, False, max_rows=2), make_world(model, True, max_rows=2)
    for world in worlds:
        world.submit(
            "weighted", [5, 9, 2], WEIGHTED, 12345, most=3, is_live=False, sampling=WARM, caps=(2, 1)
        )
        world.step()
        world.submit("no number", [1, NAN], FORCED, most=6, is_live=False)
        world.run()
    compare(worlds)
    assert "not numbers" in str(worlds[1].received["no number"].done)


@pytest.mark.slow
def test_several_replies_are_the_host_s() -> None:
    """Weighted, forced, free; warm and greedy; one begins late, one is not for the device, one is cut short."""
    model = small_model(vocabulary=VOCABULARY)
    worlds = make_world(model, False), make_world(model, True)
    for world in worlds:
        world.submit(
            "weighted", [5, 9, 2, 7, 1], WEIGHTED, 12345, most=9, is_live=False, sampling=WARM, caps=(2, 1)
        )
        world.submit("forced", [3], FORCED, most=9, is_live=False)
        world.step()
        world.submit("free", [8, 8, 1], FREE, 7, most=6, is_live=False, sampling=CUT)
        world.step()
        world.submit(
            "host",
            [5, 9, 2, 7, 1],
            WEIGHTED,
            12345,
            most=5,
            is_live=False,
            sampling=WARM,
            caps=(2, 1, 3, 1, 4),
        )
        world.run()
        world.submit(
            "stops",
            [5, 9, 2, 7, 1],
            WEIGHTED,
            12345,
            most=9,
            is_live=False,
            sampling=stop_at(world, 4),
            caps=(2, 1),
        )
        world.run()
    compare(worlds)
    received = worlds[1].received
    assert received["host"].ids == received["weighted"].ids[:5] and len(received["stops"].ids) <= 5
    overlap = worlds[1].core.decoder
    assert (
        isinstance(overlap, Overlap)
        and overlap.num_queued == 0
        and overlap.device_step.stats().eager_steps >= 9
    )


def stop_at(world: World, index: int) -> Mapping[str, Any]:
    return {**WARM, "stop_token_ids": (world.received["weighted"].ids[index],)}


@pytest.mark.long
def test_what_was_granted_makes_the_same_reply() -> None:
    """Somebody listens: reflection is granted a step at a time, and the row rests while its listener is far
    behind.
    """
    model = small_model(vocabulary=VOCABULARY)
    assert isinstance(model.weights.output, torch.Tensor)
    model.weights.output[VOCABULARY.text[1] :] *= 0.1  # text and reflection go on while they may
    options = {
        "settings": {"frontier_s": 0.6, "reserve_s": 0.0},
        "max_rows": 2,
        "step_s": lambda rows, fed: 0.02,
    }
    device, host = make_world(model, True, **options), make_world(model, False, max_rows=2)
    device.submit("live", [5, 9, 2], THINKS, 4, most=40)
    device.run()
    done = device.received["live"].done
    assert done is not None
    assert len(set(done.usage.reflection_caps)) > 1, done.usage.reflection_caps
    host.submit("live", [5, 9, 2], THINKS, 4, most=40, is_live=False, caps=done.usage.reflection_caps)
    host.run()
    assert host.received["live"].ids == device.received["live"].ids
    assert host.received["live"].done.usage.reflection_caps == done.usage.reflection_caps  # type: ignore[union-attr]
    device.core.check_integrity()


@pytest.mark.long
@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_every_preset_under_a_full_cache(preempt: Any) -> None:
    """All presets at once, greedy and warm, in so few pages that replies give theirs to others."""
    model = small_model(vocabulary=VOCABULARY)
    budgets = {"fixed_ratio": {"transcript_budget": 3, "speech_budget": 4}}
    presets = {name: program(Schedule.preset(name, **budgets.get(name, {}))) for name in PRESETS}
    size = {"num_pages": 30, "max_rows": len(presets), "preempt": preempt}
    worlds = make_world(model, False, **size), make_world(model, True, **size)
    for world in worlds:
        for index, (name, made) in enumerate(presets.items()):
            warm = WARM if index % 2 else {}
            world.submit(name, [7, 1, index], made, 4 * index, most=24, is_live=False, sampling=warm)
            world.step()
        world.run()
    compare(worlds)
    assert worlds[1].core.admission.num_preempted > 0


@pytest.mark.long
def test_a_session_is_forked_cut_and_goes_on() -> None:
    """In the middle of a reply, after the same token: a fork that goes on, an export that goes on elsewhere,
    an interruption.
    """
    model = small_model(vocabulary=VOCABULARY)
    worlds = make_world(model, False), make_world(model, True)
    for world in worlds:
        core = world.core
        core.sessions.open("one")
        world.submit("first", [5, 9, 2, 7, 1], WEIGHTED, session_id="one", most=30, is_live=False)
        while len(world.received["first"].ids) < 9:
            world.step()
            core.decoder.settle()
            world.drain()
        core.sessions.fork("one", "two")
        exported = core.sessions.export("one", "model")
        core.sessions.open("three", exported)
        assert core.registry.known("two").paused == exported.paused
        core.sessions.interrupt("one", world.now, None, "speech", "drop")
        world.drain()
        for name in ("two", "three"):
            paused = core.registry.known(name).paused
            assert paused is not None and paused.num_tokens == len(world.received["first"].ids)
            made = world.requests["first"]
            again = replace(made, reply_id=f"rest of {name}", prompt_ids=(), session_id=name)
            core.submit(again, world.now)
            world.received[again.reply_id] = Received()
        world.submit("second", [4, 4], FORCED, session_id="one", most=12, is_live=False)
        world.run()
        assert world.received["rest of two"].ids == world.received["rest of three"].ids
    compare(worlds)
    rows = [[session.sequence.ids for session in world.core.registry] for world in worlds]
    assert rows[0] == rows[1]


@pytest.mark.long
def test_steps_are_timed_as_they_are_taken() -> None:
    world = make_world(small_model(vocabulary=VOCABULARY), True, max_rows=2)
    assert calibrate(world.core, iter(range(10000)).__next__, [1, 2]) > 0
    assert sorted(world.core.costs.decode.points) == [1, 2] and world.core.costs.prefill_token_s > 0
    world.core.check_integrity()
    assert world.pool.num_available == world.pool.num_pages


class SmallLives(Lives):
    """Lives whose model is real, and whose device is interpreted."""

    stepped = True
    model = small_model(vocabulary=VOCABULARY)
    model.weights.embedding[NAN] = torch.nan  # type: ignore[index]

    def make_world(self, stepped: bool, kind: Any, **options: Any) -> Any:
        return make_world(self.model, stepped, kind=kind, **options)


@pytest.mark.long
def test_random_lives() -> None:
    checks = settings(
        max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(SmallLives, settings=checks)
