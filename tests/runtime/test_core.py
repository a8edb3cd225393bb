"""What the core does with the scheduler's plans, under a virtual clock and a scripted model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_core import CODES_PER_S, Received, ScriptedDevice, World, program

from innervoice.runtime import calibration
from innervoice.runtime.calibration import calibrate
from innervoice.runtime.overlap import Overlap
from innervoice.runtime.playback import Playback
from innervoice.schedule import UNLIMITED, Schedule, Segment
from innervoice.types import OutOfCapacity

THINKS = program(Schedule((Segment("transcript", 3), Segment("speech", 6), Segment("reflection", 400))))
SPEAKS = program(Schedule((Segment("transcript", 3), Segment("speech", 6))))
TEXT = [3, 5, 7, 9, 11, 13]
BOTH = pytest.mark.parametrize("stepped", [False, True], ids=["by the host", "by the device"])


def starved_s(received: Received) -> float:
    """The longest silence that its listener heard."""
    player = Playback()
    return max((player.send(when, sound) for when, sound in received.sound), default=0.0)


def alone(world: World, name: str, prompt: list[int]) -> Received:
    """The reply, made by itself with the budgets that it had."""
    done = world.received[name].done
    assert done is not None
    other = World(num_pages=200, max_rows=1, max_model_len=world.core.max_model_len)
    request = world.requests[name]
    most = request.sampling.max_new_tokens
    other.submit(name, prompt, request.program, caps=done.usage.reflection_caps, is_live=False, most=most)
    other.run()
    return other.received[name]


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
@pytest.mark.parametrize(("share", "stepped"), [(False, False), (True, False), (True, True)])
def test_a_full_cache_takes_pages_back_and_no_token_changes(preempt: Any, share: bool, stepped: bool) -> None:
    world = World(
        num_pages=30, max_rows=6, preempt=preempt, share_prefixes=share, max_model_len=100, stepped=stepped
    )
    prompts = {f"r{n}": [*TEXT, n] for n in range(6)}
    for name, prompt in prompts.items():
        world.submit(name, prompt, SPEAKS, is_live=False, most=60)
    world.run()
    assert world.core.admission.num_preempted > 0
    num_tokens = sum(len(prompts[name]) + len(received.ids) for name, received in world.received.items())
    assert preempt == "recompute" or world.runner.num_fed <= num_tokens
    for name, prompt in prompts.items():
        other = alone(world, name, prompt)
        assert other.ids == world.received[name].ids
        assert np.array_equal(other.samples, world.received[name].samples)


def test_a_prompt_goes_in_by_chunks_beside_those_who_speak() -> None:
    world = World(max_rows=4)
    world.submit("speaks", TEXT, SPEAKS, most=60)
    for _ in range(6):
        world.step()
    world.submit("long", [n % 20 for n in range(100)], SPEAKS, most=10)
    before = len(world.received["speaks"].ids)
    fed = []
    for _ in range(6):
        fed.append(world.core.step_tokens(world.now).prompt_tokens)
        world.drain()
    assert max(fed) <= 16 and len(world.received["speaks"].ids) > before + 3
    world.run()
    assert alone(world, "long", [n % 20 for n in range(100)]).ids == world.received["long"].ids


@pytest.mark.parametrize(
    "stepped", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["by the host", "by the device"]
)
def test_unplayed_sound_pays_for_reflection_and_load_takes_it_back(stepped: bool) -> None:
    granted, silences = [], []
    for num in (1, 4, 8):
        settings = {"reserve_s": 0.0}
        world = World(
            1000,
            8,
            lambda rows, fed: 0.004 + 0.001 * rows,
            max_model_len=600,
            settings=settings,
            stepped=stepped,
        )
        for n in range(num):
            world.submit(f"r{n}", [*TEXT, n], THINKS, most=400)
        world.run(20000)
        caps = [
            cap
            for received in world.received.values()
            if received.done
            for cap in received.done.usage.reflection_caps
        ]
        granted.append(np.mean([cap for cap in caps if cap != UNLIMITED]))
        silences.append(max(map(starved_s, world.received.values())))
        for n in range(num):
            assert alone(world, f"r{n}", [*TEXT, n]).ids == world.received[f"r{n}"].ids
    assert granted[0] > 1.5 * granted[1] > 2 * granted[2] > 0
    assert max(silences) == 0.0


@pytest.mark.parametrize(
    "stepped", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["by the host", "by the device"]
)
def test_nobody_is_spoken_far_ahead_of(stepped: bool) -> None:
    world = World(max_rows=2, num_pages=400, max_model_len=900, settings={"frontier_s": 2.0}, stepped=stepped)
    world.submit("live", TEXT, SPEAKS, most=700)
    world.submit("file", TEXT, SPEAKS, most=700, is_live=False)
    player, ahead = Playback(), []
    sent = 0
    while world.core.has_work:
        world.step()
        for when, sound in world.received["live"].sound[sent:]:
            player.send(when, sound)
            ahead.append(player.unplayed_s(when))
        sent = len(world.received["live"].sound)
    done = {name: received.done.t for name, received in world.received.items() if received.done}
    total = sum(sound for _, sound in world.received["live"].sound)
    assert max(ahead) < 2.0 + 2 * 10 / CODES_PER_S and starved_s(world.received["live"]) == 0
    assert done["live"] > total - 4 and done["file"] < done["live"] / 2


@BOTH
def test_a_reader_that_is_behind_pauses_its_reply_alone(stepped: bool) -> None:
    world = World(max_rows=2, stepped=stepped)
    world.submit("slow", TEXT, SPEAKS, most=40)
    world.submit("other", [*TEXT, 1], SPEAKS, most=40)
    for _ in range(4):
        world.step()
    world.core.set_blocked("slow", True)
    world.core.decoder.settle()
    world.drain()
    have = len(world.received["slow"].ids)
    while world.received["other"].done is None:
        world.step()
    assert len(world.received["slow"].ids) == have
    world.core.set_blocked("slow", False)
    world.run()
    assert alone(world, "slow", TEXT).ids == world.received["slow"].ids


def test_the_device_draws_while_the_host_reads() -> None:
    """A token is handed over while the next one is drawn, none is drawn behind a limit, what was drawn behind a stop
    is dropped.
    """
    world = World(max_rows=2, stepped=True)
    overlap = world.core.decoder
    assert isinstance(overlap, Overlap) and isinstance(overlap.device_step, ScriptedDevice)
    world.submit("short", TEXT, SPEAKS, most=5, is_live=False)
    first = world.core.step_tokens(world.now)
    assert (first.queued, first.rows, overlap.num_queued) == (2, 0, 1), "the prompt and its first draw"
    second = world.core.step_tokens(world.now)
    assert (second.queued, second.rows, second.prompt_tokens, overlap.num_queued) == (1, 1, len(TEXT), 1)
    world.run()
    assert len(world.received["short"].ids) == 5 == overlap.device_step.num_steps and overlap.num_queued == 0
    stop = world.received["short"].ids[3]
    world.submit("stops", TEXT, SPEAKS, is_live=False, sampling={"stop_token_ids": (stop,)})
    world.run()
    num = world.received["short"].ids.index(stop) + 1
    assert world.received["stops"].ids == world.received["short"].ids[:num]
    assert overlap.device_step.num_steps == 5 + num + 1
    world.core.check_integrity()
    assert world.pool.num_available == world.pool.num_pages


def test_cursors_that_part_end_their_reply_alone() -> None:
    world = World(max_rows=2, stepped=True)
    world.submit("one", TEXT, SPEAKS, is_live=False, most=20)
    world.submit("two", [*TEXT, 1], SPEAKS, is_live=False, most=20)
    for _ in range(6):
        world.step()
    overlap = world.core.decoder
    assert isinstance(overlap, Overlap)
    cursor = overlap.device_step._line(0).cursor  # type: ignore[attr-defined]
    cursor.segment += 1
    world.run()
    one, two = world.received["one"].done, world.received["two"].done
    assert (
        one is not None
        and one.finish_reason == "error"
        and "on the device, and by its schedule" in (one.error or "")
    )
    assert (
        two is not None
        and two.finish_reason == "length"
        and alone(world, "two", [*TEXT, 1]).ids == world.received["two"].ids
    )


def test_higher_priorities_come_first_and_too_many_are_refused() -> None:
    world = World(max_rows=1, max_waiting=2)
    world.submit("runs", TEXT, SPEAKS, most=20)
    world.step()
    world.submit("later", TEXT, SPEAKS, most=20)
    world.submit("first", TEXT, SPEAKS, most=20, priority=1)
    with pytest.raises(OutOfCapacity, match="1 replies run and 2 wait"):
        world.submit("refused", TEXT, SPEAKS)
    world.run()
    ends = {name: received.done.t for name, received in world.received.items() if received.done}
    assert ends["runs"] < ends["first"] < ends["later"]


def test_pages_of_idle_sessions_are_lent_out_and_their_tokens_stay() -> None:
    world = World(num_pages=40, max_rows=4, max_model_len=120, share_prefixes=False)
    registry = world.core.registry
    for n in range(2):
        world.core.sessions.open(f"s{n}")
        world.submit(f"a{n}", [*TEXT, n], SPEAKS, session_id=f"s{n}", is_live=False)
    world.run()
    held = [len(session.sequence.table.pages) for session in registry]
    assert min(held) >= 10
    world.submit("big", [n % 20 for n in range(90)], SPEAKS, is_live=False, most=20)
    world.run()
    assert min(len(session.sequence.table.pages) for session in registry) == 0
    history = list(registry.known("s0").sequence.ids)
    world.submit("b0", [1, 2], SPEAKS, session_id="s0", is_live=False)
    world.run()
    assert alone(world, "b0", [*history, 1, 2]).ids == world.received["b0"].ids


def test_what_a_user_says_is_fed_while_it_is_said() -> None:
    world = World(max_rows=2)
    sessions, registry = world.core.sessions, world.core.registry
    sessions.open("s")
    for num in (8, 20, 33):
        sessions.prefetch("s", TEXT * 6 if num > 36 else (TEXT * 6)[:num])
        world.run()
    assert world.runner.num_fed == 33
    prompt = [*(TEXT * 6)[:30], 19, 18, 17]
    before = world.runner.num_fed
    world.submit("r", prompt, SPEAKS, session_id="s", is_live=False, most=1)
    world.run()
    assert world.runner.num_fed - before == 3 and registry.num_prefetch_kept == 30
    assert alone(world, "r", prompt).ids == world.received["r"].ids
    sessions.prefetch("s", TEXT)
    sessions.prefetch("s", ())
    assert len(registry.known("s").sequence.ids) == len(prompt) + 1 and not world.core.has_work


def test_the_time_of_a_warm_up_is_not_the_codec_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """All first times lie before the clock of what is measured: the cost of a call is learned for several replies."""
    world, now = World(max_rows=8, stepped=True), [0.0]
    first_times: list[Any] = []

    def warm(core: Any) -> None:
        first_times.append(core)
        now[0] += 60

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(calibration, "warm_up", warm)
    monkeypatch.setattr(calibration, "_time_prompt", lambda core, clock: None)
    monkeypatch.setattr(type(world.core.decoder), "captures_graphs", True)
    assert calibrate(world.core, clock, budget_s=1.0) > 60
    assert first_times == [world.core]
    costs = world.core.costs
    assert sorted(costs.voice.points) == [1, 2, 4, 8] and max(costs.voice.points.values()) < 1


@BOTH
def test_a_calibration_tells_what_steps_cost_and_leaves_nothing(stepped: bool) -> None:
    world = World(max_rows=8, stepped=stepped)
    ticks = iter(range(10**6))
    seconds = calibrate(world.core, lambda: 0.001 * next(ticks), budget_s=1.0)
    costs = world.core.costs
    assert sorted(costs.decode.points) == sorted(costs.voice.points) == [1, 2, 4, 8] and seconds > 0
    world.core.check_integrity()
    assert world.pool.num_available == world.pool.num_pages and world.voice.num_open == 0
    with pytest.raises(ValueError, match="batch size is 9"):
        calibrate(world.core, lambda: 0.0, [9])
    world.submit("r", TEXT, SPEAKS)
    with pytest.raises(ValueError, match="replies are running"):
        calibrate(world.core, lambda: 0.0)
