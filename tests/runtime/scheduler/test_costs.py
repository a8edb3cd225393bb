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
