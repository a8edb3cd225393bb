"""Refusals of listening without an end, and of a segment's name, tags, stop ids, choices and feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from innervoice.schedule.program import Schedule, ScheduleError, Segment
from innervoice.schedule.spelling import Spelling
from innervoice.types import Vocabulary

_SPOKEN = ("transcript", "speech")
_LIMITED = ("reflection", *_SPOKEN)


def check_names(schedule: Schedule, wheres: Sequence[str]) -> None:
    """Refuse a name that two segments have, and a limit that fits no segment. wheres: of the segments in order."""
    names = [segment.name for segment in schedule.segments]
    for where, segment in zip(wheres, schedule.segments, strict=True):
        for field, value in (("name", segment.name), ("feed", segment.feed)):
            if value is not None and not value.strip():
                raise ScheduleError(f"{where}.{field} is {value!r}: give it a name, or leave it out")
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


def check_bound_budgets(schedule: Schedule, spelling: Spelling) -> None:
    """Refuse budgets of the first pass, and limits, that are too short for the patterns of their segments."""
    given = [
        (f"first[{place}]", schedule.cycle[place], budget) for place, budget in enumerate(schedule.first)
    ]
    by_name = {segment.name: segment for segment in schedule.segments}
    given += [
        (f"limits.{name}", by_name[name], max(limit, schedule.floor))
        for name, limit in schedule.limits.items()
        if limit or schedule.floor
    ]
    for where, segment, budget in given:
        if budget is None or not segment.is_bound:
            continue
        shortest = spelling.guide(segment).shortest
        if budget < shortest:
            raise ScheduleError(
                f"schedule.{where} is {budget}: the shortest text that fits its pattern has {shortest} ids"
            )


def check_listening(schedule: Schedule) -> None:
    """Refuse listening that nothing ends, and in which something is said."""
    if schedule.listen and not any(segment.kind == "fed" for segment in schedule.listen):
        raise ScheduleError(
            "schedule.listen has no fed segment, so it would never end: add one, or use the prologue"
        )
    for place, segment in enumerate(schedule.listen):
        if segment.kind in ("transcript", "speech", "tool"):
            raise ScheduleError(
                f"schedule.listen[{place}].kind is {segment.kind!r}: nothing is said while it listens, move it to "
                "prologue or cycle"
            )


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
    if segment.stop and segment.kind not in (*_LIMITED, "fed"):
        raise ScheduleError(
            f"{where}.stop is given, and a {segment.kind} segment ends by itself: leave it out"
        )
    _check_fed(segment, where)
    for name in ("pattern", "schema"):
        if getattr(segment, name) is not None and not reflects:
            raise ScheduleError(
                f"{where}.{name} is given, and it binds a reflection alone: a {segment.kind} segment has no such text"
            )
    own_ids = [vocabulary.text, *vocabulary.words]
    if segment.kind == "speech":
        own_ids = [vocabulary.speech or (0, 0)]
    for token in spelling.ids(segment.stop, f"{where}.stop"):
        if segment.kind in _SPOKEN and not any(low <= token < high for low, high in own_ids):
            raise ScheduleError(f"{where}.stop: {token} is no {segment.kind} id, so it is never drawn there")
    if chooses != bool(segment.choices):
        state = "is empty" if chooses else "is given"
        remedy = "a choice needs texts" if chooses else "only a segment of kind choice has choices"
        raise ScheduleError(f"{where}.choices {state}: {remedy}")
    if chooses:
        _check_choice(segment, where, vocabulary, spelling)
    if segment.is_bound:
        _check_bound(segment, where, vocabulary, spelling)


def _check_fed(segment: Segment, where: str) -> None:
    is_fed = segment.kind == "fed"
    if is_fed and segment.feed is None:
        raise ScheduleError(f"{where}.feed is missing: name the feed that the request gives it")
    if not is_fed and segment.feed is not None:
        raise ScheduleError(f"{where}.feed is given: only a segment of kind fed takes from one")
    if segment.pick != "drawn" and segment.kind != "choice":
        raise ScheduleError(f"{where}.pick is given: only a segment of kind choice has one")


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


def _check_bound(segment: Segment, where: str, vocabulary: Vocabulary, spelling: Spelling) -> None:
    """Refuse a pattern that cannot be spelled, within the budget, or that never ends."""
    if segment.pattern is not None and segment.schema is not None:
        raise ScheduleError(f"{where} has a pattern and a schema: leave one out")
    guide = spelling.guide(segment, where)
    if segment.budget is not None and 0 < segment.budget < guide.shortest:
        raise ScheduleError(
            f"{where}.budget is {segment.budget}: the shortest text that fits has {guide.shortest} ids, give it as many"
        )
    has_end = bool(spelling.close(segment) or segment.stop or vocabulary.done is not None)
    if segment.budget is None and not has_end and not guide.ends_by_itself:
        raise ScheduleError(
            f"{where}.budget is null, there is neither a close nor a done token, and the text may go on for ever: "
            "nothing could end it"
        )
