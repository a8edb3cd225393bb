"""Streams of many sessions over one codec half: each session in a slot, a step serves all that have enough.

What a session is given waits in its buffer; when it is taken, and how much at once, changes nothing in the result. The
kinds of streams are in `causal_stream.py` and `window_stream.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from innervoice.codec.residual_vq.codes import Codes, Grid
from innervoice.codec.state import Slot
from innervoice.types import Samples

Device = torch.device | str


class Piece(NamedTuple):
    """What a step made of a session: samples [n], of a stereo codec [n, 2], or codes. last: nothing follows."""

    slot: Slot
    samples: Samples | None
    codes: Codes | None
    last: bool


@dataclass(frozen=True)
class Buffer:
    """Columns [n, ...] from absolute column `base` on."""

    base: int
    data: np.ndarray

    @property
    def end(self) -> int:
        """Columns that came in all."""
        return self.base + len(self.data)

    def append(self, columns: np.ndarray) -> Buffer:
        """More of them."""
        return (
            Buffer(self.base, np.concatenate([self.data, columns]))
            if len(self.data)
            else Buffer(self.base, columns)
        )

    def get(self, start: int, end: int) -> np.ndarray:
        """Absolute columns start to end."""
        return self.data[start - self.base : end - self.base]

    def drop(self, before: int) -> Buffer:
        """Forget the columns before that one."""
        return Buffer(before, self.data[before - self.base :]) if before > self.base else self


@dataclass(frozen=True)
class Row:
    """A session. done: columns taken; scales: of chunks to decode; over: its last piece was given."""

    slot: Slot
    buffer: Buffer
    done: int = 0
    scales: tuple[float, ...] = ()
    finished: bool = False
    over: bool = False


class Job(NamedTuple):
    """The next columns of a row; jobs of one key run together."""

    row: Row
    take: int
    last: bool
    key: Hashable


@dataclass(kw_only=True)
class SlotStream(ABC):
    """Sessions of one half. Raises ValueError for a slot that was released and for pushes after `finish`."""

    num_slots: int
    device: Device = "cpu"
    _rows: dict[int, Row] = field(default_factory=dict, init=False)
    _num_opened: int = field(default=0, init=False)

    def open(self) -> Slot:
        """Begin a session. Raises ValueError when all slots are taken."""
        place = next((place for place in range(self.num_slots) if place not in self._rows), None)
        if place is None:
            raise ValueError(
                f"all {self.num_slots} slots of the stream are taken: close one first, or make a stream of more"
            )
        return self._begin(place)

    def finish(self, slot: Slot) -> None:
        """No more will come: the next steps give the rest."""
        self._replace(self._unfinished(slot), finished=True)

    def reset(self, slot: Slot) -> Slot:
        """End a session and begin another in its place, whatever it was at."""
        self.close(slot)
        return self._begin(slot.place)

    def close(self, slot: Slot) -> None:
        """Release a slot."""
        self._row(slot)
        del self._rows[slot.place]

    def fork(self, slot: Slot) -> Slot:
        """A second session that goes on from where this one is. Raises ValueError when no slot is free."""
        row = self._row(slot)
        twin = self.open()
        self._rows[twin.place] = replace(row, slot=twin)
        self._copy(slot.place, twin.place)
        return twin

    def is_over(self, slot: Slot) -> bool:
        """Whether its last piece was given."""
        return self._row(slot).over

    def step(self) -> list[Piece]:
        """Run every session that has enough once; the order is that of the slots. An empty list: all wait for more."""
        groups: dict[Hashable, list[Job]] = {}
        for place in sorted(self._rows):
            row = self._rows[place]
            job = None if row.over else self._job(row)
            if job is not None:
                groups.setdefault(job.key, []).append(job)
        pieces = []
        for jobs in groups.values():
            with torch.inference_mode():
                made = self._run(jobs)
            for job, piece in zip(jobs, made, strict=True):
                self._taken(job)
                pieces.append(piece)
        return sorted(pieces, key=lambda piece: piece.slot.place)

    def drain(self) -> list[Piece]:
        """Steps until all sessions wait or are over."""
        pieces: list[Piece] = []
        while made := self.step():
            pieces += made
        return pieces

    def _begin(self, place: int) -> Slot:
        slot = Slot(place, self._num_opened)
        self._num_opened += 1
        self._rows[place] = Row(slot, Buffer(0, self._no_columns()))
        self._clear(place)
        return slot

    def _append(self, slot: Slot, columns: np.ndarray, scales: Sequence[float] = ()) -> None:
        row = self._unfinished(slot)
        self._replace(row, buffer=row.buffer.append(columns), scales=(*row.scales, *scales))

    def _replace(self, row: Row, **changes: Any) -> None:
        self._rows[row.slot.place] = replace(row, **changes)

    def _taken(self, job: Job) -> None:
        done = job.row.done + job.take
        kept = job.row.buffer.drop(max(0, min(self._first_needed(done), job.row.buffer.end)))
        self._replace(self._rows[job.row.slot.place], done=done, over=job.last, buffer=kept)

    def _row(self, slot: Slot) -> Row:
        row = self._rows.get(slot.place)
        if row is None or row.slot != slot:
            raise ValueError(f"slot {slot.place} was released: open a session first")
        return row

    def _unfinished(self, slot: Slot) -> Row:
        row = self._row(slot)
        if row.finished:
            raise ValueError(f"the session in slot {slot.place} is finished: open another")
        return row

    @abstractmethod
    def _no_columns(self) -> np.ndarray:
        """Zero columns of this half's input."""

    @abstractmethod
    def _job(self, row: Row) -> Job | None:
        """What to run of a row, None: it waits."""

    @abstractmethod
    def _run(self, jobs: list[Job]) -> list[Piece]:
        """Run jobs of one key."""

    def _first_needed(self, done: int) -> int:
        """The first column that will be looked at again when so many are done."""
        return done

    def _clear(self, place: int) -> None:  # noqa: B027 (a stream may have no other state)
        """Back to the state before the first column."""

    def _copy(self, place: int, target: int) -> None:  # noqa: B027
        """Make the target's state that of the place."""


