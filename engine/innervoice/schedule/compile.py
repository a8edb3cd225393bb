"""Schedule + vocabulary -> Program: one row of int32 a state, which the host cursor and
the sampling kernel both walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from innervoice.schedule.check_parts import check_bound_budgets, check_listening, check_names, check_parts
from innervoice.schedule.guide import BoundSegment
from innervoice.schedule.layout import NONE_LEFT, SegmentLayout, finishes_text
from innervoice.schedule.patterns import Patterns
from innervoice.schedule.program import Schedule, ScheduleError, Segment
from innervoice.schedule.spelling import Spelling
from innervoice.types import Sampling, Vocabulary
from innervoice_kernels.sampling.cursor_columns import ProgramColumn, TokenKind


@dataclass(frozen=True)
class Program:
    """A compiled schedule.

    table [S, ProgramColumn.WIDTH] int32, forced [N] int32, samplings: overrides that rows refer to. tool_row: where
    the text of a call is drawn that the model chose to make, -1: it may make none. names: of each row's segment.
    labels: the text of a choice that the id ends which is drawn in a row, or the n-th of its forced ids. stops: the
    rows of reflections with the ids that end them without a close. feeds: the name of the feed that a row takes ids
    from. closers: the names of the feeds that a drawn id closes. scores: the texts of a choice among which a row's
    scores decide, by their ids. listening: the rows of what runs until a feed is closed. bound: what binds the text
    of a row. sets [*] int32: packed ids that a row offers beside what its columns hold.
    """

    schedule: Schedule
    vocabulary: Vocabulary
    table: npt.NDArray[np.int32]
    forced: npt.NDArray[np.int32]
    samplings: tuple[Sampling, ...]
    start: int
    tool_row: int = -1
    names: tuple[str | None, ...] = ()
    labels: Mapping[tuple[int, int], str] = field(default_factory=dict)
    stops: frozenset[tuple[int, int]] = frozenset()
    feeds: Mapping[int, str] = field(default_factory=dict)
    closers: Mapping[int, frozenset[str]] = field(default_factory=dict)
    scores: Mapping[int, Mapping[tuple[int, ...], str]] = field(default_factory=dict)
    listening: range = range(0)
    bound: Mapping[int, BoundSegment] = field(default_factory=dict)
    sets: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def fits_device(self) -> bool:
        """Whether the device's cursor can walk it: no pattern binds a segment."""
        return not self.bound

    @property
    def tool_open(self) -> int | None:
        """The id that opens a tool call, None: the schedule has none."""
        return self.vocabulary.tool_open if self.tool_row >= 0 else None

    @property
    def takes_ids(self) -> bool:
        """Whether some row takes ids from outside: of a feed, or of a choice that is scored."""
        return bool(self.feeds or self.scores)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a reply: the end of turn first, then the checkpoint's other eos ids.

        A schedule that names its end of turn, or says that it has none, has no other.
        """
        return _ends(self.schedule, self.vocabulary)

    @cached_property
    def rows(self) -> list[list[int]]:
        """The table as numbers of Python, which one cursor step after another reads."""
        rows: list[list[int]] = self.table.tolist()
        return rows

    @cached_property
    def kinds(self) -> tuple[TokenKind, ...]:
        """The kind of the tokens of each row."""
        return tuple(TokenKind(row[ProgramColumn.KIND]) for row in self.rows)

    @cached_property
    def edges(self) -> list[dict[int, int] | None]:
        """The edges of each row: a drawn id and its row or Edge; None: the row has no edges."""
        found: list[dict[int, int] | None] = []
        for row in self.rows:
            start, num = row[ProgramColumn.EDGES], row[ProgramColumn.NUM_EDGES]
            ids, targets = self.forced[start : start + num], self.forced[start + num : start + 2 * num]
            found.append(dict(zip(ids.tolist(), targets.tolist(), strict=True)) if num else None)
        return found

    @cached_property
    def masks(self) -> list[Any]:
        """The cursors' cache of masks, eight places a row for the other conditions; None: unknown."""
        return [None] * (8 * len(self.table))


