"""Segments as rows of int32, one a state: the table that both cursors walk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from innervoice.schedule.guide import BoundSegment
from innervoice.schedule.program import Schedule, Segment
from innervoice.schedule.spelling import Spelling, tag_states
from innervoice.types import Sampling, Vocabulary
from innervoice_kernels.sampling.bits import pack_ids
from innervoice_kernels.sampling.cursor_columns import Edge, ProgramColumn, TokenKind

NONE_LEFT = -1
_NOW, _LATER, _SINGLES = 1, 2, 3  # values of ProgramColumn.ENDS
_FED = 2  # of ProgramColumn.FORCED
_NUM_RANGES = 3
_NUM_SINGLES = ProgramColumn.SET - ProgramColumn.SINGLE0


def finishes_text(schedule: Schedule) -> bool:
    """Whether the end of a feed is the end of the text: a cycle's speech then goes on to its end.

    So it is where the cycle has speech, and its transcript is fed and never drawn.
    """
    kinds = {s.kind for s in schedule.cycle}
    is_fed = any(s.kind == "fed" and s.voice_as == "transcript" for s in schedule.cycle)
    return is_fed and "speech" in kinds and "transcript" not in kinds


@dataclass(frozen=True)
class _Laid:
    """A segment, its first row, and the rows whose NEXT leads on."""

    segment: Segment
    first: int
    last: tuple[int, ...]


class SegmentLayout:
    """Lays segments out as rows: [open] body [close] for a reflection, open [begin] body close for a call, one
    row for a spoken segment, a row for each state of a tag of several ids, and a row for each fork of a choice.

    Calls share the two rows behind them, where the next call, or the end of the reply, is drawn: before what
    stands between calls and after it.
    """

    def __init__(self, schedule: Schedule, vocabulary: Vocabulary, spelling: Spelling) -> None:
        self.schedule, self.vocabulary = schedule, vocabulary
        self.spelling = spelling
        self.rows: list[list[int]] = []
        self.forced: list[int] = []
        self.samplings: list[Sampling] = []
        self.names: list[str | None] = []  # by row
        self.labels: dict[tuple[int, int], str] = {}
        self.stops: set[tuple[int, int]] = set()  # by row and id
        self.feeds: dict[int, str] = {}  # by row
        self.closers: dict[int, frozenset[str]] = {}  # by drawn id
        self.scores: dict[int, dict[tuple[int, ...], str]] = {}  # by row
        self.listening = range(0)
        self.bound: dict[int, BoundSegment] = {}  # by row
        self._offered: dict[int, set[int]] = {}  # by row: ids that it offers beside what its columns hold
        self.tool_row = self.start = NONE_LEFT
        self.sequence: list[_Laid] = []
        self._sampled: Segment | None = None
        self.targets: dict[tuple[int, int], int] = {}  # by segment and flags
        self.has_fed_text = finishes_text(schedule)
        self.has_text = schedule.has("transcript") or self.has_fed_text
        self.has_speech = schedule.has("speech")
        self.call = None if schedule.tool == "off" else vocabulary.tool_open
        self.behind_call = NONE_LEFT

        self._lay_out(schedule)
        self.sets = self._pack_offered()

    def _lay_out(self, schedule: Schedule) -> None:
        passes = [schedule.listen, schedule.prologue]
        if schedule.first:
            budgets = (
                own if new is None else new
                for own, new in zip((s.budget for s in schedule.cycle), schedule.first, strict=True)
            )
            passes.append(tuple(replace(s, budget=b) for s, b in zip(schedule.cycle, budgets, strict=True)))
        loop_at = sum(len(p) for p in passes)
        if schedule.makes_calls:
            self.tool_row = self._add_calls()
        for segment in [s for p in passes for s in p] + list(schedule.cycle):
            self._add(self._limited(segment))
        for index, laid in enumerate(self.sequence):
            if laid.segment.kind == "tool":  # the reply ends behind it
                continue
            for flags in range(4):
                target = self._target(self._after(index), loop_at, flags)
                for row in laid.last:
                    self.rows[row][ProgramColumn.NEXT + flags] = target
        self.start = self._target(0, loop_at, 0)
        if schedule.listen:
            self._leave_listening(schedule, loop_at)

    def _leave_listening(self, schedule: Schedule, loop_at: int) -> None:
        """Let the end of a feed that is listened to lead to the reply, by a row where no cursor stands."""
        num = len(schedule.listen)
        self.listening = range(self.sequence[0].first, self.sequence[num].first)
        row = self._row(TokenKind.REFLECTION)
        self.names.append(None)
        for flags in range(4):
            self.rows[row][ProgramColumn.NEXT + flags] = self._target(num, loop_at, flags)
        for laid in self.sequence[:num]:
            if laid.segment.kind == "fed":
                self.rows[laid.first][ProgramColumn.CLOSE_ROW] = row

    def _limited(self, segment: Segment) -> Segment:
        """The segment with the budget that the schedule's limits leave to its name."""
        limit = None if segment.name is None else self.schedule.limits.get(segment.name)
        if limit is None:
            return segment
        if segment.kind == "reflection":
            limit = max(limit, self.schedule.floor)
        return replace(segment, budget=limit if segment.budget is None else min(segment.budget, limit))

    def _after(self, index: int) -> int:
        """The place of the segment behind another: what is listened with begins again behind its last."""
        num = len(self.schedule.listen)
        return index + 1 if index >= num else (index + 1) % num

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
            segment, row = self.sequence[index].segment, self.sequence[index].first
            passed.append((index, flags))
            skipped = (segment.kind == "transcript" and flags & 1) or (
                segment.kind == "reflection" and (flags & 2 or self.schedule.reflection == "off")
            )
            if not skipped:
                found = row
                break
            index = self._after(index)
        self.targets |= dict.fromkeys(passed, found)
        return found

    def _add(self, segment: Segment) -> None:
        first = len(self.rows)
        last: Iterable[int]
        if segment.kind == "reflection":
            last = self._add_reflection(segment)
        elif segment.kind == "choice":
            last = self._add_scored(segment) if segment.pick == "scored" else self._add_choice(segment)
        elif segment.kind == "fed":
            last = (self._add_fed(segment),)
        elif segment.kind == "forced":
            last = (self._row(TokenKind[segment.voice_as.upper()], ids=segment.ids),)
        elif segment.kind == "tool":
            last = (self._add_tool(segment),)
        else:
            last = (self._add_spoken(segment),)
            self._connect(last[0], dict.fromkeys(segment.stop, int(Edge.LEAVES)), last[0])
        self.rows[first][ProgramColumn.HEAD] = 1
        self.names += [segment.name] * (len(self.rows) - len(self.names))
        self.sequence.append(_Laid(segment, first, tuple(last)))

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
        self.names += [None] * len(self.rows)
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

    def _add_reflection(self, segment: Segment) -> list[int]:
        """Add a reflection -> the rows that lead on: its closes, one for each part of the tag that may be drawn
        already.
        """
        vocabulary, entry = self.vocabulary, len(self.rows)
        opening, close = self.spelling.open(segment), self.spelling.close(segment)
        if opening:
            self._row(TokenKind.OPEN, ids=opening)
        body = len(self.rows)
        has_own = segment.close is not None or bool(segment.stop)
        if segment.is_bound:
            return self._add_bound(segment, entry, close)
        states = tag_states(close, segment.stop) if has_own else [{}]
        for edges in states:
            row = self._row(
                TokenKind.REFLECTION,
                segment,
                ranges=(vocabulary.text,),
                words=True,
                extras=(vocabulary.done,) if has_own else (vocabulary.close, vocabulary.done),
            )
            self._connect(row, {token: to if to < 0 else body + to for token, to in edges.items()}, body)
            self.stops |= {(row, token) for token in segment.stop}
        bodies = list(range(body, len(self.rows)))
        for row in range(entry, body):
            self._lead(row, body)
        last = [self._row(TokenKind.CLOSE, ids=close[length:]) for length in range(len(states)) if close]
        for row, after in zip(bodies, last, strict=False):
            self._lead(row, after)
        last = last or bodies
        self.rows[entry][ProgramColumn.ENTRY] = 1
        for row in range(entry, len(self.rows)):
            self.rows[row][ProgramColumn.CLOSE_ROW] = last[0]
        return last

    def _add_bound(self, segment: Segment, entry: int, close: tuple[int, ...]) -> list[int]:
        """Add the row of a reflection's text that a pattern binds, and its close, behind its open -> the last row."""
        body = self._row(TokenKind.REFLECTION, segment)
        ends = (*close[:1], *segment.stop, self.vocabulary.done)
        self.bound[body] = BoundSegment(
            self.spelling.guide(segment), segment.budget, frozenset(t for t in ends if t is not None)
        )
        self.stops |= {(body, token) for token in segment.stop}
        last = self._row(TokenKind.CLOSE, ids=close) if close else body
        for row in range(entry, last):
            self._lead(row, body if row < body else last)
        self.rows[entry][ProgramColumn.ENTRY] = 1
        for row in range(entry, len(self.rows)):
            self.rows[row][ProgramColumn.CLOSE_ROW] = last
        return [last]

    def _add_choice(self, segment: Segment) -> range:
        """Add the trie of a choice's texts -> its rows: one for each fork, and one for the rest of a text behind
        its last fork, which is forced.
        """
        first, kind = len(self.rows), TokenKind[segment.voice_as.upper()]
        forks = [(self._row(kind, segment), 0, sorted(self.spelling.paths(segment).items()))]
        while forks:
            row, depth, paths = forks.pop()
            edges = {}
            for token, same in groupby(paths, key=lambda path: path[0][depth]):
                branch = list(same)
                ids, label = branch[0]
                if len(branch) > 1:
                    edges[token] = self._row(kind, segment)
                    forks.append((edges[token], depth + 1, branch))
                elif len(ids) > depth + 1:
                    edges[token] = self._row(kind, ids=ids[depth + 1 :])
                    self.labels[edges[token], len(ids) - depth - 2] = label
                else:
                    edges[token] = int(Edge.LEAVES)
                    self.labels[row, token] = label
            self._connect(row, edges, int(Edge.CHOOSES))
        return range(first, len(self.rows))

    def _add_scored(self, segment: Segment) -> tuple[int]:
        """Add a choice whose text the scores decide, and which is fed then -> its row."""
        row = self._row(TokenKind[segment.voice_as.upper()])
        self.rows[row][ProgramColumn.FORCED] = _FED
        self.scores[row] = self.spelling.paths(segment)
        return (row,)

    def _add_fed(self, segment: Segment) -> int:
        """Add a row that takes ids from a feed -> it."""
        row = self._row(TokenKind[segment.voice_as.upper()], segment)
        assert segment.feed is not None, "checked before"
        values, self.feeds[row] = self.rows[row], segment.feed
        values[ProgramColumn.FORCED] = _FED
        values[ProgramColumn.DISCARD] = int(segment.voice_as == "transcript" and self.has_fed_text)
        for token in segment.stop:
            self.closers[token] = self.closers.get(token, frozenset()) | {segment.feed}
        return row

    def _connect(self, row: int, edges: Mapping[int, int], miss: int) -> None:
        """Give a row its edges, and offer the ids that its ranges leave out."""
        values = self.rows[row]
        values[ProgramColumn.MISS] = miss
        if not edges:
            return
        values[ProgramColumn.EDGES], values[ProgramColumn.NUM_EDGES] = len(self.forced), len(edges)
        edges = dict(sorted(edges.items()))
        self.forced += [*edges, *edges.values()]
        low = ProgramColumn.LOW0
        ranges = [(values[low + 2 * i], values[low + 2 * i + 1]) for i in range(_NUM_RANGES)]
        inside = ranges + (list(self.vocabulary.words) if ranges[-1][0] < ranges[-1][1] else [])
        outside = sorted(token for token in edges if not any(a <= token < b for a, b in inside))
        if not outside:  # a segment that a drawn id of its own ends keeps its ends of the reply
            return
        singles: list[int] = [ProgramColumn.EXTRA0, ProgramColumn.EXTRA1]
        singles += [ProgramColumn.SINGLE0 + i for i in range(_NUM_SINGLES)]
        free = [column for column in singles if values[column] < 0]
        values[ProgramColumn.ENDS] = _SINGLES
        for column, token in zip(free, outside, strict=False):
            values[column] = token
        rest = outside[len(free) :]
        empty = [i for i, (a, b) in enumerate(ranges) if a >= b]
        if len(rest) > len(empty):
            self._offered.setdefault(row, set()).update(rest)
            return
        for i, token in zip(empty, rest, strict=False):
            values[low + 2 * i], values[low + 2 * i + 1] = token, token + 1

    def _pack_offered(self) -> npt.NDArray[np.int32]:
        """The sets of ids that rows offer beside what their columns hold, equal ones once; rows get their places."""
        places: dict[frozenset[int], int] = {}
        packed = [np.zeros(0, np.int32)]
        for row, ids in self._offered.items():
            key = frozenset(ids)
            if key not in places:
                places[key] = sum(map(len, packed))
                packed.append(pack_ids(sorted(ids), self.vocabulary.size))
            self.rows[row][ProgramColumn.SET] = places[key]
        return np.concatenate(packed)

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
        row[ProgramColumn.CLOSE_ROW] = row[ProgramColumn.MISS] = len(self.rows)
        row[ProgramColumn.SET] = -1
        for i in range(_NUM_SINGLES):
            row[ProgramColumn.SINGLE0 + i] = -1
        for i, (low, high) in enumerate(ranges):
            row[ProgramColumn.LOW0 + 2 * i], row[ProgramColumn.HIGH0 + 2 * i] = low, high
        present = [token for token in extras if token is not None]
        for i in range(2):
            row[ProgramColumn.EXTRA0 + i] = present[i] if i < len(present) else -1
        if words and self.vocabulary.words:
            first, *others = self.vocabulary.words
            row[ProgramColumn.LOW2], row[ProgramColumn.HIGH2] = first
            if others:
                self._offered[len(self.rows)] = {token for low, high in others for token in range(low, high)}
        row[ProgramColumn.ENDS], row[ProgramColumn.DISCARD] = ends, int(discard)
        row[ProgramColumn.SAMPLING] = -1
        if segment is not None and segment.sampling is not None:
            if segment is not self._sampled:
                self.samplings.append(segment.sampling)
                self._sampled = segment
            row[ProgramColumn.SAMPLING] = len(self.samplings) - 1
        self.rows.append(row)
        return len(self.rows) - 1