@dataclass(kw_only=True)
class EncodeStream(SlotStream):
    """Samples in, codes out."""

    channels: int
    grid: Grid

    def push(self, slot: Slot, samples: Samples) -> None:
        """Samples [n], of a stereo codec [n, 2], float32 at the codec's rate, came. Raises ValueError for another shape."""
        columns = np.asarray(samples, np.float32)
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.ndim != 2 or columns.shape[1] != self.channels:
            raise ValueError(
                f"samples have shape {list(np.shape(samples))}, expected [n{', 2' if self.channels == 2 else ''}]"
            )
        self._append(slot, columns)

    def _no_columns(self) -> np.ndarray:
        return np.zeros((0, self.channels), np.float32)

    def _codes(self, ids: np.ndarray, scales: Samples | None = None) -> Codes:
        """ids [K, T] as codes."""
        return Codes(self.grid.kind, self.grid.unrows(ids), scales)


@dataclass(kw_only=True)
class DecodeStream(SlotStream):
    """Codes in, samples out."""

    channels: int
    grid: Grid

    def push(self, slot: Slot, codes: Codes) -> None:
        """Codes came: of whole chunks but for the last. Raises ValueError for codes of another codec, number or range."""
        rows = self.grid.rows(codes)
        row = self._unfinished(slot)
        if row.buffer.data.shape[1:] not in ((0,), rows.shape[:1]):
            had = row.buffer.data.shape[1]
            raise ValueError(
                f"the session began with {had} codebooks and is given {len(rows)}: keep to one number"
            )
        whole = self.grid.chunk_frames or 1
        if row.buffer.end % whole:
            raise ValueError(
                f"the session was given {row.buffer.end} frames, not whole chunks of {whole}: only the last may be shorter"
            )
        scales = () if codes.scales is None else tuple(float(scale) for scale in codes.scales)
        self._append(slot, rows.T, scales)

    def _no_columns(self) -> np.ndarray:
        return np.zeros((0, 0), np.int64)

    def _silence(self) -> Samples:
        """No samples."""
        return np.zeros(0 if self.channels == 1 else (0, self.channels), np.float32)


def samples_of(columns: torch.Tensor) -> Samples:
    """[n, C] on any device -> [n] or [n, C] float32."""
    made: Samples = columns.float().cpu().numpy()
    return made[:, 0] if made.shape[1] == 1 else made