def _ends(schedule: Schedule, vocabulary: Vocabulary) -> tuple[int, ...]:
    if not schedule.guided:
        return vocabulary.eos
    own = () if vocabulary.end_of_turn is None else (vocabulary.end_of_turn,)
    others = () if "end_of_turn" in schedule.tokens else vocabulary.eos
    return tuple(dict.fromkeys((*own, *others)))


def compile_schedule(
    schedule: Schedule,
    vocabulary: Vocabulary,
    resolve: Callable[[str], int | None] | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
    patterns: Patterns | None = None,
) -> Program:
    """Check a schedule against a vocabulary and lay it out as rows. resolve: the id of a token's string, None
    where there is no such token. encode: the ids of a text. patterns: makes the guides of segments that patterns bind.

    Raises ScheduleError which names the field: for an empty cycle, unknown kinds, budgets below 1 and the like.
    """
    vocabulary = _with_tokens(schedule, vocabulary, resolve)
    if schedule.makes_calls:
        _check_calls(schedule, vocabulary)
    if not schedule.guided:
        return Program(
            schedule,
            vocabulary,
            np.zeros((0, ProgramColumn.WIDTH), np.int32),
            np.zeros(0, np.int32),
            (),
            NONE_LEFT,
        )
    spelling = Spelling(vocabulary, resolve, encode, patterns)
    _check(schedule, vocabulary, spelling)
    layout = SegmentLayout(schedule, vocabulary, spelling)
    return Program(
        schedule,
        vocabulary,
        np.array(layout.rows, dtype=np.int32),
        np.array(layout.forced, dtype=np.int32),
        tuple(layout.samplings),
        layout.start,
        layout.tool_row,
        tuple(layout.names),
        layout.labels,
        frozenset(layout.stops),
        layout.feeds,
        layout.closers,
        layout.scores,
        layout.listening,
        layout.bound,
        layout.sets,
    )


def _with_tokens(
    schedule: Schedule, vocabulary: Vocabulary, resolve: Callable[[str], int | None] | None
) -> Vocabulary:
    for name, token in schedule.tokens.items():
        value = resolve(token) if isinstance(token, str) and resolve else token
        if isinstance(token, str) and not isinstance(value, int):
            raise ScheduleError(f"schedule.tokens.{name}: the tokenizer has no token {token!r}")
        if isinstance(value, int) and not 0 <= value < vocabulary.size:
            raise ScheduleError(
                f"schedule.tokens.{name}: id {value} is outside the vocabulary of {vocabulary.size}"
            )
        vocabulary = replace(vocabulary, **cast(dict[str, Any], {name: value}))
    if schedule.guided and schedule.reflection != "off":
        for name in ("open", "close"):
            needs = any(s.kind == "reflection" and getattr(s, name) is None for s in schedule.segments)
            if needs and getattr(vocabulary, name) is None and name not in schedule.tokens:
                raise ScheduleError(
                    f"the schedule has reflection but the checkpoint names no {name!r} token: "
                    f"give it in schedule.json or schedule.tokens, or set tokens.{name} to null"
                )
    return vocabulary


def _check_calls(schedule: Schedule, vocabulary: Vocabulary) -> None:
    if not schedule.guided:
        raise ScheduleError("schedule.guided is false: a free reply calls no tool, use a guided schedule")
    for name in ("tool_open", "tool_close"):
        if getattr(vocabulary, name) is None:
            raise ScheduleError(
                f"the schedule has tool calls but the checkpoint names no {name!r} token: give it as tool in "
                "schedule.json, or in schedule.tokens"
            )
    if not _ends(schedule, vocabulary):
        raise ScheduleError(
            "the schedule has tool calls and no end of turn, which ends a reply behind a call"
        )


