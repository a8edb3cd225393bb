"""The rest of a reply, as its schedule has it: the figures that a scheduler needs before it grants a cap."""

from __future__ import annotations

from dataclasses import dataclass

from innervoice.schedule.cursor import Cursor
from innervoice.schedule.free_cursor import FreeCursor
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, ProgramColumn, TokenKind

_MOST_SEGMENTS = 256
_FORCED = int(ProgramColumn.FORCED)
_LENGTH = int(ProgramColumn.LENGTH)
_BUDGET = int(ProgramColumn.BUDGET)
_NEXT = int(ProgramColumn.NEXT)
_ENTRY = int(ProgramColumn.ENTRY)
_REFLECTION = TokenKind.REFLECTION
_TRANSCRIPT = TokenKind.TRANSCRIPT
_SPEECH = TokenKind.SPEECH


@dataclass(frozen=True)
class OpenReflection:
    """The reflection that is open, or the next one.

    count: its hidden tokens so far; most: what its schedule allows it.
    """

    is_open: bool
    count: int
    most: int


@dataclass(frozen=True)
class ComingFeed:
    """The feed that the listening goes on with, and the ids that it takes at once; None: all."""

    name: str
    budget: int | None


def next_feed(cursor: Cursor) -> ComingFeed | None:
    """The feed that is taken from next while the schedule listens; None: it does not listen."""
    program, row = cursor.program, cursor.row
    for _ in range(_MOST_SEGMENTS):
        if row not in program.listening:
            return None
        row = program.rows[row][_NEXT + cursor.text_done + 2 * cursor.reflection_done]
        if row in program.feeds:
            budget = program.rows[row][_BUDGET]
            return ComingFeed(program.feeds[row], None if budget < 0 else budget)
    return None


def spoken_until(cursor: Cursor | FreeCursor, num_codes: int) -> int:
    """Transcript and speech tokens to draw until so many more speech tokens are there,
    segments as long as their budgets.

    Forced ids and reflection are not counted: the first cost no draw, the second is what the answer
    is for. A reply that does not say (a free one, or one whose schedule has no more speech) is
    taken to speak all the time.
    """
    if cursor.row < 0:
        return num_codes
    rows, kinds = cursor.program.rows, cursor.program.kinds
    row = cursor.row
    done = cursor.count
    total = 0
    left = num_codes
    for _ in range(_MOST_SEGMENTS):
        if row < 0 or left <= 0:
            return total
        values, kind = rows[row], kinds[row]
        if kind.is_call:  # a reply says nothing behind a call
            return num_codes
        flags = cursor.text_done + 2 * cursor.reflection_done
        if values[_FORCED]:
            num = values[_LENGTH] or max(values[_BUDGET], done)  # of a feed: as many as it may give
            left -= num - done if kind is _SPEECH else 0
        elif kind is _TRANSCRIPT or kind is _SPEECH:
            open_ended = values[_BUDGET] < 0 or (kind is _SPEECH and cursor.text_done)
            num = (left if kind is _SPEECH else 0) if open_ended else max(values[_BUDGET] - done, 0)
            num = min(num, left) if kind is _SPEECH else num
            total, left = total + num, left - (num if kind is _SPEECH else 0)
        row, done = values[_NEXT + flags], 0
    return total + max(left, 0)


def reflection_ahead(cursor: Cursor | FreeCursor) -> OpenReflection | None:
    """The open reflection or the next one; None when there is none to come, or the engine has no say in it."""
    if cursor.row < 0:
        return None
    if cursor.kind is _REFLECTION and cursor.is_reflecting:
        return OpenReflection(True, cursor.count, _most(cursor, cursor.row))
    rows, row = cursor.program.rows, cursor.row
    for _ in range(_MOST_SEGMENTS):
        row = rows[row][_NEXT + cursor.text_done + 2 * cursor.reflection_done]
        if row < 0 or cursor.program.kinds[row].is_call:  # nothing is thought behind a call
            return None
        if rows[row][_ENTRY]:
            body = row if cursor.program.kinds[row] is _REFLECTION else rows[row][_NEXT]
            return OpenReflection(False, 0, _most(cursor, body))
        if row == cursor.row:
            return None
    return None


def _most(cursor: Cursor | FreeCursor, body: int) -> int:
    budget = cursor.program.rows[body][_BUDGET]
    own = cursor.program.schedule.reflection
    most = UNLIMITED if budget < 0 else budget
    return min(most, own) if isinstance(own, int) else most
