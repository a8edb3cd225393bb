"""Schedules: segments in an order, as the caller writes them (Python or JSON)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Annotated, Any, Literal

from innervoice.checkpoint.files import read_json, refuse_unknown
from innervoice.fields import (
    MOST_INT32,
    Choices,
    Count,
    Encodable,
    FieldType,
    Length,
    Limits,
    Positive,
    checked,
    read_fields,
    read_values,
    shown,
)
from innervoice.files import replacing
from innervoice.types import Sampling

KINDS = ("reflection", "transcript", "speech", "forced", "tool", "choice", "fed")
MOST_SEGMENTS = 2**16
_Spelled = Annotated[str, Encodable()] | tuple[Count, ...]
TOKEN_NAMES = ("open", "close", "done", "end_of_turn", "tool_open", "tool_close")


class ScheduleError(ValueError):
    """A schedule that cannot run; the message names the field."""


@dataclass(frozen=True)
class Segment:
    """One line of a schedule: at most `budget` tokens of a kind (None: no cap), or exactly
    `ids` when the kind is forced.

    A segment of kind tool is a call that the model must make; the reply ends behind it. ids: what the call's
    text begins with.
    voice_as: what forced ids count as (reflection, transcript or speech). sampling: overrides
    the request's for this segment.
    name: what events, logs, traces and `Schedule.limits` call it. open, close: what a reflection stands between, as
    text or ids, instead of the checkpoint's; none if empty. stop: ids of which any, once drawn, ends the segment.
    A segment of kind choice draws one of its `choices`, texts or ids, and counts as voice_as says. pick "scored":
    the text with the largest total log-probability, instead of a draw at each fork.
    A segment of kind fed takes up to `budget` ids (None: all) from the request's feed of the name `feed`, waits
    while that is empty, ends once it is closed, and counts as voice_as says. Its `stop` ids close the feed once
    the reply draws one.
    """

    kind: Annotated[str, Choices(KINDS)]
    budget: Annotated[int | None, Limits(1, MOST_INT32)] = None
    ids: tuple[Count, ...] = ()
    sampling: Sampling | None = None
    voice_as: Annotated[str, Choices(KINDS[:3])] = "reflection"
    name: Annotated[str | None, Encodable(), Length(256)] = None
    open: _Spelled | None = None
    close: _Spelled | None = None
    stop: Annotated[tuple[Count, ...], Length(64)] = ()
    choices: Annotated[tuple[_Spelled, ...], Length(4096)] = ()
    feed: Annotated[str | None, Encodable(), Length(256)] = None
    pick: Literal["drawn", "scored"] = "drawn"
    pattern: Annotated[str | None, Encodable(), Length(2**16)] = None
    schema: Mapping[str, Any] | str | None = None

    @classmethod
    def of(cls, data: Any, where: str) -> Segment:
        """From JSON: ["speech", 26] or {"kind": "forced", "as": "reflection", "ids": [...]}."""
        if isinstance(data, Segment):
            return data
        if isinstance(data, list | tuple) and len(data) == 2 and isinstance(data[0], str):
            return cls(data[0], data[1])
        if not isinstance(data, Mapping) or "kind" not in data:
            raise ScheduleError(f"{where} is {data!r}: write [kind, budget] or an object with a kind")
        refuse_unknown(data, ("kind", "budget", "as", "ids", "sampling", *_PARTS), where)
        return cls(
            kind=data["kind"],
            budget=data.get("budget"),
            ids=data.get("ids", ()),
            sampling=_read_sampling(data.get("sampling"), f"{where}.sampling"),
            voice_as=data.get("as", "reflection"),
            **{name: data[name] for name in _PARTS if name in data},
        )

    @property
    def is_bound(self) -> bool:
        """Whether a pattern or a schema binds its text."""
        return self.pattern is not None or self.schema is not None

    def checked(self, where: str) -> Segment:
        """The same with checked and converted fields. Raises ValueError, which names the field."""
        return Segment(**read_values(self, f"{where}.", {"voice_as": "as"}))

    def to_json(self) -> Any:
        """The JSON value that `of` reads."""
        more: dict[str, Any] = {}
        if self.ids:
            more["ids"] = list(self.ids)
        for name in _PARTS:
            value = getattr(self, name)
            if value is not None and value != _NO_PARTS[name]:
                more[name] = _plain(value)
        if self.sampling is not None and (sampling := _changed(self.sampling)):
            more["sampling"] = sampling
        if self.kind == "fed":
            return {"kind": self.kind, "budget": self.budget, "as": self.voice_as} | more
        if self.kind in ("forced", "choice"):
            return {"kind": self.kind, "as": self.voice_as} | more
        return {"kind": self.kind, "budget": self.budget} | more if more else [self.kind, self.budget]


_PARTS = ("name", "open", "close", "stop", "choices", "feed", "pick", "pattern", "schema")
_NO_PARTS = {f.name: f.default for f in fields(Segment) if f.name in _PARTS}


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _read_sampling(given: Any, where: str) -> Sampling | None:
    """A segment's sampling from its JSON value."""
    if given is None or isinstance(given, Sampling):
        return given
    if not isinstance(given, Mapping):
        raise ScheduleError(f"{where} is {shown(given)}: write an object")
    refuse_unknown(given, (f.name for f in fields(Sampling)), where)
    try:
        return Sampling(**given)
    except ValueError as error:
        raise ScheduleError(str(error).replace("Sampling.", f"{where}.", 1)) from None


