"""Schedules of published systems, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from innervoice.schedule.program import Schedule, Segment


def _interleaved(*, transcript_budget: int = 13, speech_budget: int = 26) -> Schedule:
    return Schedule(cycle=_spoken(transcript_budget, speech_budget))


def _think_first(*, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int | None = None) -> Schedule:
    return Schedule(prologue=(Segment("reflection", reflection_budget),), cycle=_spoken(transcript_budget, speech_budget))


def _stitch_r(*, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int = 100) -> Schedule:
    return Schedule(cycle=(Segment("reflection", reflection_budget), *_spoken(transcript_budget, speech_budget)))


def _stitch_s(*, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int = 100) -> Schedule:
    return Schedule(cycle=(*_spoken(transcript_budget, speech_budget), Segment("reflection", reflection_budget)))


def _reempathy(
    *, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int = 15, reflect_first: bool = False
) -> Schedule:
    make = _stitch_r if reflect_first else _stitch_s
    return make(transcript_budget=transcript_budget, speech_budget=speech_budget, reflection_budget=reflection_budget)


def _thinking_in_speaking(*, transcript_budget: int = 2, reflection_budget: int = 8) -> Schedule:
    return Schedule(cycle=(Segment("transcript", transcript_budget), Segment("reflection", reflection_budget)))


def _fixed_ratio(*, transcript_budget: int, speech_budget: int) -> Schedule:
    return Schedule(cycle=_spoken(transcript_budget, speech_budget))


def _spoken(transcript_budget: int, speech_budget: int) -> tuple[Segment, ...]:
    return Segment("transcript", transcript_budget), Segment("speech", speech_budget)


PRESETS: dict[str, Callable[..., Schedule]] = {
    "interleaved": _interleaved,  # GLM-4-Voice
    "think_first": _think_first,  # TBS, CoTBS
    "stitch_r": _stitch_r,  # STITCH, arXiv 2507.15375
    "stitch_s": _stitch_s,
    "reempathy": _reempathy,  # arXiv 2601.18281
    "thinking_in_speaking": _thinking_in_speaking,  # Mini-Omni-Reasoner, arXiv 2508.15827
    "fixed_ratio": _fixed_ratio,  # Step-Audio 2, OSUM, MiMo-Audio, Baichuan-Audio
}


def preset(name: str, **changes: Any) -> Schedule:
    """PRESETS[name], its budgets given as `*_budget`, any field of Schedule changed by its name. Raises ValueError."""
    if name not in PRESETS:
        raise ValueError(f"unknown schedule {name!r}: presets are {', '.join(PRESETS)}; or give a .json file")
    own = {f.name for f in fields(Schedule)}
    budgets = {key: value for key, value in changes.items() if key not in own}
    try:
        made = PRESETS[name](**budgets)
    except TypeError as error:
        reason = str(error).split("() ")[-1]
        raise ValueError(f"schedule preset {name!r}: {reason}; give them to Schedule.preset, or write a .json file") from None
    return made.with_changes(**{key: value for key, value in changes.items() if key in own})
