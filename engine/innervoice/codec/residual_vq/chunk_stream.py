"""Streams of chunks that overlap and are faded into each other, each coded by itself: EnCodec at 48 kHz.

A chunk is encoded or decoded whole; the look-ahead is one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from innervoice.codec.residual_vq.slot_stream import (
    CodecSession,
    DecodeStream,
    EncodeStream,
    StreamJob,
    StreamPiece,
)
from innervoice.types import Samples


class ChunkEncoder(Protocol):
    """Samples to codes."""

    def __call__(self, x: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        """x [B, T, C], T at most a chunk -> ids [B, K, ceil(T / frame)], scales [B]."""
        ...


class ChunkDecoder(Protocol):
    """Codes to samples."""

    def __call__(self, ids: Tensor, scales: Tensor) -> Tensor:
        """ids [B, K, T], scales [B] -> samples [B, T * frame, C]."""
        ...


def fade_weights(chunk_len: int) -> Samples:
    """A chunk's triangular weights, [chunk_len]; where chunks lie over each other their sum is divided by."""
    time = torch.linspace(0, 1, chunk_len + 2, dtype=torch.float32, device="cpu")[1:-1]
    weights: Samples = (0.5 - (time - 0.5).abs()).numpy()
    return weights


@dataclass(kw_only=True)
class ChunkEncodeStream(EncodeStream):
    """EnCodec 48 kHz: a chunk whenever it is whole, one every chunk_stride samples."""

    half: ChunkEncoder
    num_codebooks: int
    dtype: torch.dtype
    chunk_len: int
    chunk_stride: int

    def _job(self, session: CodecSession) -> StreamJob | None:
        length, stride = self.chunk_len, self.chunk_stride
        left = session.buffer.end - session.done
        if session.is_finished:
            return StreamJob(session, min(left, stride), left <= stride, min(left, length))
        return StreamJob(session, stride, False, length) if left >= length and left > stride else None

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        length = jobs[0].group
        assert isinstance(length, int)
        if length == 0:
            nothing = self._codes(np.zeros((self.num_codebooks, 0), np.int64), np.zeros(0, np.float32))
            return [StreamPiece(job.session.key, None, nothing, True) for job in jobs]
        x = np.stack([job.session.buffer.get(job.session.done, job.session.done + length) for job in jobs])
        ids, scales = self.half(torch.from_numpy(x).to(self.device, self.dtype), self.num_codebooks)
        found, loudness = ids.cpu().numpy(), scales.float().cpu().numpy()
        return [
            StreamPiece(job.session.key, None, self._codes(found[i], loudness[i : i + 1]), job.last)
            for i, job in enumerate(jobs)
        ]


@dataclass(kw_only=True)
class ChunkDecodeStream(DecodeStream):
    """EnCodec 48 kHz: a chunk's samples up to where the next one begins; the overlap waits for it."""

    half: ChunkDecoder
    chunk_len: int
    chunk_stride: int
    _tails: dict[int, Samples] = field(default_factory=dict)

    def _job(self, session: CodecSession) -> StreamJob | None:
        size, left = self.grid.chunk_frames, session.buffer.end - session.done
        assert size is not None
        if session.is_finished:
            take = min(left, size)
            return StreamJob(session, take, left <= size, (take, session.buffer.data.shape[1]))
        return StreamJob(session, size, False, (size, session.buffer.data.shape[1])) if left > size else None

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        if jobs[0].take == 0:
            return [StreamPiece(job.session.key, self._silence(), None, True) for job in jobs]
        ids = np.stack(
            [job.session.buffer.get(job.session.done, job.session.done + job.take).T for job in jobs]
        )
        scales = [job.session.scales[job.session.done // (self.grid.chunk_frames or 1)] for job in jobs]
        decoded = self.half(
            torch.from_numpy(ids).to(self.device),
            torch.tensor(scales, device=self.device, dtype=torch.float32),
        )
        made = decoded.float().cpu().numpy()
        return [
            StreamPiece(job.session.key, self._faded(job, chunk), None, job.last)
            for job, chunk in zip(jobs, made, strict=True)
        ]

    def _faded(self, job: StreamJob, chunk: Samples) -> Samples:
        """The samples that are final after this chunk.

        The rest, times its weights, waits as the tail; the weights themselves are its last column.
        """
        place = job.session.place
        weights = fade_weights(self.chunk_len)[: len(chunk), None]
        total = np.concatenate([chunk * weights, weights], 1)
        tail = self._tails.pop(place, None)
        if tail is not None:
            if len(tail) > len(total):
                total = np.pad(total, ((0, len(tail) - len(total)), (0, 0)))
            total[: len(tail)] += tail
        if not job.last:
            self._tails[place] = total[self.chunk_stride :]
            total = total[: self.chunk_stride]
        samples: Samples = total[:, :-1] / total[:, -1:]
        return samples[:, 0] if self.channels == 1 else samples

    def _clear(self, place: int) -> None:
        self._tails.pop(place, None)

    def _copy(self, place: int, target: int) -> None:
        if place in self._tails:
            self._tails[target] = self._tails[place].copy()
