"""The scheduler: what must hold of every plan, whatever the replies; what a plan costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    Policy,
    ReplyColumns,
    SchedulerSettings,
    StepPlan,
    plan_step,
    plan_voice,
)
from innervoice.runtime.scheduler.costs import BucketTimes

PAGE = 16
POLICIES: tuple[Policy, ...] = ("slack", "fixed", "fcfs")


def costs(step_s: float = 0.004, row_s: float = 30e-6) -> LearnedCosts:
    """A machine on which a step takes step_s and row_s a row."""
    sizes = [2**i for i in range(11)]
    return LearnedCosts({n: step_s + row_s * n for n in sizes}, {n: 0.001 * n for n in sizes}, 20e-6)


def add(jobs: ReplyColumns, now: float = 0.0, *, priority: int = 0, **columns: Any) -> int:
    """A reply that decodes, has been heard for a while and owns the pages it needs, unless told otherwise."""
    place = jobs.add(now, priority=priority)
    values: dict[str, Any] = {
        "phase": Phase.DECODE, "context": 100, "is_live": True, "has_sound": True, "sound_end_s": now + 2.0, "spoken_left": 30,
        "chunk_s": 2.08, "hidden_most": 100, "hidden_cap": 100,
    }  # fmt: skip
    values |= columns
    if values["phase"] == Phase.WAITING:
        values |= {"has_sound": False, "prompt_left": values["context"], "prompt_len": values["context"]}
    values.setdefault("pages", -(-(values["context"] - values.get("prompt_left", 0)) // PAGE))
    for name, value in values.items():
        getattr(jobs, name)[place] = value
    return place


@st.composite
def tables(draw: st.DrawFn) -> tuple[ReplyColumns, float, int]:
    """Any replies at all, the time, and how many pages are free."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    jobs, now = ReplyColumns(4), float(draw(st.floats(0, 100)))
    for _ in range(draw(st.integers(0, 40))):
        phase = Phase(int(random.integers(1, 5)))
        context = int(random.integers(1, 600))
        left = int(random.integers(1, context + 1)) if phase == Phase.PREFILL else 0
        most = int(random.integers(0, 200))
        sounding = bool(random.random() < 0.6) and phase != Phase.WAITING
        reflects = bool(random.random() < 0.4) and phase == Phase.DECODE
        cap = int(random.integers(0, most + 1))
        add(
            jobs, now - float(random.uniform(0, 3)), priority=int(random.integers(-1, 2)), phase=phase, context=context,
            prompt_left=left, is_live=bool(random.random() < 0.8), is_blocked=bool(random.random() < 0.1), has_sound=sounding,
            sound_end_s=now + float(random.uniform(-1, 10)), spoken_left=int(random.integers(0, 40)), is_reflecting=reflects,
            is_listening=phase == Phase.PREFILL and bool(random.random() < 0.2), hidden_most=most, hidden_cap=cap,
            hidden_floor=int(random.integers(0, most + 1)) if random.random() < 0.3 else 0,
            hidden_count=int(random.integers(0, cap + 1)) if reflects else 0, hidden_total=300, sound_total_s=4.0,
            unvoiced_s=float(random.uniform(0, 3)), chunks_ready=int(random.integers(0, 2)),
        )  # fmt: skip
    for place in jobs.places.tolist()[:: draw(st.integers(3, 9))]:
        jobs.remove(place)
    return jobs, now, draw(st.integers(0, 300))


def state(jobs: ReplyColumns) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in vars(jobs).items() if isinstance(value, np.ndarray)}


