"""The position of a reply in its schedule: the host twin of the kernel's cursor, walking the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from innervoice.schedule.compile import Program
from innervoice.schedule.cursor_state import CursorState
from innervoice.schedule.emission import Emission, Mask
from innervoice.schedule.guide import Walk
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, Edge, ProgramColumn, TokenKind

# Columns and kinds are looked up once: an enum's attribute costs as much as the rest of a step.
_FORCED = int(ProgramColumn.FORCED)
_OFFSET = int(ProgramColumn.OFFSET)
_LENGTH = int(ProgramColumn.LENGTH)
_DISCARD = int(ProgramColumn.DISCARD)
_SAMPLING = int(ProgramColumn.SAMPLING)
_ENTRY = int(ProgramColumn.ENTRY)
_HEAD = int(ProgramColumn.HEAD)
_LOW0 = int(ProgramColumn.LOW0)
_HIGH0 = int(ProgramColumn.HIGH0)
_LOW1 = int(ProgramColumn.LOW1)
_HIGH1 = int(ProgramColumn.HIGH1)
_LOW2 = int(ProgramColumn.LOW2)
_HIGH2 = int(ProgramColumn.HIGH2)
_EXTRA0 = int(ProgramColumn.EXTRA0)
_EXTRA1 = int(ProgramColumn.EXTRA1)
_ENDS = int(ProgramColumn.ENDS)
_NEXT = int(ProgramColumn.NEXT)
_BUDGET = int(ProgramColumn.BUDGET)
_CLOSE_ROW = int(ProgramColumn.CLOSE_ROW)
_MISS = int(ProgramColumn.MISS)
_FED = 2  # of FORCED
_CLOSES = int(Edge.CLOSES)
_LEAVES = int(Edge.LEAVES)
_CHOOSES = int(Edge.CHOOSES)
_REFLECTION = TokenKind.REFLECTION
_OPEN = TokenKind.OPEN
_CLOSE = TokenKind.CLOSE
_DONE = TokenKind.DONE
_END = TokenKind.END
_SPEECH = TokenKind.SPEECH
_TRANSCRIPT = TokenKind.TRANSCRIPT
_TOOL = TokenKind.TOOL
_TOOL_MARK = TokenKind.TOOL_MARK


class Cursor:
    """Walks a guided Program: while `forced` is an id, call `emit_forced`; where it `waits`, call `feed` or
    `close_feed`; else draw from `mask` and call `draw`.

    caps: run-time caps of the reflection segments in order; those beyond the list are uncapped. ignore_eos:
    no id that ends a reply is offered, but behind a tool call, which ends it. `granted` are the caps that took
    effect, in the same order: given as caps they make the same reply, whatever was lowered meanwhile.
    """

    def __init__(
        self,
        program: Program,
        caps: Sequence[int] = (),
        *,
        ignore_eos: bool = False,
        state: CursorState | None = None,
    ) -> None:
        state = state or CursorState(caps=tuple(caps))
        self.program = program
        self.caps = list(state.caps)
        self.granted = list(state.granted)
        self.text_done = state.text_done
        self.reflection_done = state.reflection_done
        self.is_done = state.is_done
        self.num_reflections = state.num_reflections
        self.segment = state.segment
        self.closed = frozenset(state.closed)  # names of the feeds that give no more
        # The program's own lists: a step looks at them several times.
        self._rows = program.rows
        self._kinds = program.kinds
        self._masks = program.masks
        self._edges = program.edges
        self._names = program.names
        self._labels = program.labels
        self._feeds = program.feeds
        self._closers = program.closers
        self._bound = program.bound
        self._walk: Walk | None = None  # of the open segment, where a pattern binds it
        self._ignore_eos = ignore_eos
        self._ends = frozenset(program.ends)
        self._tool_open = program.tool_open
        self._offers_done = state.offers_done
        self._fresh = state.fresh
        self._limit = state.limit
        self._row = state.row
        self._count = state.count
        self.waits = self._rows[self._row][_FORCED] == _FED  # the next id comes from outside
        self._num_skipped = 0  # reflections since the last token
        if self._row in self._bound:
            self._walk = Walk.along(self._bound[self._row], state.spelled)
        if not state.is_guided:  # it has not begun
            self._enter(program.start)

    @property
    def state(self) -> CursorState:
        """The position as a value; `make_cursor` takes it."""
        return CursorState(
            row=self._row,
            count=self._count,
            limit=self._limit,
            text_done=self.text_done,
            reflection_done=self.reflection_done,
            is_done=self.is_done,
            num_reflections=self.num_reflections,
            segment=self.segment,
            offers_done=self._offers_done,
            fresh=self._fresh,
            caps=tuple(self.caps),
            granted=tuple(self.granted),
            closed=tuple(sorted(self.closed)),
            spelled=() if self._walk is None else self._walk.ids,
        )

    @property
    def row(self) -> int:
        """The row of the program's table where it stands."""
        return self._row

    @property
    def count(self) -> int:
        """Tokens of that row that are emitted."""
        return self._count

    @property
    def limit(self) -> int:
        """The number of tokens that the open segment may have."""
        return self._limit

    @property
    def forced(self) -> int | None:
        """The id that must come next, None when the next one is drawn."""
        row = self._rows[self._row]
        return int(self.program.forced[row[_OFFSET] + self._count]) if row[_FORCED] == 1 else None

    @property
    def feed_name(self) -> str | None:
        """The name of the feed that it waits for; None: it waits for none, or for the scores of a choice."""
        return self._feeds.get(self._row)

    @property
    def mask(self) -> Mask:
        """The ids that may be drawn now. Valid while `forced` is None."""
        place = self._row << 3 | self.text_done << 2 | self._offers_done << 1 | self._ignore_eos
        found: Mask | None = self._masks[place]
        if found is not None:
            return found
        if self._walk is not None:  # one of many, which the segment keeps
            return self._walk.mask(self._limit)
        made = self._masks[place] = self._mask()
        return made

    @property
    def offered(self) -> tuple[tuple[int, int], ...]:
        """Ranges of ids whose logits a draw may look at, those of the draw that may follow
        from the same logits included.
        """
        if self.discards:
            return ((0, self.program.vocabulary.size),)
        return self.mask.spans

    @property
    def discards(self) -> bool:
        """Whether a draw may only say that the text is finished."""
        return bool(self._rows[self._row][_DISCARD])

    @property
    def sampling(self) -> Sampling | None:
        """The current segment's own sampling, None for the request's."""
        index = self._rows[self._row][_SAMPLING]
        return None if index < 0 else self.program.samplings[index]

    @property
    def kind(self) -> TokenKind:
        """The kind of the token that comes next."""
        return self._kinds[self._row]

    @property
    def is_reflecting(self) -> bool:
        """Whether a reflection segment is open: its open token comes next, or it draws.

        Forced text and a choice are no such segments.
        """
        kind = self._kinds[self._row]
        return kind is _OPEN or (kind is _REFLECTION and self._is_capped(self._rows[self._row]))

    @staticmethod
    def _is_capped(row: list[int]) -> bool:
        """Whether a row of hidden tokens is a reflection's, and not forced text or a choice."""
        return not row[_FORCED] and row[_MISS] != _CHOOSES

    def emit_forced(self) -> Emission:
        """Take the forced id."""
        token = self.forced
        assert token is not None, "emit_forced at a state that draws"
        row, kind = self._rows[self._row], self.kind
        self._offers_done = False
        labels = self._labels
        choice = labels.get((self._row, self._count)) if labels else None
        emission = self._emission(token, kind, forced=True, choice=choice)
        self._count += 1
        if self._count == row[_LENGTH]:
            self._enter(self._next(self._row))
            self._offers_done = kind is _CLOSE
        return emission

    def feed(self, token: int, choice: str | None = None) -> Emission:
        """Take an id from outside, where it waits for one. choice: the text of a choice that the id completes."""
        assert self.waits, f"state {self._row} waits for no id"
        row = self._rows[self._row]
        self._offers_done = False
        emission = self._emission(token, self.kind, forced=True, choice=choice, feed=self.feed_name)
        self._count += 1
        if choice is not None or self._count == row[_BUDGET]:
            self._enter(self._next(self._row))
        return emission

    def close_feed(self) -> None:
        """Go on without the feed that it waits for, which gives no more."""
        name = self.feed_name
        assert name is not None, f"state {self._row} waits for no feed"
        self.closed |= {name}
        self._enter(self._row)

    def draw(self, token: int) -> Emission | None:
        """Take a drawn id. None: it ended the text and is discarded; the next draw uses the same logits."""
        assert token in self.mask, f"{token} is not in the mask of state {self._row}"
        at, vocabulary = self._row, self.program.vocabulary
        row, kind, edges = self._rows[at], self._kinds[at], self._edges[at]
        is_discarded = row[_DISCARD] and row[_LOW1] <= token < row[_HIGH1]
        if self._closers and token in self._closers and not is_discarded:
            self.closed |= self._closers[token]
        if kind is _REFLECTION and row[_MISS] != _CHOOSES:
            closes = token == vocabulary.close if edges is None else edges.get(token) == _CLOSES
            if self._walk is not None:
                closes = self._walk.closes(token)
                self._walk = None if closes else self._walk.take(token)
            if closes or token == vocabulary.done:
                return self._end_reflection(token)
        if self._offers_done and token == vocabulary.done:
            self._offers_done, self.reflection_done = False, True
            skipped, self._num_skipped = self._num_skipped, 0
            return Emission(token, _DONE, self.segment, False, None, 0, skipped)
        if is_discarded:
            self.finish_text()
            return None
        self._offers_done = False
        if kind is _TOOL:
            if token == vocabulary.tool_close:
                return self._end_call(token)
        elif kind is not _REFLECTION and token == self._tool_open:
            return self._open_call(token)
        elif kind is not _REFLECTION and token in self._ends and self._may_end(kind):
            self.is_done, self._fresh = True, True
            return self._emission(token, _END, forced=False)
        if edges is not None:
            return self._take_edge(token, kind, edges.get(token, row[_MISS]))
        emission = self._emission(token, kind, forced=False)
        self._count += 1
        self._leave_if_spent()
        return emission

    def finish_text(self) -> None:
        """Take a draw that says so, where there may be one, and is discarded."""
        self.text_done = True
        self._enter(self._next(self._row))

    def lower_cap(self, cap: int) -> None:
        """Lower the cap of the reflection segment that is open; at or below its count it closes now.

        No effect elsewhere.
        """
        if self.is_reflecting:
            lowered = min(self._limit, max(cap, self.program.schedule.floor))
            if self._walk is not None:  # which goes on, by the shortest way, from where it is
                lowered = min(self._limit, max(lowered, self._count))
            self._limit = lowered
            if self.kind is _REFLECTION:
                self._leave_if_spent()

    def cap_next(self, cap: int) -> None:
        """Give the next reflection a cap, beside its own and whatever `caps` says of it."""
        number = self.num_reflections
        self.caps += [UNLIMITED] * (number + 1 - len(self.caps))
        self.caps[number] = cap

    def _mask(self) -> Mask:
        row, vocabulary = self._rows[self._row], self.program.vocabulary
        edges = self._edges[self._row] or {}
        if row[_MISS] == _CHOOSES:
            done = (vocabulary.done,) if self._offers_done and vocabulary.done is not None else ()
            return Mask((), (*edges, *done))
        ranges = [(row[_LOW0], row[_HIGH0]), (row[_LOW1], row[_HIGH1])]
        if row[_LOW2] < row[_HIGH2]:
            ranges += vocabulary.words
        extras = list(edges)
        if row[_ENDS] != 2 or self.text_done:
            extras += [row[_EXTRA0], row[_EXTRA1]]
            extras += self.program.ends if row[_ENDS] in (1, 2) and self._may_end(self.kind) else []
        if self._offers_done and vocabulary.done is not None:
            extras.append(vocabulary.done)
        return Mask(
            tuple(r for r in ranges if r[0] < r[1]), tuple(dict.fromkeys(t for t in extras if t >= 0))
        )

    def _take_edge(self, token: int, kind: TokenKind, target: int) -> Emission:
        """Emit an id that leads to another state of its segment, or out of it."""
        row = self._rows[self._row]
        chooses = row[_MISS] == _CHOOSES
        label = self._labels.get((self._row, token)) if chooses else None
        # Where a reflection looks for a tag, its states stand in a row behind that of MISS.
        matched = target - row[_MISS] if kind is _REFLECTION and not chooses else 0
        emission = self._emission(token, kind, forced=False, choice=label, matched=matched)
        if target == _LEAVES:
            self._enter(self._next(self._row))
            return emission
        self._row, self._count = target, 0 if chooses else self._count + 1
        self._leave_if_spent()
        return emission

    def _end_reflection(self, token: int) -> Emission:
        is_done = token == self.program.vocabulary.done
        # The ids of the tag that were drawn before its last one; an id of `stop` is a close by itself.
        row = self._rows[self._row]
        in_tag = not is_done and (self._row, token) not in self.program.stops
        begins_tag = in_tag and self._row in self._bound and self._rows[row[_CLOSE_ROW]][_LENGTH] > 1
        matched = self._row - row[_MISS] if in_tag else 0
        emission = self._emission(token, _DONE if is_done else _CLOSE, forced=False, matched=matched)
        self.reflection_done |= is_done
        close = row[_CLOSE_ROW]
        if begins_tag:  # its rest is forced
            self._row, self._count = close, 1
            return emission
        self._enter(self._next(close))
        self._offers_done = not is_done
        return emission

    def _may_end(self, kind: TokenKind) -> bool:
        """Whether an id may end the reply where tokens of this kind are drawn."""
        return kind is _TOOL_MARK or not self._ignore_eos

    def _open_call(self, token: int) -> Emission:
        self._fresh = True
        emission = self._emission(token, _TOOL_MARK, forced=False)
        self._enter(self.program.tool_row)
        return emission

    def _end_call(self, token: int) -> Emission:
        emission = self._emission(token, _TOOL_MARK, forced=False)
        self._enter(self._next(self._rows[self._row][_CLOSE_ROW]))
        return emission

    def _leave_if_spent(self) -> None:
        is_spent = self._count >= self._limit
        if self._walk is not None:
            if not self._walk.is_over(self._limit):
                return
            self.granted[-1] = self._limit if is_spent else UNLIMITED
        elif not is_spent or (self.kind is _SPEECH and self.text_done):  # which is endless
            return
        elif self.kind is _REFLECTION:
            self.granted[-1] = self._count
        self._enter(self._next(self._row))

    def _next(self, row: int) -> int:
        return self._rows[row][_NEXT + self.text_done + 2 * self.reflection_done]

    def _enter(self, index: int) -> None:
        """Stand at the first row from index on that is not capped to nothing."""
        row = self._rows[index]
        while (row[_ENTRY] and not self._open_reflection(index)) or (
            row[_FORCED] == _FED and self._is_closed(index, row)
        ):
            index = self._next(row[_CLOSE_ROW])
            row = self._rows[index]
        self._row, self._count = index, 0
        self.waits = row[_FORCED] == _FED
        self._walk = Walk(self._bound[index]) if index in self._bound else None
        self._fresh |= bool(row[_HEAD])
        if not row[_FORCED] and not row[_ENTRY]:
            body_of_open = self._kinds[index] is _REFLECTION and row[_MISS] != _CHOOSES
            if not body_of_open:
                self._limit = UNLIMITED if row[_BUDGET] < 0 else row[_BUDGET]
            self._leave_if_spent()

    def _is_closed(self, index: int, row: list[int]) -> bool:
        """Whether the feed of a row gives no more; the end of the text's feed finishes the text."""
        if self._feeds.get(index) not in self.closed:
            return False
        self.text_done |= bool(row[_DISCARD])
        return True

    def _open_reflection(self, index: int) -> bool:
        """Ask for the segment's cap; False when nothing is left of its budget."""
        row = self._rows[index]
        body = row if self._kinds[index] is _REFLECTION else self._rows[row[_NEXT]]
        schedule = self.program.schedule
        cap = self.caps[self.num_reflections] if self.num_reflections < len(self.caps) else UNLIMITED
        if isinstance(schedule.reflection, int):
            cap = min(cap, schedule.reflection)
        self.num_reflections += 1
        budget = UNLIMITED if body[_BUDGET] < 0 else body[_BUDGET]
        self._limit = min(budget, max(cap, schedule.floor))
        self.granted.append(UNLIMITED if self._limit > 0 else 0)
        self._num_skipped += self._limit <= 0
        return self._limit > 0

    def _emission(
        self,
        token: int,
        kind: TokenKind,
        *,
        forced: bool,
        choice: str | None = None,
        matched: int = 0,
        feed: str | None = None,
    ) -> Emission:
        self.segment += self._fresh
        self._fresh = False
        skipped, self._num_skipped = self._num_skipped, 0
        name = self._names[self._row]
        if kind is _SPEECH or kind is _TRANSCRIPT:
            return Emission(token, kind, self.segment, forced, None, 0, skipped, name, choice, matched, feed)
        if kind is _END or kind is _TOOL_MARK:
            return Emission(token, kind, self.segment, forced, None, 0, skipped)
        if kind is _REFLECTION and self._is_capped(self._rows[self._row]):
            cap, spent = self._limit, self._count + 1
            return Emission(token, kind, self.segment, forced, cap, spent, skipped, name, matched=matched)
        if kind is _OPEN:
            return Emission(token, kind, self.segment, forced, self._limit, 0, skipped, name)
        cap = self.granted[-1] if self.granted else UNLIMITED
        if kind is _CLOSE and forced and cap != UNLIMITED:  # it had all of its cap
            return Emission(token, kind, self.segment, forced, cap, cap, name=name)
        return Emission(token, kind, self.segment, forced, None, 0, skipped, name, choice, matched, feed)
