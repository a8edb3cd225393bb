"""Schedule + vocabulary -> Program: one row of int32 a state, which the host cursor and
the sampling kernel both walk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from innervoice.schedule.program import Schedule, ScheduleError, Segment
from innervoice.types import Sampling, Vocabulary
from innervoice_kernels.sampling.cursor_columns import ProgramColumn, TokenKind


@dataclass(frozen=True)
class Program:
    """A compiled schedule.

    table [S, ProgramColumn.WIDTH] int32, forced [N] int32, samplings: overrides that rows refer to. tool_row:
    where the text of a call is drawn that the model chose to make, -1: it may make none.
    """

    schedule: Schedule
    vocabulary: Vocabulary
    table: npt.NDArray[np.int32]
    forced: npt.NDArray[np.int32]
    samplings: tuple[Sampling, ...]
    start: int
    tool_row: int = -1

    @property
    def tool_open(self) -> int | None:
        """The id that opens a tool call, None: the schedule has none."""
        return self.vocabulary.tool_open if self.tool_row >= 0 else None

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
    def masks(self) -> list[Any]:
        """The cursors' cache of masks, eight places a row for the other conditions; None: unknown."""
        return [None] * (8 * len(self.table))


def _ends(schedule: Schedule, vocabulary: Vocabulary) -> tuple[int, ...]:
    if not schedule.guided:
        return vocabulary.eos
    own = () if vocabulary.end_of_turn is None else (vocabulary.end_of_turn,)
    others = () if "end_of_turn" in schedule.tokens else vocabulary.eos
    return tuple(dict.fromkeys((*own, *others)))


NONE_LEFT = -1
_NOW, _LATER = 1, 2  # values of ProgramColumn.ENDS


