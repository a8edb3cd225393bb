"""The table of replies that plans read: one numpy column a fact, one index a reply, so
that a plan costs microseconds.
"""

from __future__ import annotations

import heapq
from copy import copy
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

TableIndices = NDArray[np.int64]
NO_INDICES: TableIndices = np.zeros(0, np.int64)


class Phase(IntEnum):
    """The stage of a reply, by its next need."""

    FREE = 0
    WAITING = 1  # a row
    PREFILL = 2  # its prompt fed, before it can draw
    DECODE = 3  # a token
    VOICING = 4  # nothing but sound: its tokens are complete


_COLUMNS: dict[str, tuple[type, float]] = {
    "phase": (np.int8, Phase.FREE),
    "order": (np.int64, 0),  # of arrival
    "priority": (np.int64, 0),  # higher first
    "submitted_s": (np.float64, 0.0),
    "served_s": (np.float64, 0.0),  # when a step last did something for it
    "prompt_left": (np.int64, 0),  # tokens to feed before the next draw
    "prompt_len": (np.int64, 0),  # tokens that had to be fed when it got its row
    "context": (np.int64, 0),  # tokens in the row, the prompt's that are not fed yet among them
    "num_drawn": (np.int64, 0),  # tokens of the reply so far
    "pages": (np.int64, 0),  # held
    "is_live": (np.bool_, False),  # its audio is played in real time
    "is_blocked": (np.bool_, False),  # its reader does not read
    "is_waiting": (np.bool_, False),  # for ids from outside: its prompt may be fed, nothing is drawn
    "is_listening": (np.bool_, False),  # prompt of a user who still speaks: fed ahead, nothing is drawn
    "has_sound": (np.bool_, False),
    "sound_end_s": (np.float64, 0.0),  # when the player runs dry
    "unvoiced_s": (np.float64, 0.0),  # sound of tokens that are decoded and not voiced yet
    "ready_s": (np.float64, 0.0),  # the part of it that lies in the chunks that are ready for the codec
    "spoken_left": (np.int64, 0),  # spoken tokens until the codec can make the next chunk
    "is_reflecting": (np.bool_, False),
    "hidden_count": (np.int64, 0),  # of the open reflection
    "hidden_cap": (np.int64, 0),  # of the open reflection, or granted to the next
    "hidden_most": (np.int64, 0),  # what its schedule allows
    "hidden_floor": (np.int64, 0),
    "hidden_total": (np.int64, 0),
    "sound_total_s": (np.float64, 0.0),
    "chunk_s": (np.float64, 0.0),  # sound of the next chunk
    "spoken_rate": (np.float64, 0.0),  # transcript and speech tokens per second of sound
    "chunks_ready": (np.int64, 0),  # for the codec
    "more_rows": (np.int64, 0),  # of a step, beside its first: one for each further context
}


class Columns:
    """One array a fact, all of one length."""

    phase: NDArray[np.int8]
    order: NDArray[np.int64]
    priority: NDArray[np.int64]
    submitted_s: NDArray[np.float64]
    served_s: NDArray[np.float64]
    prompt_left: NDArray[np.int64]
    prompt_len: NDArray[np.int64]
    context: NDArray[np.int64]
    num_drawn: NDArray[np.int64]
    pages: NDArray[np.int64]
    is_live: NDArray[np.bool_]
    is_blocked: NDArray[np.bool_]
    is_waiting: NDArray[np.bool_]
    is_listening: NDArray[np.bool_]
    has_sound: NDArray[np.bool_]
    sound_end_s: NDArray[np.float64]
    unvoiced_s: NDArray[np.float64]
    ready_s: NDArray[np.float64]
    spoken_left: NDArray[np.int64]
    is_reflecting: NDArray[np.bool_]
    hidden_count: NDArray[np.int64]
    hidden_cap: NDArray[np.int64]
    hidden_most: NDArray[np.int64]
    hidden_floor: NDArray[np.int64]
    hidden_total: NDArray[np.int64]
    sound_total_s: NDArray[np.float64]
    chunk_s: NDArray[np.float64]
    spoken_rate: NDArray[np.float64]
    chunks_ready: NDArray[np.int64]
    more_rows: NDArray[np.int64]

    def read_only(self) -> Self:
        """Return the same columns as views that refuse to be written."""
        seen = copy(self)
        for name in _COLUMNS:
            view = getattr(self, name).view()
            view.flags.writeable = False
            setattr(seen, name, view)
        return seen


def more_rows(rows: Columns, replies: NDArray[np.bool_] | TableIndices) -> int:
    """Rows of a step that these replies take beside one each: a reply's contexts are rows of their own."""
    if not np.count_nonzero(rows.more_rows):
        return 0
    return int(rows.more_rows[replies].sum())


def first_rows(rows: Columns, replies: TableIndices, most: int) -> TableIndices:
    """The first of these replies that together take at most so many rows of a step; the first in any case."""
    if not np.count_nonzero(rows.more_rows):
        return replies[:most]
    taken = np.cumsum(1 + rows.more_rows[replies])
    return replies[: max(int(np.searchsorted(taken, most, side="right")), 1)]


class ReplyColumns(Columns):
    """A table of replies.

    Columns are public arrays, indexed by `table_index`; the runtime writes what changed.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._num_added = 0
        # A heap: the lowest index is given first, so that those in use lie together.
        self._free: list[int] = []
        self._used = 0  # no index from here on is in use
        for name, (dtype, empty) in _COLUMNS.items():
            setattr(self, name, np.full(capacity, empty, dtype))
        self._rows: tuple[int, Columns] = (-1, self)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.phase[: self._used]))

    @property
    def indices(self) -> TableIndices:
        """Places in use, in no particular order of arrival."""
        return np.flatnonzero(self.phase[: self._used])

    @property
    def rows(self) -> Columns:
        """The columns up to the last index in use; those that are free among them have the phase FREE.

        Views, not copies.
        """
        if self._rows[0] != self._used:
            seen = Columns()
            seen.__dict__.update((name, getattr(self, name)[: self._used]) for name in _COLUMNS)
            self._rows = (self._used, seen)
        return self._rows[1]

    def read_only(self) -> Self:
        """Return the same table, of this moment, as views that refuse to be written."""
        seen = super().read_only()
        seen._rows = (-1, seen)
        return seen

    def add(self, now: float, *, priority: int = 0) -> int:
        """Add a reply that waits; return its table index."""
        priority = int(np.int64(priority))  # what the column does not hold fails before an index is taken
        table_index = heapq.heappop(self._free) if self._free else self._grow()
        for name, (_, empty) in _COLUMNS.items():
            getattr(self, name)[table_index] = empty
        self._num_added += 1
        self.order[table_index], self.priority[table_index] = self._num_added, priority
        self.submitted_s[table_index] = self.served_s[table_index] = now
        self.phase[table_index] = Phase.WAITING
        return table_index

    def remove(self, table_index: int) -> None:
        """Forget a reply. Its index may be given to another."""
        assert self.phase[table_index] != Phase.FREE, "the index is free"
        self.phase[table_index] = Phase.FREE
        heapq.heappush(self._free, table_index)

    def _grow(self) -> int:
        table_index, self._used = self._used, self._used + 1
        if table_index == len(self.phase):
            for name, (dtype, empty) in _COLUMNS.items():
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.full(len(column), empty, dtype)]))
        return table_index
