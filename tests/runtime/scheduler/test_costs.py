"""Learned step times, and the settings of the scheduler."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_tables import costs

from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.runtime.scheduler.costs import BucketTimes


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


@given(st.integers(1, 2000), st.floats(1e-4, 0.5), st.integers(3, 40), st.floats(3.0, 1000.0))
def test_one_stall_moves_an_estimate_little(size: int, usual_s: float, num: int, factor: float) -> None:
    times = BucketTimes()
    for _ in range(num):
        times.observe(size, usual_s)
    times.observe(size, factor * usual_s)
    assert usual_s < times.estimate(size) <= 1.6 * usual_s
    for _ in range(20):
        times.observe(size, usual_s)
    assert times.estimate(size) == pytest.approx(usual_s, rel=0.15)


@given(st.floats(1e-4, 0.5), st.floats(1.0, 20.0))
def test_a_machine_that_became_slower_is_believed_after_a_few(usual_s: float, factor: float) -> None:
    times = BucketTimes({1: usual_s})
    for _ in range(30):
        times.observe(1, usual_s)
    for _ in range(25):
        times.observe(1, factor * usual_s)
    assert times.estimate(1) >= 0.9 * factor * usual_s


def test_a_cold_start_is_forgotten() -> None:
    times = BucketTimes({1: 2.0})
    times.observe(1, 0.1)
    assert times.estimate(1) == pytest.approx(0.1)
    times.observe(1, 0.2)
    assert times.estimate(1) == pytest.approx(0.15 + 0.05, rel=0.3)


def test_own_codec_calls_do_not_stretch_a_step() -> None:
    learned = costs(step_s=0.01, row_s=0.0)
    for _ in range(100):
        for _ in range(26):
            learned.observe_step(1, 0, 0.01)
        learned.observe_voice(1, 0.78)
    assert learned.stretch == 4.0
    assert learned.between_steps_s(1) == pytest.approx(0.01)
    assert learned.between_steps_s(2) == pytest.approx(0.01 * (1 + 3 / 2))
    assert learned.between_steps_s(64) == pytest.approx(0.01 * (1 + 3 * 63 / 64))
    assert learned.between_steps_s(0) == 0.0


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
