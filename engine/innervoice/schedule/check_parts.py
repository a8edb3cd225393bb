"""Refusals of a segment's name, tags, stop ids and choices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from innervoice.schedule.program import Schedule, ScheduleError, Segment
from innervoice.schedule.spelling import Spelling
from innervoice.types import Vocabulary

_LIMITED = ("reflection", "transcript", "speech")


def check_names(schedule: Schedule, wheres: Sequence[str]) -> None:
    """Refuse a name that two segments have, and a limit that fits no segment. wheres: of the segments in order."""
    names = [segment.name for segment in schedule.segments]
    for name, number in Counter(name for name in names if name is not None).items():
        if number > 1:
            first, second = [where for where, own in zip(wheres, names, strict=True) if own == name][:2]
            raise ScheduleError(
                f"{second}.name is {name!r}, as {first} is called: give each a name of its own"
            )
    for name, limit in schedule.limits.items():
        if name not in names:
            raise ScheduleError(f"schedule.limits.{name}: no segment has this name")
        kind = schedule.segments[names.index(name)].kind
        if kind not in _LIMITED:
            raise ScheduleError(f"schedule.limits.{name}: a {kind} segment has no budget to limit")
        if limit < 1 and kind != "reflection":
            raise ScheduleError(f"schedule.limits.{name} is {limit}: only a reflection can be left out")


def check_parts(segment: Segment, where: str, vocabulary: Vocabulary, spelling: Spelling) -> None:
    """Refuse parts that a segment's kind does not have, and ids that it cannot draw."""
    reflects, chooses = segment.kind == "reflection", segment.kind == "choice"
    for name in ("open", "close"):
        own = getattr(segment, name)
        if own is not None and not reflects:
            raise ScheduleError(
                f"{where}.{name} is given, and only a reflection has one: use a forced segment"
            )
        if isinstance(own, str) and not spelling.ids(own, f"{where}.{name}"):
            raise ScheduleError(f"{where}.{name} is {own!r}, which has no ids: give [] for no {name}")
        spelling.ids(own or (), f"{where}.{name}")
    if segment.stop and segment.kind not in _LIMITED:
        raise ScheduleError(
            f"{where}.stop is given, and a {segment.kind} segment ends by itself: leave it out"
        )
    own_ids = [vocabulary.text, *vocabulary.words]
    if segment.kind == "speech":
        own_ids = [vocabulary.speech or (0, 0)]
    for token in spelling.ids(segment.stop, f"{where}.stop"):
        if not reflects and not any(low <= token < high for low, high in own_ids):
            raise ScheduleError(f"{where}.stop: {token} is no {segment.kind} id, so it is never drawn there")
    if chooses != bool(segment.choices):
        state = "is empty" if chooses else "is given"
        remedy = "a choice needs texts" if chooses else "only a segment of kind choice has choices"
        raise ScheduleError(f"{where}.choices {state}: {remedy}")
    if chooses:
        _check_choice(segment, where, vocabulary, spelling)


def _check_choice(segment: Segment, where: str, vocabulary: Vocabulary, spelling: Spelling) -> None:
    if segment.budget is not None:
        raise ScheduleError(
            f"{where}.budget is {segment.budget}: a choice is as long as its text, leave it out"
        )
    if segment.voice_as == "speech":
        raise ScheduleError(f"{where}.as is 'speech': a choice is reflection or transcript")
    marks = {
        vocabulary.end_of_turn,
        vocabulary.done,
        vocabulary.tool_open,
        vocabulary.tool_close,
        *vocabulary.eos,
    }
    for ids, name in spelling.paths(segment, f"{where}.choices").items():
        for token in ids:
            if token in marks:
                raise ScheduleError(
                    f"{where}.choices: {name!r} has the id {token}, which ends a reply, reflecting or a call"
                )