def compile_schedule(
    schedule: Schedule, vocabulary: Vocabulary, resolve: Callable[[str], int | None] | None = None
) -> Program:
    """Check a schedule against a vocabulary and lay it out as rows. resolve turns token
    strings of `tokens` into ids.

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
    _check(schedule, vocabulary)
    return _Layout(schedule, vocabulary).program()


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
    if schedule.guided and schedule.has("reflection") and schedule.reflection != "off":
        for name in ("open", "close"):
            if getattr(vocabulary, name) is None and name not in schedule.tokens:
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


def _check(schedule: Schedule, vocabulary: Vocabulary) -> None:
    if not schedule.cycle:
        raise ScheduleError("schedule.cycle is empty: it needs at least one segment")
    if schedule.first and len(schedule.first) != len(schedule.cycle):
        raise ScheduleError(
            f"schedule.first has {len(schedule.first)} budgets for a cycle of {len(schedule.cycle)} segments"
        )
    named = [(f"prologue[{i}]", s) for i, s in enumerate(schedule.prologue)]
    named += [(f"cycle[{i}]", s) for i, s in enumerate(schedule.cycle)]
    for where, segment in named:
        _check_segment(segment, f"schedule.{where}", schedule, vocabulary)
    for i, budget in enumerate(schedule.first):
        if budget is not None and schedule.cycle[i].kind == "forced":
            raise ScheduleError(f"schedule.first[{i}] is a budget for a forced segment: it must be null")
    kinds = {segment.kind for segment in schedule.cycle}
    if not kinds - {"reflection"} or (kinds <= {"reflection", "transcript"} and schedule.has("speech")):
        raise ScheduleError(
            "schedule.cycle: nothing can run in it once text and reflection are finished; add speech"
        )
    if schedule.has("speech") and vocabulary.speech is None:
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
    if segment.kind == "speech" and any(s.kind == "transcript" for s in schedule.cycle):
        raise ScheduleError(f"{where}.budget is null: in a cycle with transcript, speech needs a budget")
    if segment.kind == "reflection" and vocabulary.close is None and vocabulary.done is None:
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


class _Layout:
    """Lays segments out as rows: [open] body [close] for a reflection, open [begin] body close for a call, one
    row for anything else.

    Calls share the two rows behind them, where the next call, or the end of the reply, is drawn: before what
    stands between calls and after it.
    """

    def __init__(self, schedule: Schedule, vocabulary: Vocabulary) -> None:
        self.schedule, self.vocabulary = schedule, vocabulary
        self.rows: list[list[int]] = []
        self.forced: list[int] = []
        self.samplings: list[Sampling] = []
        self.sequence: list[
            tuple[Segment, int, int]
        ] = []  # segment, its first row, the row whose NEXT leads on
        self.targets: dict[tuple[int, int], int] = {}  # by segment and flags
        self.has_text = schedule.has("transcript")
        self.has_speech = schedule.has("speech")
        self.call = None if schedule.tool == "off" else vocabulary.tool_open
        self.behind_call = NONE_LEFT

    def program(self) -> Program:
        schedule = self.schedule
        passes = [schedule.prologue]
        if schedule.first:
            budgets = (
                own if new is None else new
                for own, new in zip((s.budget for s in schedule.cycle), schedule.first, strict=True)
            )
            passes.append(tuple(replace(s, budget=b) for s, b in zip(schedule.cycle, budgets, strict=True)))
        loop_at = sum(len(p) for p in passes)
        tool_row = self._add_calls() if schedule.makes_calls else NONE_LEFT
        for segment in [s for p in passes for s in p] + list(schedule.cycle):
            self._add(segment)
        for index, (segment, _, last) in enumerate(self.sequence):
            if segment.kind == "tool":  # the reply ends behind it
                continue
            for flags in range(4):
                self.rows[last][ProgramColumn.NEXT + flags] = self._target(index + 1, loop_at, flags)
        table = np.array(self.rows, dtype=np.int32)
        forced = np.array(self.forced, dtype=np.int32)
        start = self._target(0, loop_at, 0)
        return Program(schedule, self.vocabulary, table, forced, tuple(self.samplings), start, tool_row)

    def _target(self, index: int, loop_at: int, flags: int) -> int:
        """First row of the next segment that runs, skips resolved; found once for all that are skipped."""
        passed = []
        found = NONE_LEFT
        for _ in range(2 * len(self.sequence) + 1):
            if index == len(self.sequence):
                index = loop_at
            if (index, flags) in self.targets:
                found = self.targets[index, flags]
                break
            segment, row, _ = self.sequence[index]
            passed.append((index, flags))
            skipped = (segment.kind == "transcript" and flags & 1) or (
                segment.kind == "reflection" and (flags & 2 or self.schedule.reflection == "off")
            )
            if not skipped:
                found = row
                break
            index += 1
        self.targets |= dict.fromkeys(passed, found)
        return found

    def _add(self, segment: Segment) -> None:
        first = len(self.rows)
        if segment.kind == "reflection":
            last = self._add_reflection(segment)
        elif segment.kind == "forced":
            last = self._row(TokenKind[segment.voice_as.upper()], ids=segment.ids)
        elif segment.kind == "tool":
            last = self._add_tool(segment)
        else:
            last = self._add_spoken(segment)
        self.rows[first][ProgramColumn.HEAD] = 1
        self.sequence.append((segment, first, last))

    def _add_spoken(self, segment: Segment) -> int:
        vocabulary, speech = self.vocabulary, self.vocabulary.speech or (0, 0)
        if segment.kind == "speech":
            return self._row(
                TokenKind.SPEECH,
                segment,
                ranges=(speech,),
                extras=(self.call,),
                ends=_LATER if self.has_text else _NOW,
            )
        if self.has_speech:
            return self._row(
                TokenKind.TRANSCRIPT,
                segment,
                ranges=(vocabulary.text, speech),
                extras=(self.call,),
                words=True,
                discard=True,
            )
        return self._row(
            TokenKind.TRANSCRIPT,
            segment,
            ranges=(vocabulary.text,),
            extras=(self.call,),
            words=True,
            ends=_NOW,
        )

    def _add_calls(self) -> int:
        """Add the rows of the calls that the model chooses to make -> the row of their text."""
        schedule, vocabulary = self.schedule, self.vocabulary
        again = vocabulary.tool_open if schedule.parallel_calls else None
        between = vocabulary.tool_between if schedule.parallel_calls else None
        budget = schedule.tool if isinstance(schedule.tool, int) else None
        body = self._add_call_text(Segment("tool", budget))
        behind = self._row(
            TokenKind.TOOL_MARK,
            Segment("tool", None if between is None else 1),
            extras=(again, between),
            ends=_NOW,
        )
        last = self._row(TokenKind.TOOL_MARK, extras=(again,), ends=_NOW)
        self._lead(body + 1, behind)
        self._lead(behind, last)
        self._lead(last, last)
        self.behind_call = behind
        return body

    def _add_call_text(self, segment: Segment) -> int:
        """Add a call's text and its close -> the row of the text."""
        vocabulary = self.vocabulary
        body = self._row(
            TokenKind.TOOL, segment, ranges=(vocabulary.text,), extras=(vocabulary.tool_close,), words=True
        )
        assert vocabulary.tool_open is not None and vocabulary.tool_close is not None, "checked before"
        close = self._row(TokenKind.TOOL_MARK, ids=(vocabulary.tool_close,))
        self._lead(body, close)
        self.rows[body][ProgramColumn.CLOSE_ROW] = close
        return body

    def _add_tool(self, segment: Segment) -> int:
        """Add a call that the model must make -> the row of its close."""
        opening = self.vocabulary.tool_open
        assert opening is not None, "checked before"
        rows = [self._row(TokenKind.TOOL_MARK, ids=(opening,))]
        if segment.ids:
            rows.append(self._row(TokenKind.TOOL, ids=segment.ids))
        rows.append(self._add_call_text(segment))
        for row, after in pairwise(rows):
            self._lead(row, after)
        close = rows[-1] + 1
        self._lead(close, self.behind_call)
        return close

    def _add_reflection(self, segment: Segment) -> int:
        vocabulary = self.vocabulary
        entry = len(self.rows)
        if vocabulary.open is not None:
            self._row(TokenKind.OPEN, ids=(vocabulary.open,))
        body = self._row(
            TokenKind.REFLECTION,
            segment,
            ranges=(vocabulary.text,),
            words=True,
            extras=(vocabulary.close, vocabulary.done),
        )
        for row in range(entry, body):
            self._lead(row, body)
        last = body
        if vocabulary.close is not None:
            last = self._row(TokenKind.CLOSE, ids=(vocabulary.close,))
            self._lead(body, last)
        self.rows[entry][ProgramColumn.ENTRY] = 1
        for row in range(entry, last + 1):
            self.rows[row][ProgramColumn.CLOSE_ROW] = last
        return last

    def _lead(self, row: int, to: int) -> None:
        self.rows[row][ProgramColumn.NEXT : ProgramColumn.NEXT + 4] = [to] * 4

    def _row(
        self,
        kind: TokenKind,
        segment: Segment | None = None,
        *,
        ids: tuple[int, ...] = (),
        ranges: tuple[tuple[int, int], ...] = (),
        extras: tuple[int | None, ...] = (),
        words: bool = False,
        ends: int = 0,
        discard: bool = False,
    ) -> int:
        row = [0] * ProgramColumn.WIDTH
        row[ProgramColumn.FORCED], row[ProgramColumn.KIND] = int(bool(ids)), int(kind)
        row[ProgramColumn.OFFSET], row[ProgramColumn.LENGTH] = len(self.forced), len(ids)
        self.forced += ids
        row[ProgramColumn.BUDGET] = -1 if segment is None or segment.budget is None else segment.budget
        row[ProgramColumn.CLOSE_ROW] = len(self.rows)
        for i, (low, high) in enumerate(ranges):
            row[ProgramColumn.LOW0 + 2 * i], row[ProgramColumn.HIGH0 + 2 * i] = low, high
        present = [token for token in extras if token is not None]
        for i in range(2):
            row[ProgramColumn.EXTRA0 + i] = present[i] if i < len(present) else -1
        if words and self.vocabulary.words:
            row[ProgramColumn.LOW2], row[ProgramColumn.HIGH2] = self.vocabulary.words[0]
        row[ProgramColumn.ENDS], row[ProgramColumn.DISCARD] = ends, int(discard)
        row[ProgramColumn.SAMPLING] = -1
        if segment is not None and segment.sampling is not None:
            row[ProgramColumn.SAMPLING] = len(self.samplings)
            self.samplings.append(segment.sampling)
        self.rows.append(row)
        return len(self.rows) - 1
