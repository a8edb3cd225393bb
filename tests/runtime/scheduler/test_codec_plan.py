"""The plan of a codec call: which replies have their next chunk decoded now."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_tables import POLICIES, add, costs, tables

from innervoice.runtime.scheduler import LearnedCosts, ReplyColumns, SchedulerSettings, plan_voice


@given(tables(), st.sampled_from(POLICIES), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_voice_makes_what_is_ready_and_says_when_to_ask_again(
    table: tuple[ReplyColumns, float, int], policy: str, idle: bool
) -> None:
    jobs, now, _ = table
    ready = {table_index for table_index in jobs.indices.tolist() if jobs.chunks_ready[table_index]}
    plan = plan_voice(jobs, costs(), SchedulerSettings(policy=policy), now, idle=idle)
    assert set(plan.indices.tolist()) <= ready
    assert len(set(plan.indices.tolist())) == len(plan.indices)
    if policy != "slack":
        assert set(plan.indices.tolist()) == ready
    if idle:
        assert bool(len(plan.indices)) == bool(ready)
    waits = [
        table_index for table_index in ready if jobs.is_live[table_index] and not jobs.has_sound[table_index]
    ]
    if set(waits) - set(plan.indices.tolist()):  # a divided call: those before them cannot wait either
        assert len(plan.indices)
        for table_index in set(plan.indices.tolist()) - set(waits):
            assert (
                jobs.sound_end_s[table_index] < now + 2
                or now - jobs.served_s[table_index] > SchedulerSettings().starve_s
            )
    if ready and not len(plan.indices):
        assert now < plan.wake_s


def test_chunks_wait_for_each_other_where_a_call_is_dear() -> None:
    jobs = ReplyColumns()
    for _ in range(3):
        add(jobs, chunks_ready=1, sound_end_s=4.0)
    dear = LearnedCosts({1: 0.004}, {n: 0.013 + 0.001 * n for n in (1, 2, 4, 8, 16, 32, 64)}, 20e-6)
    plan = plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=False)
    assert len(plan.indices) == 0
    assert 3.0 < plan.wake_s < 4.0
    jobs.sound_end_s[0] = 0.05
    assert plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=False).indices[0] == 0
    assert (
        len(plan_voice(jobs, costs(), SchedulerSettings(), 0.0, idle=False).indices) >= 1
    )  # cheap ones are made at once


def test_first_sounds_are_made_beside_those_alone_that_would_come_too_late() -> None:
    settings = SchedulerSettings()
    jobs = ReplyColumns()
    first = add(jobs, chunks_ready=1, has_sound=False)
    late = add(jobs, chunks_ready=1, sound_end_s=settings.margin_s)
    soon = add(jobs, chunks_ready=1, sound_end_s=settings.margin_s + 0.1)
    assert set(plan_voice(jobs, costs(), settings, 0.0, idle=False).indices.tolist()) == {first, late}
    jobs.chunks_ready[first] = 0
    assert set(plan_voice(jobs, costs(), settings, 0.0, idle=False).indices.tolist()) == {late, soon}


def test_chunks_in_need_come_in_several_calls_where_that_costs_nothing() -> None:
    jobs, settings = ReplyColumns(), SchedulerSettings()
    first = add(jobs, chunks_ready=1, has_sound=False)
    later, soon, soonest = (add(jobs, chunks_ready=1, sound_end_s=end_s) for end_s in (0.09, 0.05, 0.01))

    def made(chunk_s: float, call_s: float) -> list[int]:
        learned = LearnedCosts(
            {1: 0.004, 64: 0.004}, {n: call_s + chunk_s * n for n in (1, 2, 4, 8, 64)}, 20e-6
        )
        return plan_voice(jobs, learned, settings, 0.0, idle=False).indices.tolist()

    assert made(0.1, 0.0) == [soonest, soon]  # none of them is heard before the last is made
    assert made(0.01, 0.03) == [soonest, soon, later, first]
    jobs.chunks_ready[soonest] = jobs.chunks_ready[soon] = 0
    assert made(0.1, 0.0) == [later, first]


def test_an_idle_engine_makes_few_chunks_at_a_time() -> None:
    jobs = ReplyColumns()
    for _ in range(50):
        add(jobs, chunks_ready=1, sound_end_s=9.0)
    dear = LearnedCosts(dict.fromkeys((1, 64), 0.004), {n: 0.1 * n for n in (1, 64)}, 20e-6)
    assert len(plan_voice(jobs, dear, SchedulerSettings(), 0.0, idle=True).indices) == 2
    flat = LearnedCosts(dict.fromkeys((1, 64), 0.004), {n: 0.1 + 1e-4 * n for n in (1, 64)}, 20e-6)
    assert len(plan_voice(jobs, flat, SchedulerSettings(), 0.0, idle=True).indices) == 50
