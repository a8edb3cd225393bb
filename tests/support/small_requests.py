"""Requests that several tests make."""

from __future__ import annotations

from typing import Any

from innervoice import Sampling, Schedule

SHORT_REFLECTION = Schedule.preset("stitch_s", transcript_budget=5, speech_budget=10, reflection_budget=8)


def greedy(num: int, **changes: Any) -> Sampling:
    """Greedy sampling of so many tokens."""
    return Sampling(temperature=0, max_new_tokens=num, **changes)