def _changed(sampling: Sampling) -> dict[str, Any]:
    default = Sampling()
    return {
        f.name: v for f in fields(Sampling) if (v := getattr(sampling, f.name)) != getattr(default, f.name)
    }


def _read_segments(given: Any, name: str) -> tuple[Segment, ...]:
    """Segments from objects or from their JSON form. Raises ValueError."""
    items = FieldType.of(tuple[Any, ...]).read(given, name)
    wheres = [f"{name}[{place}]" for place in range(len(items))]
    return tuple(Segment.of(one, where).checked(where) for one, where in zip(items, wheres, strict=True))


@dataclass(frozen=True)
class Schedule:
    """listen until its feed is closed, prologue once, then cycle again and again.

    first: budgets of the cycle's first pass (None: unchanged). guided False: nothing is masked or forced.
    floor: the least a reflection may be capped to at run time. reflection: "on", "off", or a cap for each.
    reflection_weight w: ln w is added to the score of reflection keys for spoken queries. tokens: token
    strings or ids by name (open, close, done, end_of_turn, tool_open, tool_close); None says that this schedule
    does without. tool: "on": the model may call a tool wherever it may write text of the transcript or end the
    reply; a number: with so many tokens a call at most. parallel_calls: whether a call may follow a call.
    limits: by a segment's name the most tokens that it may have; 0 leaves a reflection out.
    Segments may be given in their JSON form. Raises ScheduleError, which names the field, for a value of
    another type or out of range.
    """

    cycle: Annotated[tuple[Segment, ...], Length(MOST_SEGMENTS)]
    prologue: Annotated[tuple[Segment, ...], Length(MOST_SEGMENTS)] = ()
    first: tuple[Annotated[int | None, Limits(1, MOST_INT32)], ...] = ()
    guided: bool = True
    floor: Count = 0
    reflection: Annotated[Literal["on", "off"] | int, Limits(0, MOST_INT32)] = "on"
    reflection_weight: Positive = 1.0
    tokens: Mapping[str, Annotated[str | int | None, Limits(0, MOST_INT32)]] = field(default_factory=dict)
    tool: Annotated[Literal["on", "off"] | int, Limits(1, MOST_INT32)] = "off"
    parallel_calls: bool = True
    limits: Mapping[str, Count] = field(default_factory=dict)
    listen: Annotated[tuple[Segment, ...], Length(MOST_SEGMENTS)] = ()

    def __post_init__(self) -> None:
        try:
            for name in ("cycle", "prologue", "listen"):
                object.__setattr__(self, name, _read_segments(getattr(self, name), f"schedule.{name}"))
            read_fields(self, "schedule.", {"reflection": "reflect"})
        except ValueError as error:
            raise ScheduleError(str(error)) from None
        refuse_unknown(self.tokens, TOKEN_NAMES, "schedule.tokens")

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All of listen, prologue and cycle in one."""
        return self.listen + self.prologue + self.cycle

    def has(self, kind: str) -> bool:
        """Whether a segment of this kind stands in listen, prologue or cycle."""
        return any(segment.kind == kind for segment in self.segments)

    @property
    def feeds(self) -> tuple[str, ...]:
        """The names of the feeds that its segments take ids from."""
        return tuple(dict.fromkeys(s.feed for s in self.segments if s.kind == "fed" and s.feed is not None))

    @property
    def makes_calls(self) -> bool:
        """Whether a reply may call a tool."""
        return self.tool != "off" or self.has("tool")

    @property
    def preset_name(self) -> str | None:
        """The name of the published schedule that this one equals, None: it is another."""
        for name in PRESETS:
            with contextlib.suppress(ValueError):  # one that has no budgets of its own
                if preset(name) == self:
                    return name
        return None

    @classmethod
    @checked
    def preset(cls, name: str, **changes: Any) -> Schedule:
        """A published schedule by name (`innervoice.schedule.PRESETS`), with `*_budget` and fields changed.

        Raises ValueError.
        """
        return preset(name, **changes)

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any], source: str = "schedule") -> Schedule:
        """From the JSON form. An unknown key or an ill-typed value is a ValueError that names it."""
        refuse_unknown(data, _JSON_KEYS, source)
        if not isinstance(data.get("cycle"), list | tuple):
            raise ScheduleError(
                f"{source}: cycle is {data.get('cycle')!r}, expected a list of [kind, budget]"
            )
        try:
            return cls(**{_JSON_KEYS[key]: value for key, value in data.items()})
        except ScheduleError as error:
            raise ScheduleError(f"{source}: {error}" if source != "schedule" else str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, defaults left out."""
        default = Schedule(cycle=())
        data: dict[str, Any] = {
            "prologue": [s.to_json() for s in self.prologue],
            "cycle": [s.to_json() for s in self.cycle],
        }
        if self.listen:
            data["listen"] = [s.to_json() for s in self.listen]
        for key, name in _JSON_KEYS.items():
            value = getattr(self, name)
            if key not in data and value != getattr(default, name):
                data[key] = (
                    list(value)
                    if isinstance(value, tuple)
                    else dict(value)
                    if isinstance(value, Mapping)
                    else value
                )
        return data

    @classmethod
    @checked
    def load(cls, path: str | PathLike[str]) -> Schedule:
        """From a JSON file. Raises FileNotFoundError, ValueError."""
        return cls.from_dict(read_json(path), str(path))

    @checked
    def save(self, path: str | PathLike[str]) -> None:
        """Write the JSON file that `load` reads, whole or not at all. Raises OSError."""
        import json

        with replacing(path) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def with_changes(self, **changes: Any) -> Schedule:
        """A copy with some fields changed."""
        return replace(self, **changes)