def _check(schedule: Schedule, vocabulary: Vocabulary, spelling: Spelling) -> None:
    if not schedule.cycle:
        raise ScheduleError("schedule.cycle is empty: it needs at least one segment")
    if schedule.first and len(schedule.first) != len(schedule.cycle):
        raise ScheduleError(
            f"schedule.first has {len(schedule.first)} budgets for a cycle of {len(schedule.cycle)} segments"
        )
    check_listening(schedule)
    parts = {"listen": schedule.listen, "prologue": schedule.prologue, "cycle": schedule.cycle}
    named = [(f"{name}[{i}]", s) for name, part in parts.items() for i, s in enumerate(part)]
    for where, segment in named:
        _check_segment(segment, f"schedule.{where}", schedule, vocabulary)
        check_parts(segment, f"schedule.{where}", vocabulary, spelling)
    check_names(schedule, [f"schedule.{where}" for where, _ in named])
    check_bound_budgets(schedule, spelling)
    for i, budget in enumerate(schedule.first):
        if budget is not None and schedule.cycle[i].kind in ("forced", "choice"):
            kind = schedule.cycle[i].kind
            raise ScheduleError(f"schedule.first[{i}] is a budget for a {kind} segment: it must be null")
    kinds = {segment.kind for segment in schedule.cycle} - {"fed"}
    if not kinds - {"reflection"} or (kinds <= {"reflection", "transcript"} and schedule.has("speech")):
        raise ScheduleError(
            "schedule.cycle: nothing can run in it once text and reflection are finished and feeds closed; add "
            + ("a transcript" if vocabulary.speech is None else "speech")
        )
    if vocabulary.speech is None and any(s.kind == "speech" or s.voice_as == "speech" for _, s in named):
        raise ScheduleError(
            "the schedule has speech but no speech codebook is known: load a speech tokenizer or a decoder"
        )


def _check_segment(segment: Segment, where: str, schedule: Schedule, vocabulary: Vocabulary) -> None:
    if segment.kind == "forced":
        _check_forced(segment, where, vocabulary)
        return
    _check_sampling(segment.sampling, f"{where}.sampling")
    if segment.kind == "tool":
        _check_range(segment.ids, where, (0, vocabulary.size))
    if segment.budget is not None:
        return
    has_text = any(s.kind == "transcript" for s in schedule.cycle) or finishes_text(schedule)
    if segment.kind == "speech" and has_text:
        raise ScheduleError(f"{where}.budget is null: in a cycle with transcript, speech needs a budget")
    ends = (vocabulary.close if segment.close is None else segment.close or None, vocabulary.done)
    if segment.kind == "reflection" and ends == (None, None) and not (segment.stop or segment.is_bound):
        raise ScheduleError(
            f"{where}.budget is null and there is neither a close nor a done token: nothing could end it"
        )


def _check_forced(segment: Segment, where: str, vocabulary: Vocabulary) -> None:
    if not segment.ids:
        raise ScheduleError(f"{where}.ids is empty: a forced segment needs ids")
    all_ids = (0, vocabulary.size)
    ids = (vocabulary.speech or (0, 0)) if segment.voice_as == "speech" else all_ids
    _check_range(segment.ids, where, ids, segment.voice_as)


def _check_range(
    tokens: tuple[int, ...], where: str, ids: tuple[int, int], name: str = "vocabulary's"
) -> None:
    for token in tokens:
        if not ids[0] <= token < ids[1]:
            raise ScheduleError(f"{where}.ids: {token} is outside the {name} ids [{ids[0]}, {ids[1]})")


def _check_sampling(sampling: Sampling | None, where: str) -> None:
    """A segment changes how its tokens are drawn; seed, limits and the rest belong to the request."""
    if sampling is None:
        return
    plain = replace(sampling, temperature=None, top_k=None, top_p=None)
    other = [f.name for f in fields(Sampling) if getattr(plain, f.name) != getattr(Sampling(), f.name)]
    if other:
        raise ScheduleError(
            f"{where}.{other[0]} belongs to the request: a segment has temperature, top_k and top_p of its own"
        )