def pages_needed(jobs: ReplyColumns, plan: StepPlan) -> int:
    """Pages that a step takes, less those that it gives back."""
    feeds = dict(plan.prefill)
    feeds = {
        place: num + (num == jobs.prompt_left[place] and not jobs.is_listening[place])
        for place, num in feeds.items()
    }
    for place in plan.decode.tolist():
        feeds[place] = feeds.get(place, 0) + 1
    total = 0
    for place, num in feeds.items():
        total += max(
            0, -(-int(jobs.context[place] - jobs.prompt_left[place] + num) // PAGE) - int(jobs.pages[place])
        )
    return total - sum(int(jobs.pages[place]) for place in plan.preempt)


settings_of = st.builds(
    SchedulerSettings,
    policy=st.sampled_from(POLICIES),
    max_rows=st.integers(1, 50),
    max_batch=st.integers(1, 50),
    prefill_chunk=st.integers(1, 600),
    reflection_rate=st.one_of(st.none(), st.floats(0, 100)),
)


@given(tables(), settings_of)
@settings(max_examples=400, deadline=None)
def test_every_plan_is_possible(table: tuple[ReplyColumns, float, int], chosen: SchedulerSettings) -> None:
    jobs, now, pages_free = table
    plan = plan_step(jobs, costs(), chosen, now, pages_free)
    places, runs = jobs.places, (Phase.PREFILL, Phase.DECODE)
    assert all(jobs.phase[place] == Phase.WAITING for place in plan.admit)
    held = sum(1 for place in places if jobs.phase[place] != Phase.WAITING)
    speaking = sum(
        1 for place in places if jobs.phase[place] != Phase.WAITING and not jobs.is_listening[place]
    )
    assert not plan.admit or speaking + len(plan.admit) <= chosen.max_rows
    assert len(plan.decode) <= chosen.max_batch
    assert len(set(plan.decode.tolist())) == len(plan.decode)
    for place in plan.decode.tolist():
        assert jobs.phase[place] in runs or place in plan.admit
        assert jobs.prompt_left[place] == 0
        assert not jobs.is_blocked[place]
        assert not jobs.is_listening[place]
    assert sum(num for _, num in plan.prefill) <= chosen.prefill_chunk
    for place, num in plan.prefill:
        assert 1 <= num <= jobs.prompt_left[place]
        assert not jobs.is_blocked[place]
        assert jobs.phase[place] in runs or place in plan.admit
    assert all(jobs.phase[place] in runs for place in plan.preempt)
    assert set(plan.preempt).isdisjoint(
        [*plan.decode.tolist(), *plan.admit, *(place for place, _ in plan.prefill)]
    )
    assert pages_needed(jobs, plan) <= pages_free
    takes_part = len(plan.decode) + len(plan.prefill)
    assert takes_part <= held + len(plan.admit)


@given(tables(), settings_of)
@settings(max_examples=200, deadline=None)
def test_caps_lie_between_floor_and_most_and_only_fall(
    table: tuple[ReplyColumns, float, int], chosen: SchedulerSettings
) -> None:
    jobs, now, pages_free = table
    plan = plan_step(jobs, costs(), chosen, now, pages_free)
    assert set(plan.decode.tolist()) <= set(plan.cap_places.tolist())
    for place, cap in zip(plan.cap_places.tolist(), plan.caps.tolist(), strict=True):
        if chosen.policy != "slack":
            assert cap == min(
                jobs.hidden_most[place], chosen.fixed_hidden if chosen.policy == "fixed" else 10**9
            )
            continue
        assert cap <= jobs.hidden_most[place]
        if jobs.is_reflecting[place]:
            assert cap <= jobs.hidden_cap[place]
            assert cap >= min(jobs.hidden_floor[place], jobs.hidden_cap[place])
        else:
            assert cap >= jobs.hidden_floor[place]


@given(tables(), settings_of)
@settings(max_examples=100, deadline=None)
def test_planning_is_pure(table: tuple[ReplyColumns, float, int], chosen: SchedulerSettings) -> None:
    jobs, now, pages_free = table
    learned = costs()
    before = state(jobs)
    first, second = (plan_step(jobs, learned, chosen, now, pages_free) for _ in range(2))
    voice = [plan_voice(jobs, learned, chosen, now, idle=False) for _ in range(2)]
    assert repr(first) == repr(second)
    assert repr(voice[0]) == repr(voice[1])
    assert state(jobs) == before


@given(tables(), st.sampled_from(POLICIES), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_voice_makes_what_is_ready_and_says_when_to_ask_again(
    table: tuple[ReplyColumns, float, int], policy: Policy, idle: bool
) -> None:
    jobs, now, _ = table
    ready = {place for place in jobs.places.tolist() if jobs.chunks_ready[place]}
    plan = plan_voice(jobs, costs(), SchedulerSettings(policy=policy), now, idle=idle)
    assert set(plan.places.tolist()) <= ready
    assert len(set(plan.places.tolist())) == len(plan.places)
    if policy != "slack":
        assert set(plan.places.tolist()) == ready
    if idle:
        assert bool(len(plan.places)) == bool(ready)
    waits = [place for place in ready if jobs.is_live[place] and not jobs.has_sound[place]]
    if set(waits) - set(plan.places.tolist()):  # a divided call: those before them cannot wait either
        assert len(plan.places)
        for place in set(plan.places.tolist()) - set(waits):
            assert (
                jobs.sound_end_s[place] < now + 2 or now - jobs.served_s[place] > SchedulerSettings().starve_s
            )
    if ready and not len(plan.places):
        assert now < plan.wake_s


def test_first_sound_comes_first_and_narrows_the_step() -> None:
    jobs = ReplyColumns()
    for _ in range(100):
        add(jobs, sound_end_s=8.0, spoken_rate=0.5)
    new = add(jobs, has_sound=False, spoken_left=22, prompt_len=100)
    plan = plan_step(jobs, costs(row_s=1e-3), SchedulerSettings(), 0.0, 1000)
    assert plan.decode[0] == new
    assert len(plan.decode) < 20


def test_a_prompt_that_somebody_waits_for_is_fed_beside_those_in_need_alone() -> None:
    jobs = ReplyColumns()
    for _ in range(50):
        add(jobs, sound_end_s=4.0, spoken_rate=0.1)
    short = add(jobs, sound_end_s=0.5, spoken_left=75)
    prompt = add(jobs, phase=Phase.PREFILL, context=500, prompt_left=500, prompt_len=500, has_sound=False)
    settings = SchedulerSettings()
    plan = plan_step(jobs, costs(), settings, 0.0, 1000)
    assert plan.decode.tolist() == [short]
    assert dict(plan.prefill)[prompt] > 0
    jobs.is_listening[prompt] = True  # its user still speaks: nobody waits
    assert len(plan_step(jobs, costs(), settings, 0.0, 1000).decode) > 10


def test_a_first_sound_leaves_the_others_their_pace() -> None:
    jobs = ReplyColumns()
    for _ in range(100):
        add(jobs, sound_end_s=8.0)
    add(jobs, has_sound=False, spoken_left=22, prompt_len=100)
    learned = costs(row_s=0.4e-3)
    plan = plan_step(jobs, learned, SchedulerSettings(reserve_s=100.0), 0.0, 1000)
    step_s = 0.004 + 0.4e-3 * len(plan.decode)
    assert len(plan.decode) / step_s >= 100 * 18.75
    rested = plan_step(
        jobs, learned, SchedulerSettings(reserve_s=1.0), 0.0, 1000
    )  # all of them have more than half of that left
    assert 100 in rested.decode.tolist() and len(rested.decode) < len(plan.decode) / 4


def test_least_room_goes_first_and_priority_before_that() -> None:
    jobs = ReplyColumns()
    for end_s in (5.0, 0.5, 3.0):
        add(jobs, sound_end_s=end_s)
    urgent = add(jobs, sound_end_s=6.0, priority=1)
    plan = plan_step(jobs, costs(), SchedulerSettings(max_batch=2), 0.0, 1000)
    assert plan.decode.tolist() == [urgent, 1]


def test_arrival_order_is_arrival_order() -> None:
    jobs = ReplyColumns()
    added = [add(jobs, sound_end_s=5.0 - i) for i in range(5)]
    for policy in ("fcfs", "fixed"):
        plan = plan_step(jobs, costs(), SchedulerSettings(policy=policy, max_batch=3), 0.0, 1000)
        assert plan.decode.tolist() == added[:3]


def test_nobody_starves() -> None:
    """Rows that somebody hears fill every step; a row that nobody hears draws within starve_s nevertheless."""
    jobs, learned, chosen, now = ReplyColumns(), costs(), SchedulerSettings(max_batch=4, starve_s=0.5), 0.0
    live = [add(jobs, sound_end_s=1.0) for _ in range(8)]
    offline = add(jobs, is_live=False, has_sound=False)
    served = []
    while now < 3.0:
        plan = plan_step(jobs, learned, chosen, now, 10_000)
        now += 0.01
        jobs.served_s[plan.decode] = now
        jobs.sound_end_s[live] = now + 1.0
        served += [now] if offline in plan.decode else []
    assert np.diff([0.0, *served, now]).max() <= 0.5 + 0.011 * 5
    assert min(jobs.served_s[live]) > now - 0.6


def test_nobody_overtakes_a_prompt_that_does_not_fit() -> None:
    jobs = ReplyColumns()
    add(jobs)
    large = add(jobs, phase=Phase.WAITING, context=2000)
    small = add(jobs, phase=Phase.WAITING, context=10)
    assert plan_step(jobs, costs(), SchedulerSettings(), 0.0, 50).admit == []
    assert plan_step(jobs, costs(), SchedulerSettings(), 0.0, 200).admit == [large, small]


def test_pages_promised_to_a_prompt_are_not_promised_again() -> None:
    jobs = ReplyColumns()
    add(jobs, phase=Phase.PREFILL, has_sound=False, context=800, prompt_left=800, pages=0)
    waits = add(jobs, phase=Phase.WAITING, context=800)
    assert plan_step(jobs, costs(), SchedulerSettings(), 0.0, 90).admit == []
    assert plan_step(jobs, costs(), SchedulerSettings(), 0.0, 110).admit == [waits]


def test_a_lone_prompt_is_always_admitted() -> None:
    jobs = ReplyColumns()
    place = add(jobs, phase=Phase.WAITING, context=2000)
    plan = plan_step(jobs, costs(), SchedulerSettings(), 0.0, 40)
    assert plan.admit == [place]
    assert plan.prefill == [(place, SchedulerSettings().prefill_chunk)]


@pytest.mark.parametrize("policy", POLICIES)
def test_pages_are_taken_from_those_who_need_them_least(policy: Policy) -> None:
    jobs = ReplyColumns()
    places = [add(jobs, context=96, pages=6, sound_end_s=end_s) for end_s in (1.0, 7.0, 0.5)]
    plan = plan_step(jobs, costs(), SchedulerSettings(policy=policy), 0.0, 0)
    assert plan.preempt == ([places[1]] if policy == "slack" else [places[2]])
    blocked = add(jobs, context=96, pages=6, sound_end_s=0.1, is_blocked=True)
    plan = plan_step(jobs, costs(), SchedulerSettings(policy=policy), 0.0, 0)
    assert plan.preempt == [blocked]  # the latest as well


def test_reflection_is_what_the_sound_pays_for() -> None:
    """cap = (unplayed - margin - reserve - codec - spoken tokens with their margin) / step, by hand."""
    jobs = ReplyColumns()
    place = add(jobs, sound_end_s=2.0, spoken_left=30, hidden_most=1000, hidden_cap=1000)
    chosen, learned = (
        SchedulerSettings(margin_s=0.06, margin_share=0.25, reserve_s=0.5),
        costs(step_s=0.009, row_s=0.001),
    )
    plan = plan_step(jobs, learned, chosen, 0.0, 1000)
    assert plan.cap_places.tolist() == [place]
    assert plan.caps.tolist() == [math.floor((2.0 - 0.06 - 0.5 - 0.001 - 30 * 0.01 * 1.25) / 0.01)]
    jobs.ready_s[place] = 1.0
    assert plan_step(jobs, learned, chosen, 0.0, 1000).caps[0] == plan.caps[0] + 100
    jobs.is_reflecting[place], jobs.hidden_count[place] = True, 7
    assert plan_step(jobs, learned, chosen, 1.0, 1000).caps[0] == plan.caps[0] + 7
    assert plan_step(jobs, learned, chosen, 3.5, 1000).caps[0] <= 7  # it closes at once


def test_caps_fall_smoothly_with_the_load() -> None:
    caps = []
    for num in range(1, 200, 10):
        jobs = ReplyColumns()
        for _ in range(num):
            add(jobs, hidden_most=1000, hidden_cap=1000)
        caps.append(int(plan_step(jobs, costs(), SchedulerSettings(), 0.0, 10_000).caps[0]))
    assert caps == sorted(caps, reverse=True)
    assert max(-np.diff(caps)) <= 0.15 * caps[0]


def test_a_reply_far_ahead_rests_until_it_is_wanted() -> None:
    jobs = ReplyColumns()
    add(jobs, sound_end_s=9.5)
    plan = plan_step(jobs, costs(), SchedulerSettings(frontier_s=8.0), 0.0, 1000)
    assert len(plan.decode) == 0
    assert plan.wake_s == pytest.approx(1.5)
    assert (
        len(plan_step(jobs, costs(), SchedulerSettings(frontier_s=8.0), plan.wake_s + 1e-3, 1000).decode) == 1
    )


def test_listeners_wait_for_a_machine_that_is_full() -> None:
    jobs = ReplyColumns()
    for _ in range(200):
        add(jobs)
    add(jobs, phase=Phase.WAITING, context=10)
    full = costs(row_s=0.25e-3)  # 18.75 * 200 * 0.25e-3 = 0.94 of the time, and the codec
    assert plan_step(jobs, full, SchedulerSettings(), 0.0, 10_000).admit == []
    assert len(plan_step(jobs, full, SchedulerSettings(policy="fcfs"), 0.0, 10_000).admit) == 1
    jobs.is_blocked[:100] = True  # replies whose readers do not read keep nobody waiting
    assert len(plan_step(jobs, full, SchedulerSettings(), 0.0, 10_000).admit) == 1


def test_prompts_are_fed_in_pieces_that_listeners_can_spare() -> None:
    jobs = ReplyColumns()
    add(jobs, sound_end_s=0.5, spoken_left=30)
    add(jobs, phase=Phase.PREFILL, has_sound=False, context=4000, prompt_left=4000, pages=0)
    chosen = SchedulerSettings(prefill_chunk=4000)
    fed = [
        sum(num for _, num in plan_step(jobs, costs(), chosen, now, 1000).prefill)
        for now in (0.0, 0.3, 0.35, 0.5, 1.1)
    ]
    assert fed[0] == 4000
    assert 4000 > fed[1] > fed[2] > 0
    assert fed[3:] == [0, 32]  # no time at all; but it has waited for more than a second
    jobs.has_sound[0] = False
    jobs.is_live[0] = False
    assert plan_step(jobs, costs(), chosen, 0.0, 1000).prefill == [(1, 4000)]


def test_chunks_wait_for_each_other_where_a_call_is_dear() -> None:
    jobs = ReplyColumns()
    for _ in range(3):
        add(jobs, chunks_ready=1, sound_end_s=4.0)
    dear = LearnedCosts({1: 0.004}, {n: 0.013 + 0.001 * n for n in (1, 2, 4, 8, 16, 32, 64)}, 20e-6)
    plan = plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=False)
    assert len(plan.places) == 0
    assert 3.0 < plan.wake_s < 4.0
    jobs.sound_end_s[0] = 0.05
    assert plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=False).places[0] == 0
    assert (
        len(plan_voice(jobs, costs(), SchedulerSettings(), 0.0, idle=False).places) >= 1
    )  # cheap ones are made at once


