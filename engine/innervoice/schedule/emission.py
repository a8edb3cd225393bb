"""The mask that a cursor offers for a draw, and the emission that it makes of a token."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from innervoice_kernels.sampling.bits import Bits, has_id
from innervoice_kernels.sampling.cursor_columns import TokenKind


@dataclass(frozen=True)
class Mask:
    """Ids that may be drawn: half-open ranges and single ids; bits: which of these, packed, None: all."""

    ranges: tuple[tuple[int, int], ...]
    extras: tuple[int, ...] = ()
    bits: Bits | None = field(default=None, compare=False)

    def __contains__(self, token: int) -> bool:
        if self.bits is not None:
            return has_id(self.bits, token)
        return token in self.extras or any(low <= token < high for low, high in self.ranges)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """All of them as ranges, in no order."""
        return (*self.ranges, *((token, token + 1) for token in self.extras))


@dataclass(slots=True, unsafe_hash=True)
class Emission:
    """One emitted token: its id, kind, the reply's segment it belongs to (from 0), and
    whether the schedule forced it.

    cap, spent: of a token of a reflection that can be capped, the most hidden tokens that the segment may have
    and those that it has had with this one. num_skipped: reflections since the token before that a cap of 0
    left out. name: of its segment. choice: the text of the choice that the token completes. matched: how many of
    the last tokens, with this one, may be the beginning of the segment's close. feed: the name of the feed that
    gave it. All of these say how the token came about, not which it is, and are not compared. One is made for every
    token; it is not frozen, as that would make its construction several times as dear, and nobody changes it.
    """

    token: int
    kind: TokenKind
    segment: int
    forced: bool
    cap: int | None = field(default=None, compare=False)
    spent: int = field(default=0, compare=False)
    num_skipped: int = field(default=0, compare=False)
    name: str | None = field(default=None, compare=False)
    choice: str | None = field(default=None, compare=False)
    matched: int = field(default=0, compare=False)
    feed: str | None = field(default=None, compare=False)
