"""Streams of the causal codecs: every layer's state in slots; any cutting gives the result of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from innervoice.codec.modes import own_modes
from innervoice.codec.residual_vq.causal import Level
from innervoice.codec.residual_vq.slot_stream import (
    CodecSession,
    DecodeStream,
    EncodeStream,
    StreamJob,
    StreamPiece,
    StreamPlace,
    samples_of,
)
from innervoice.codec.state import SlotTensors
from innervoice.codec.streaming import StreamState


class CausalHalf(Protocol):
    """A causal encoder or decoder. first_frames: whole frames that a session's first call must bring."""

    @property
    def first_frames(self) -> int:
        """Whole frames of the first call, unless the whole sound is shorter."""
        ...

    def new_rings(self, rows: int, max_frames: int) -> dict[str, Tensor]:
        """State of so many slots that calls write in place, such as keys and values."""
        ...


class CausalEncoder(CausalHalf, Protocol):
    """Samples to codes."""

    def __call__(
        self,
        x: Tensor,
        state: StreamState,
        rings: Mapping[str, Tensor],
        slots: Tensor,
        at: Level,
        num_codebooks: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> ids [B, K, T / frame], state'."""
        ...


class CausalDecoder(CausalHalf, Protocol):
    """Codes to samples."""

    def __call__(
        self, ids: Tensor, state: StreamState, rings: Mapping[str, Tensor], slots: Tensor, at: Level
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """ids [B, K, T] -> samples [B, T * frame, C], state'."""
        ...


@dataclass(kw_only=True)
class CausalEncodeStream(EncodeStream):
    """max_frames: frames that a row brings to a step at most."""

    half: CausalEncoder
    frame_len: int
    num_codebooks: int
    dtype: torch.dtype
    max_frames: int
    _slots: SlotTensors = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._slots = SlotTensors(
            self._after_one_frame(), self.num_slots, self.half.new_rings(self.num_slots, self.max_frames)
        )

    def _after_one_frame(self) -> dict[str, Tensor]:
        frames = self.half.first_frames
        x = torch.zeros(1, frames * self.frame_len, self.channels, dtype=self.dtype, device=self.device)
        at = _level([x.shape[1]], [0], x.shape[1], 1, self.device)
        with own_modes():
            return self.half(
                x, {}, self.half.new_rings(1, frames), torch.zeros_like(at.n), at, self.num_codebooks
            )[1]

    def _job(self, session: CodecSession) -> StreamJob | None:
        return _next_frames(session, self.frame_len, self.half.first_frames, self.max_frames, None)

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        steps = -(-max(job.take for job in jobs) // self.frame_len) * self.frame_len
        if steps == 0:
            return [
                StreamPiece(
                    job.session.key, None, self._codes(np.zeros((self.num_codebooks, 0), np.int64)), True
                )
                for job in jobs
            ]
        x = np.zeros((len(jobs), steps, self.channels), np.float32)
        for columns, job in zip(x, jobs, strict=True):
            columns[: job.take] = job.session.buffer.get(job.session.done, job.session.done + job.take)
        at = _level(
            [job.take for job in jobs], [job.session.done for job in jobs], steps, self.frame_len, self.device
        )
        places = [job.session.place for job in jobs]
        inputs = torch.from_numpy(x).to(self.device, self.dtype)
        state, index = self._slots.take(places), self._slots.index(places)
        ids, after = self.half(inputs, state, self._slots.kept, index, at, self.num_codebooks)
        self._slots.put(places, after)
        found = ids.cpu().numpy()
        frames = [-(-job.take // self.frame_len) for job in jobs]
        return [
            StreamPiece(job.session.key, None, self._codes(found[i, :, : frames[i]]), job.last)
            for i, job in enumerate(jobs)
        ]

    def _clear(self, place: int) -> None:
        self._slots.reset(place)

    def _copy(self, place: int, target: int) -> None:
        self._slots.copy(place, target)


@dataclass(kw_only=True)
class CausalDecodeStream(DecodeStream):
    """max_frames: frames that a row brings to a step at most."""

    half: CausalDecoder
    frame_len: int
    max_frames: int
    _slots: SlotTensors = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._slots = SlotTensors(
            self._after_one_frame(), self.num_slots, self.half.new_rings(self.num_slots, self.max_frames)
        )

    def _after_one_frame(self) -> dict[str, Tensor]:
        frames = self.half.first_frames
        ids = torch.zeros(1, 1, frames, dtype=torch.int64, device=self.device)
        at = _level([frames], [0], frames, 1, self.device)
        with own_modes():
            return self.half(ids, {}, self.half.new_rings(1, frames), torch.zeros_like(at.n), at)[1]

    def _job(self, session: CodecSession) -> StreamJob | None:
        return _next_frames(session, 1, self.half.first_frames, self.max_frames, session.buffer.data.shape[1])

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        steps = max(job.take for job in jobs)
        if steps == 0:
            return [StreamPiece(job.session.key, self._silence(), None, True) for job in jobs]
        ids = np.zeros((len(jobs), jobs[0].session.buffer.data.shape[1], steps), np.int64)
        for rows, job in zip(ids, jobs, strict=True):
            rows[:, : job.take] = job.session.buffer.get(job.session.done, job.session.done + job.take).T
        at = _level([job.take for job in jobs], [job.session.done for job in jobs], steps, 1, self.device)
        places = [job.session.place for job in jobs]
        state, index = self._slots.take(places), self._slots.index(places)
        samples, after = self.half(torch.from_numpy(ids).to(self.device), state, self._slots.kept, index, at)
        self._slots.put(places, after)
        return [
            StreamPiece(job.session.key, samples_of(columns[: job.take * self.frame_len]), None, job.last)
            for columns, job in zip(samples, jobs, strict=True)
        ]

    def _clear(self, place: int) -> None:
        self._slots.reset(place)

    def _copy(self, place: int, target: int) -> None:
        self._slots.copy(place, target)


def causal_encode_stream(half: CausalEncoder, frame_len: int, place: StreamPlace) -> CausalEncodeStream:
    """A stream of sessions of an encoder."""
    return CausalEncodeStream(
        half=half,
        frame_len=frame_len,
        num_codebooks=place.num_codebooks,
        dtype=place.dtype,
        max_frames=max(half.first_frames, place.max_frames),
        **place.common,
    )


def causal_decode_stream(half: CausalDecoder, frame_len: int, place: StreamPlace) -> CausalDecodeStream:
    """A stream of sessions of a decoder."""
    max_frames = max(half.first_frames, place.max_frames)
    return CausalDecodeStream(half=half, frame_len=frame_len, max_frames=max_frames, **place.common)


def _next_frames(
    session: CodecSession, unit: int, first_frames: int, max_frames: int, width: int | None
) -> StreamJob | None:
    """Whole frames, at the end of a finished session what is left of one as well."""
    left = session.buffer.end - session.done
    frames = min(left // unit, max_frames)
    if session.is_finished and left <= max_frames * unit:
        return StreamJob(session, left, True, (width, left == 0))
    if frames == 0 or (session.done == 0 and frames < first_frames):
        return None
    return StreamJob(session, frames * unit, False, (width, False))


def _level(n: list[int], start: list[int], steps: int, unit: int, device: torch.device | str) -> Level:
    counts = torch.tensor([n, start], device=device, dtype=torch.int64)
    return Level(counts[0], counts[1], all(one == steps for one in n), any(one % unit for one in n))