def test_first_sounds_are_made_beside_those_alone_that_would_come_too_late() -> None:
    settings = SchedulerSettings()
    jobs = ReplyColumns()
    first = add(jobs, chunks_ready=1, has_sound=False)
    late = add(jobs, chunks_ready=1, sound_end_s=settings.margin_s)
    soon = add(jobs, chunks_ready=1, sound_end_s=settings.margin_s + 0.1)
    assert set(plan_voice(jobs, costs(), settings, 0.0, idle=False).places.tolist()) == {first, late}
    jobs.chunks_ready[first] = 0
    assert set(plan_voice(jobs, costs(), settings, 0.0, idle=False).places.tolist()) == {late, soon}


def test_chunks_in_need_come_in_several_calls_where_that_costs_nothing() -> None:
    jobs, settings = ReplyColumns(), SchedulerSettings()
    first = add(jobs, chunks_ready=1, has_sound=False)
    later, soon, soonest = (add(jobs, chunks_ready=1, sound_end_s=end_s) for end_s in (0.09, 0.05, 0.01))

    def made(chunk_s: float, call_s: float) -> list[int]:
        learned = LearnedCosts(
            {1: 0.004, 64: 0.004}, {n: call_s + chunk_s * n for n in (1, 2, 4, 8, 64)}, 20e-6
        )
        return plan_voice(jobs, learned, settings, 0.0, idle=False).places.tolist()

    assert made(0.1, 0.0) == [soonest, soon]  # none of them is heard before the last is made
    assert made(0.01, 0.03) == [soonest, soon, later, first]
    jobs.chunks_ready[soonest] = jobs.chunks_ready[soon] = 0
    assert made(0.1, 0.0) == [later, first]


