"""The plan of a step: invariants of every plan, whatever the replies, and its decisions one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from scheduler_tables import POLICIES, add, costs, pages_needed, settings_of, state, tables

from innervoice.runtime.scheduler import (
    LearnedCosts,
    Phase,
    ReplyColumns,
    SchedulerSettings,
    forecast,
    plan_step,
    plan_voice,
)


def rows_of(jobs: ReplyColumns, indices: Iterable[int]) -> int:
    return sum(1 + int(jobs.more_rows[table_index]) for table_index in indices)


@given(tables(), settings_of)
@settings(max_examples=400, deadline=None)
def test_every_plan_is_possible(table: tuple[ReplyColumns, float, int], chosen: SchedulerSettings) -> None:
    jobs, now, pages_free = table
    plan = plan_step(jobs, costs(), chosen, now, pages_free)
    indices, runs = jobs.indices, (Phase.PREFILL, Phase.DECODE)
    assert all(jobs.phase[table_index] == Phase.WAITING for table_index in plan.admit)
    held = sum(1 for table_index in indices if jobs.phase[table_index] != Phase.WAITING)
    held_rows = [i for i in indices if jobs.phase[i] != Phase.WAITING and not jobs.is_listening[i]]
    assert not plan.admit or rows_of(jobs, [*held_rows, *plan.admit]) <= chosen.max_rows
    assert len(plan.decode) <= 1 or rows_of(jobs, plan.decode) <= chosen.max_batch
    assert len(set(plan.decode.tolist())) == len(plan.decode)
    for table_index in plan.decode.tolist():
        assert jobs.phase[table_index] in runs or table_index in plan.admit
        assert jobs.prompt_left[table_index] == 0
        assert not jobs.is_blocked[table_index]
        assert not jobs.is_listening[table_index]
    assert sum(num for _, num in plan.prefill) <= chosen.prefill_chunk
    for table_index, num in plan.prefill:
        assert 1 <= num <= jobs.prompt_left[table_index]
        assert not jobs.is_blocked[table_index]
        assert jobs.phase[table_index] in runs or table_index in plan.admit
    assert all(jobs.phase[table_index] in runs for table_index in plan.preempt)
    assert set(plan.preempt).isdisjoint(
        [*plan.decode.tolist(), *plan.admit, *(table_index for table_index, _ in plan.prefill)]
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
    assert set(plan.decode.tolist()) <= set(plan.cap_indices.tolist())
    for table_index, cap in zip(plan.cap_indices.tolist(), plan.caps.tolist(), strict=True):
        if chosen.policy != "slack":
            assert cap == min(
                jobs.hidden_most[table_index], chosen.fixed_hidden if chosen.policy == "fixed" else 10**9
            )
            continue
        assert cap <= jobs.hidden_most[table_index]
        if jobs.is_reflecting[table_index]:
            assert cap <= jobs.hidden_cap[table_index]
            assert cap >= min(jobs.hidden_floor[table_index], jobs.hidden_cap[table_index])
        else:
            assert cap >= jobs.hidden_floor[table_index]


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


@pytest.mark.parametrize("policy", POLICIES)
def test_contexts_are_rows(policy: str) -> None:
    """A reply of three contexts: it waits for three rows, fills a step as three replies, and costs as much."""
    chosen = SchedulerSettings(policy=policy, max_rows=6, max_batch=4)
    jobs = ReplyColumns()
    plain = [add(jobs, sound_end_s=2.0) for _ in range(4)]
    waits = add(jobs, phase=Phase.WAITING, context=10, more_rows=2)
    behind = add(jobs, phase=Phase.WAITING, context=10)
    assert plan_step(jobs, costs(), chosen, 0.0, 1000).admit == [], "none overtakes it"
    jobs.remove(plain.pop())
    assert plan_step(jobs, costs(), chosen, 0.0, 1000).admit == [waits]
    jobs.remove(plain.pop())
    assert plan_step(jobs, costs(), chosen, 0.0, 1000).admit == [waits, behind]

    fused = add(jobs, sound_end_s=0.5, more_rows=2, priority=1)
    jobs.order[fused] = -1
    drawn = plan_step(jobs, costs(), chosen, 0.0, 1000).decode.tolist()
    assert drawn == [fused, plain[0]], "three rows and one"
    narrow = SchedulerSettings(policy=policy, max_batch=2)
    assert plan_step(jobs, costs(), narrow, 0.0, 1000).decode.tolist() == [fused], "it is not divided"


def test_contexts_cost_what_as_many_replies_do() -> None:
    """Caps, the room for one more, pace and forecast, of one reply with eight contexts and of eight replies."""
    learned, chosen = costs(row_s=1e-3), SchedulerSettings()
    made = []
    for num, more in ((1, 0), (8, 0), (1, 7)):
        jobs = ReplyColumns()
        for _ in range(num):
            add(jobs, hidden_most=1000, hidden_cap=1000, more_rows=more)
        one = add(jobs, phase=Phase.WAITING, context=10)
        plan = plan_step(jobs, learned, chosen, 0.0, 1000)
        made.append((int(plan.caps[0]), forecast(jobs, learned).first_audio_s))
        jobs.remove(one)
    (alone, first_s), *wide = made
    assert wide[0][0] == wide[1][0] < alone
    assert (
        wide[0][1] == pytest.approx(wide[1][1], abs=0.0031) and wide[0][1] > first_s + 40 * 7e-3
    )  # but one is voiced

    jobs = ReplyColumns()
    for _ in range(30):
        add(jobs)
    waits = add(jobs, phase=Phase.WAITING, context=10)
    tight = SchedulerSettings(max_load=18.75 * (0.004 + 0.034) + 31 * 0.001 / 2.08)
    assert plan_step(jobs, learned, tight, 0.0, 1000).admit == [waits]
    jobs.more_rows[waits] = 7
    assert plan_step(jobs, learned, tight, 0.0, 1000).admit == [], "eight rows more would not keep pace"

    jobs = ReplyColumns()
    first = add(jobs, has_sound=False, spoken_left=22, prompt_len=100, hidden_most=1000, submitted_s=-0.3)
    for _ in range(40):
        add(jobs, sound_end_s=8.0, spoken_rate=0.5)
    narrow = len(plan_step(jobs, learned, chosen, 0.0, 1000).decode)
    jobs.more_rows[first] = 7
    plan = plan_step(jobs, learned, chosen, 0.0, 1000)
    assert plan.decode[0] == first and rows_of(jobs, plan.decode) >= narrow, "its first sound is due later"


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
    table_index = add(jobs, phase=Phase.WAITING, context=2000)
    plan = plan_step(jobs, costs(), SchedulerSettings(), 0.0, 40)
    assert plan.admit == [table_index]
    assert plan.prefill == [(table_index, SchedulerSettings().prefill_chunk)]


@pytest.mark.parametrize("policy", POLICIES)
def test_pages_are_taken_from_those_who_need_them_least(policy: str) -> None:
    jobs = ReplyColumns()
    indices = [add(jobs, context=96, pages=6, sound_end_s=end_s) for end_s in (1.0, 7.0, 0.5)]
    plan = plan_step(jobs, costs(), SchedulerSettings(policy=policy), 0.0, 0)
    assert plan.preempt == ([indices[1]] if policy == "slack" else [indices[2]])
    blocked = add(jobs, context=96, pages=6, sound_end_s=0.1, is_blocked=True)
    plan = plan_step(jobs, costs(), SchedulerSettings(policy=policy), 0.0, 0)
    assert plan.preempt == [blocked]  # the latest as well


def test_reflection_is_what_the_sound_pays_for() -> None:
    """cap = (unplayed - margin - reserve - codec - spoken tokens with their margin) / step, by hand."""
    jobs = ReplyColumns()
    table_index = add(jobs, sound_end_s=2.0, spoken_left=30, hidden_most=1000, hidden_cap=1000)
    chosen, learned = (
        SchedulerSettings(margin_s=0.06, margin_share=0.25, reserve_s=0.5),
        costs(step_s=0.009, row_s=0.001),
    )
    plan = plan_step(jobs, learned, chosen, 0.0, 1000)
    assert plan.cap_indices.tolist() == [table_index]
    assert plan.caps.tolist() == [math.floor((2.0 - 0.06 - 0.5 - 0.001 - 30 * 0.01 * 1.25) / 0.01)]
    jobs.ready_s[table_index] = 1.0
    assert plan_step(jobs, learned, chosen, 0.0, 1000).caps[0] == plan.caps[0] + 100
    jobs.is_reflecting[table_index], jobs.hidden_count[table_index] = True, 7
    assert plan_step(jobs, learned, chosen, 1.0, 1000).caps[0] == plan.caps[0] + 7
    assert plan_step(jobs, learned, chosen, 3.5, 1000).caps[0] <= 7  # it closes at once


def test_seconds_of_sound_pay_for_reflection_where_the_codec_takes_most_of_the_time() -> None:
    """Steps of 10 ms, one of them a stall, and codec calls of 0.6 s: a lone reply, two seconds ahead of its player,
    has (2 - 0.06 - 0.5 - codec - 23 * step * 1.25) / step hidden tokens.
    """
    jobs, learned = ReplyColumns(), LearnedCosts()
    add(jobs, sound_end_s=2.0, spoken_left=23, hidden_most=1000, hidden_cap=1000)
    for _ in range(20):
        for _ in range(39):
            learned.observe_step(1, 0, 0.01)
        learned.observe_voice(1, 0.6)
    assert learned.stretch > 2
    assert plan_step(jobs, learned, SchedulerSettings(), 0.0, 1000).caps[0] in (54, 55)
    learned.observe_step(1, 0, 0.4)
    assert plan_step(jobs, learned, SchedulerSettings(), 0.0, 1000).caps[0] > 25


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


def test_places_are_given_again_and_columns_grow() -> None:
    jobs = ReplyColumns(2)
    indices = [jobs.add(float(i)) for i in range(5)]
    assert indices == [0, 1, 2, 3, 4]
    jobs.context[1] = 77
    jobs.remove(3)
    jobs.remove(1)
    assert len(jobs) == 3
    assert jobs.add(9.0) == 1
    assert jobs.context[1] == 0
    assert jobs.order[1] == 6
    assert jobs.indices.tolist() == [0, 1, 2, 4]
    assert len(jobs.rows.phase) == 5
