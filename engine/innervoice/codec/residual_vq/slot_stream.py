"""Streams of many sessions over one codec half: each session in a slot, a step serves all that have enough.

Pushed columns wait in a session's buffer; when they are taken, and how many at once, changes no result. The
kinds of streams are in `causal_stream.py`, `window_stream.py` and `chunk_stream.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from innervoice.codec.modes import own_modes
from innervoice.codec.residual_vq.codes import Codes, Grid
from innervoice.codec.slot_table import Slot, SlotSession, SlotTable
from innervoice.types import Samples


class StreamPiece(NamedTuple):
    """A session's result of a step: samples [n], in stereo [n, 2], or codes. last: nothing follows."""

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
        """Columns that were pushed in all."""
        return self.base + len(self.data)

    def append(self, columns: np.ndarray) -> Buffer:
        """The buffer with more columns."""
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


@dataclass(kw_only=True)
class CodecSession(SlotSession):
    """A session's record. buffer: pushed columns; done: columns taken; scales: of chunks to decode."""

    key: Slot
    buffer: Buffer
    done: int = 0
    scales: tuple[float, ...] = ()


class StreamJob(NamedTuple):
    """The next columns of a session; jobs of one group run together."""

    session: CodecSession
    take: int
    last: bool
    group: Hashable


@dataclass(frozen=True)
class StreamPlace:
    """The setting of a half's stream.

    grid: how codes look; num_codebooks: to encode; max_frames: a session's frames in a step.

    seed: of a decoder's noise.
    """

    num_slots: int
    device: torch.device
    dtype: torch.dtype
    channels: int
    grid: Grid
    max_frames: int
    num_codebooks: int = 0
    seed: int = 0

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that all streams take."""
        return {
            "num_slots": self.num_slots,
            "device": self.device,
            "channels": self.channels,
            "grid": self.grid,
        }


class EncoderHalf(Protocol):
    """A codec's encoder, as `Codec` uses it."""

    def stream(self, place: StreamPlace) -> EncodeStream:
        """Open a stream of sessions over this half."""
        ...


class DecoderHalf(Protocol):
    """A codec's decoder, as `Codec` uses it."""

    def stream(self, place: StreamPlace) -> DecodeStream:
        """Open a stream of sessions over this half."""
        ...


@dataclass(kw_only=True)
class SlotStream(ABC):
    """Sessions of one half. Raises ValueError for a slot that was released and for pushes after `finish`."""

    num_slots: int
    device: torch.device | str = "cpu"
    table: SlotTable[Slot, CodecSession] = field(init=False)

    def __post_init__(self) -> None:
        self.table = SlotTable("session", self.num_slots)

    def open(self) -> Slot:
        """Begin a session. Raises ValueError when all slots are taken."""
        return self._begin(self.table.new_slot())

    def finish(self, slot: Slot) -> None:
        """End a session's input: the next steps give the rest."""
        self.table.unfinished(slot).is_finished = True

    def reset(self, slot: Slot) -> Slot:
        """End a session and begin another in its place, whatever it was at."""
        self.table.close(slot)
        return self._begin(self.table.new_slot(slot.place))

    def close(self, slot: Slot) -> None:
        """Release a slot."""
        self.table.close(slot)

    def fork(self, slot: Slot) -> Slot:
        """Open a second session that goes on from this one. Raises ValueError when no slot is free."""
        self.table.find(slot)
        twin = self.table.new_slot()
        self._clear(twin.place)
        self.table.fork(slot, twin, twin.place)
        self._copy(slot.place, twin.place)
        return twin

    def is_over(self, slot: Slot) -> bool:
        """Whether a session's last piece was given."""
        return self.table.find(slot).is_done

    def step(self) -> list[StreamPiece]:
        """Run every session that has enough once; the order is that of the slots.

        An empty list: all wait for more.
        """
        groups: dict[Hashable, list[StreamJob]] = {}
        for session in sorted(self.table.sessions, key=lambda session: session.place):
            job = None if session.is_done else self._job(session)
            if job is not None:
                groups.setdefault(job.group, []).append(job)
        pieces = []
        for jobs in groups.values():
            with own_modes():
                made = self._run(jobs)
            for job, piece in zip(jobs, made, strict=True):
                self._taken(job)
                pieces.append(piece)
        return sorted(pieces, key=lambda piece: piece.slot.place)

    def drain(self) -> list[StreamPiece]:
        """Step until all sessions wait or are over."""
        pieces: list[StreamPiece] = []
        while made := self.step():
            pieces += made
        return pieces

    def _begin(self, slot: Slot) -> Slot:
        session = CodecSession(key=slot, place=slot.place, buffer=Buffer(0, self._no_columns()))
        self.table.add(slot, session)
        self._clear(slot.place)
        return slot

    def _append(self, slot: Slot, columns: np.ndarray, scales: Sequence[float] = ()) -> None:
        session = self.table.unfinished(slot)
        session.buffer = session.buffer.append(columns)
        session.scales = (*session.scales, *scales)

    def _taken(self, job: StreamJob) -> None:
        session = job.session
        session.done += job.take
        session.is_done = job.last
        needed = self._first_needed(session.done)
        session.buffer = session.buffer.drop(max(0, min(needed, session.buffer.end)))

    @abstractmethod
    def _no_columns(self) -> np.ndarray:
        """Zero columns of this half's input."""

    @abstractmethod
    def _job(self, session: CodecSession) -> StreamJob | None:
        """The next columns of a session that can be run, None: it waits."""

    @abstractmethod
    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        """Run jobs of one group."""

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
        """Append samples [n], of a stereo codec [n, 2], float32 at the codec's rate.

        Raises ValueError for another shape.
        """
        columns = np.asarray(samples, np.float32)
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.ndim != 2 or columns.shape[1] != self.channels:
            raise ValueError(
                f"samples have shape {list(np.shape(samples))}, "
                f"expected [n{', 2' if self.channels == 2 else ''}]"
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
        """Append codes, of whole chunks but for the last.

        Raises ValueError: another codec, number of codebooks or range.
        """
        rows = self.grid.rows(codes)
        session = self.table.unfinished(slot)
        if session.buffer.data.shape[1:] not in ((0,), rows.shape[:1]):
            had = session.buffer.data.shape[1]
            raise ValueError(
                f"the session began with {had} codebooks and is given {len(rows)}: keep to one number"
            )
        whole = self.grid.chunk_frames or 1
        if session.buffer.end % whole:
            raise ValueError(
                f"the session was given {session.buffer.end} frames, not whole chunks of {whole}: "
                "only the last may be shorter"
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