def test_an_idle_engine_makes_few_chunks_at_a_time() -> None:
    jobs = ReplyColumns()
    for _ in range(50):
        add(jobs, chunks_ready=1, sound_end_s=9.0)
    dear = LearnedCosts(dict.fromkeys((1, 64), 0.004), {n: 0.1 * n for n in (1, 64)}, 20e-6)
    assert len(plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=True).places) == 2
    flat = LearnedCosts(dict.fromkeys((1, 64), 0.004), {n: 0.1 + 1e-4 * n for n in (1, 64)}, 20e-6)
    assert len(plan_voice(jobs, flat, SchedulerSettings(), 0.0, idle=True).places) == 50


def test_places_are_given_again_and_columns_grow() -> None:
    jobs = ReplyColumns(2)
    places = [jobs.add(float(i)) for i in range(5)]
    assert places == [0, 1, 2, 3, 4]
    jobs.context[1] = 77
    jobs.remove(3)
    jobs.remove(1)
    assert len(jobs) == 3
    assert jobs.add(9.0) == 1
    assert jobs.context[1] == 0
    assert jobs.order[1] == 6
    assert jobs.places.tolist() == [0, 1, 2, 4]
    assert len(jobs.rows.phase) == 5


@given(
    st.dictionaries(st.integers(1, 4000), st.floats(1e-4, 1.0), min_size=1),
    st.integers(1, 4000),
    st.integers(1, 4000),
)
def test_estimates_never_fall_with_size(points: dict[int, float], a: int, b: int) -> None:
    times = BucketTimes(points)
    assert times.estimate(min(a, b)) <= times.estimate(max(a, b)) + 1e-12
    limit = times.estimate(a)
    size = times.most_within(limit, 4000)
    assert size >= a or limit - times.estimate(size) < 1e-12  # as near as rounding lets it come
    assert times.estimate(size) <= limit + 1e-12