_JSON_KEYS = {
    "prologue": "prologue",
    "cycle": "cycle",
    "first": "first",
    "guided": "guided",
    "floor": "floor",
    "reflect": "reflection",
    "reflection_weight": "reflection_weight",
    "tokens": "tokens",
    "tool": "tool",
    "parallel_calls": "parallel_calls",
    "limits": "limits",
    "listen": "listen",
}


def _interleaved(*, transcript_budget: int = 13, speech_budget: int = 26) -> Schedule:
    return Schedule(cycle=_spoken(transcript_budget, speech_budget))


def _think_first(
    *, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int | None = None
) -> Schedule:
    return Schedule(
        prologue=(Segment("reflection", reflection_budget),), cycle=_spoken(transcript_budget, speech_budget)
    )


def _stitch_r(
    *, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int = 100
) -> Schedule:
    return Schedule(
        cycle=(Segment("reflection", reflection_budget), *_spoken(transcript_budget, speech_budget))
    )


def _stitch_s(
    *, transcript_budget: int = 13, speech_budget: int = 26, reflection_budget: int = 100
) -> Schedule:
    return Schedule(
        cycle=(*_spoken(transcript_budget, speech_budget), Segment("reflection", reflection_budget))
    )


def _reempathy(
    *,
    transcript_budget: int = 13,
    speech_budget: int = 26,
    reflection_budget: int = 15,
    reflect_first: bool = False,
) -> Schedule:
    make = _stitch_r if reflect_first else _stitch_s
    return make(
        transcript_budget=transcript_budget, speech_budget=speech_budget, reflection_budget=reflection_budget
    )


def _thinking_in_speaking(*, transcript_budget: int = 2, reflection_budget: int = 8) -> Schedule:
    return Schedule(
        cycle=(Segment("transcript", transcript_budget), Segment("reflection", reflection_budget))
    )


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


@checked
def preset(name: str, **changes: Any) -> Schedule:
    """PRESETS[name], its budgets given as `*_budget`, any field of Schedule changed by its name.

    Raises ValueError.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown schedule {name!r}: presets are {', '.join(PRESETS)}; or give a .json file")
    own = {f.name for f in fields(Schedule)}
    budgets = {key: value for key, value in changes.items() if key not in own}
    try:
        made = PRESETS[name](**budgets)
    except TypeError as error:
        reason = str(error).split("() ")[-1]
        raise ValueError(
            f"schedule preset {name!r}: {reason}; give them to Schedule.preset, or write a .json file"
        ) from None
    return made.with_changes(**{key: value for key, value in changes.items() if key in own})
