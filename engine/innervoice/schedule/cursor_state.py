"""The position of a cursor as a value: what an export or an event log keeps of a
reply that goes on elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from innervoice.fields import MOST_INT32, Count, Limits, read_values, shown, types_of
from innervoice.schedule.compile import Program
from innervoice.schedule.guide import Walk
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, Edge, ProgramColumn, TokenKind

VERSION = 1
_PREFIX = "the cursor's "
_MOST = 2**30  # of any count that a reply goes on from: what it adds still fits the device's int32
_GROUPS = (TokenKind.REFLECTION, TokenKind.TRANSCRIPT, TokenKind.SPEECH, TokenKind.END)
# Keys of the JSON form. Exports and event logs hold these names, whatever the fields are called.
_GUIDED_KEYS = {
    "caps": "caps",
    "granted": "granted",
    "text_done": "text_done",
    "reflection_done": "reflection_done",
    "is_done": "is_done",
    "num_reflections": "num_reflections",
    "segment": "segment",
    "_offers_done": "offers_done",
    "_fresh": "fresh",
    "_limit": "limit",
    "_row": "row",
    "_count": "count",
}
_OPTIONAL = ("closed", "spelled")  # keys that stand there only where they say something
_FREE_KEYS = {
    "is_done": "is_done",
    "segment": "segment",
    "_in_reflection": "in_reflection",
    "_last": "last",
}


@dataclass(frozen=True)
class CursorState:
    """All that another cursor of the same program needs to go on.

    The defaults are those of a reply that has not begun.

    A guided cursor has a row, a free one has -1 and uses is_done, segment, in_reflection and last alone.
    Fields that the device keeps too are called as its columns are (`StateColumn`).
    """

    row: Annotated[int, Limits(-1, MOST_INT32)] = -1  # of the program's table
    count: Count = 0  # tokens of that row that are emitted
    limit: Count = UNLIMITED  # how many tokens the open segment may have
    text_done: bool = False
    reflection_done: bool = False
    is_done: bool = False
    num_reflections: Count = 0  # reflections that have begun
    segment: Annotated[int, Limits(-1, MOST_INT32)] = -1  # number of the last token's, -1 before the first
    offers_done: bool = False  # whether the next draw may be `done`
    fresh: bool = True  # whether the next token begins a segment
    in_reflection: bool = False
    last: TokenKind | None = None  # the group of kinds that the last token belongs to
    caps: tuple[Count, ...] = ()  # of the reflections in order
    granted: tuple[Count, ...] = ()  # caps that took effect, one for each reflection that has begun
    closed: tuple[str, ...] = ()  # names of the feeds that give no more
    spelled: tuple[Count, ...] = ()  # ids of the open segment's text, where a pattern binds it

    @property
    def is_guided(self) -> bool:
        """Whether the state is of a guided cursor."""
        return self.row >= 0

    def to_json(self) -> dict[str, Any]:
        """JSON values, which `from_json` reads."""
        values: dict[str, Any] = {"version": VERSION}
        for key, name in (_GUIDED_KEYS if self.is_guided else _FREE_KEYS).items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, TokenKind):
                value = value.label
            values[key] = value
        return values | {name: list(given) for name in _OPTIONAL if (given := getattr(self, name))}

    @classmethod
    def from_json(cls, values: Any) -> CursorState:
        """Read what `to_json` gave; a state without a version has version 1.

        Raises ValueError for any other keys or types.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the cursor's state is {values!r}: it must be an object")
        version = values.get("version", VERSION)
        if version != VERSION or type(version) is not int:
            raise ValueError(
                f"the cursor's state has version {version!r}: this engine reads version {VERSION}"
            )
        keys = _GUIDED_KEYS if "_row" in values else _FREE_KEYS
        wrong = (values.keys() - {"version", *_OPTIONAL}) ^ keys.keys()
        if wrong:
            state = "lacks" if wrong & keys.keys() else "has the unknown"
            raise ValueError(f"the cursor's state {state} {min(map(str, wrong))}: export the session again")
        found = {name: _read(name, values[key]) for key, name in keys.items()}
        found |= {name: _read(name, values.get(name, ())) for name in _OPTIONAL}
        if keys is _GUIDED_KEYS and found["row"] < 0:
            raise ValueError(f"{_PREFIX}row is {found['row']}: it must be 0 or more")
        return cls(**found)

    def check(self, program: Program) -> None:
        """Raise ValueError where a cursor of this program cannot stand: a row,
        count or flag out of its range.
        """
        read_values(self, _PREFIX)
        self._in_range("segment", -1, _MOST)
        if self.segment < 0 and not (self.fresh and self.last is None):
            raise ValueError("the cursor's state has tokens but no segment: segment must be 0 or more")
        if self.is_guided != program.schedule.guided:
            kind = "guided" if self.is_guided else "free"
            raise ValueError(
                f"the cursor's state is of a {kind} reply, and the schedule's guided is {not self.is_guided}"
            )
        if self.is_guided:
            self._check_guided(program)

    def _check_guided(self, program: Program) -> None:
        self._in_range("row", 0, len(program.rows) - 1)
        row, kind = program.rows[self.row], program.kinds[self.row]
        self._in_range("count", 0, _last_count(row))
        unknown = set(self.closed) - set(program.feeds.values())
        if unknown:
            raise ValueError(f"the cursor's closed names {min(unknown)!r}: no segment takes from such a feed")
        if len(self.granted) != self.num_reflections:
            raise ValueError(
                f"the cursor's state has {len(self.granted)} granted caps for {self.num_reflections} reflections: "
                "there must be one for each"
            )
        is_drawn = not row[ProgramColumn.FORCED] and row[ProgramColumn.MISS] != Edge.CHOOSES
        is_open = kind is TokenKind.OPEN or (kind is TokenKind.REFLECTION and is_drawn)
        if is_open and self.num_reflections == 0:
            raise ValueError("the cursor's state is in a reflection: num_reflections must be 1 or more")
        self._check_walk(program)
        self._check_spent(row, kind, is_bound=self.row in program.bound)
        if self.text_done and not program.table[:, ProgramColumn.DISCARD].any():
            raise ValueError(
                "the cursor's state has text_done, and nothing in the schedule finishes the text"
            )

    def _check_walk(self, program: Program) -> None:
        """Where a pattern binds the row, the ids of its text begin a text that fits, and no other row has any."""
        bound = program.bound.get(self.row)
        if len(self.spelled) != (self.count if bound is not None else 0):
            raise ValueError(
                f"{_PREFIX}spelled has {len(self.spelled)} ids, and its count is {self.count}: export the session again"
            )
        walk = None if bound is None else Walk.along(bound, self.spelled)
        if bound is not None and (walk is None or walk.is_over(self.limit)):
            raise ValueError(
                f"{_PREFIX}spelled holds ids that its segment's pattern does not begin with: continue it with the schedule "
                "that it was made with"
            )

    def _check_spent(self, row: Sequence[int], kind: TokenKind, *, is_bound: bool) -> None:
        """A row that draws has tokens left; only speech goes on without an end once the text is finished, and a text
        that a pattern binds until it fits.
        """
        if row[ProgramColumn.FORCED] or (kind is TokenKind.SPEECH and self.text_done):
            return
        budget = row[ProgramColumn.BUDGET]
        self._in_range("limit", 1, UNLIMITED if budget < 0 else budget)
        if not is_bound:
            self._in_range("count", 0, self.limit - 1)

    def _in_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ValueError(f"{_PREFIX}{name} is {value}: it must be {low} to {high}")


def _last_count(row: Sequence[int]) -> int:
    """The most tokens that may be emitted of a state where a cursor stands."""
    if row[ProgramColumn.FORCED] == 1:
        return row[ProgramColumn.LENGTH] - 1
    is_limited = row[ProgramColumn.FORCED] and row[ProgramColumn.BUDGET] > 0
    return row[ProgramColumn.BUDGET] - 1 if is_limited else _MOST


def _read(name: str, value: Any) -> Any:
    """A field from its JSON value. Raises ValueError."""
    if name != "last":
        return types_of(CursorState)[name].read(value, _PREFIX + name)
    found = [group for group in _GROUPS if group.label == value]
    if value is not None and not found:
        labels = ", ".join(group.label for group in _GROUPS)
        raise ValueError(f"{_PREFIX}last is {shown(value)}: use {labels} or null")
    return found[0] if found else None