def test_costs_are_learned() -> None:
    learned = costs()
    for _ in range(100):
        learned.observe_step(64, 0, 0.02)
        learned.observe_step(64, 500, 0.07)
        learned.observe_voice(8, 0.5)
    assert learned.decode.estimate(64) == pytest.approx(0.02, rel=0.1)
    assert learned.prefill_token_s == pytest.approx(1e-4, rel=0.1)
    assert learned.voice.estimate(8) == pytest.approx(0.5, rel=0.1)
    assert learned.stretch == 4.0
    before = learned.decode.points
    learned.observe_step(64, 0, -1.0)
    learned.observe_step(64, 0, math.inf)
    assert learned.decode.points == before


def test_rate_is_least_at() -> None:
    times = BucketTimes({n: 0.004 + 30e-6 * n for n in (1, 8, 64, 512)})
    size = times.least_at(5000.0, 512)
    assert size / times.estimate(size) >= 5000
    assert (size - 1) / times.estimate(size - 1) < 5000
    assert times.least_at(1e9, 100) == 100


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "best"),
        ("max_rows", 0),
        ("frontier_s", 0.0),
        ("margin_s", -1.0),
        ("reflection_rate", -1.0),
        ("max_load", math.nan),
    ],
)
def test_bad_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SchedulerSettings(**{field: value})
