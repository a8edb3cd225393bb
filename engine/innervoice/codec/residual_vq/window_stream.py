"""Streams of the codecs that look ahead: a window with context on both sides is run, and its middle is kept.

The context is as wide as the network sees, so that the pieces join to what one call over the whole gives; the
look-ahead is `context` frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from innervoice.checkpoint.codecs import ResidualConfig
from innervoice.codec.residual_vq.slot_stream import (
    CodecSession,
    DecodeStream,
    EncodeStream,
    StreamJob,
    StreamPiece,
    samples_of,
)


class WindowHalf(Protocol):
    """An encoder or decoder that runs whole windows."""

    @property
    def config(self) -> ResidualConfig:
        """The codec's configuration."""
        ...

    @property
    def context_frames(self) -> int:
        """Frames of context on each side of the frames that are kept, in whole blocks."""
        ...


class WindowEncoder(WindowHalf, Protocol):
    """Samples to codes."""

    def __call__(self, x: Tensor, num_codebooks: int) -> Tensor:
        """x [B, T, C], T whole blocks -> ids [B, K, T / frame]."""
        ...


class WindowDecoder(WindowHalf, Protocol):
    """Codes to samples."""

    def __call__(self, ids: Tensor, seed: Tensor, start: Tensor) -> Tensor:
        """ids [B, K, T], frames from start [B], noise of seed [B] -> samples [B, T * frame or less, C]."""
        ...


def _next_window(session: CodecSession, unit: int, chunk: int, context: int) -> StreamJob | None:
    """A chunk with its context: columns of `unit` a frame; the rest of a finished session together."""
    left, ahead = session.buffer.end - session.done, min(session.done, context * unit)
    if session.is_finished and left <= (chunk + context) * unit:
        return StreamJob(session, left, True, (ahead, left, True, session.buffer.data.shape[1]))
    if left < (chunk + context) * unit:
        return None
    return StreamJob(session, chunk * unit, False, (ahead, chunk * unit, False, session.buffer.data.shape[1]))


def _windows(jobs: list[StreamJob], unit: int, context: int) -> tuple[np.ndarray, int]:
    """Windows of jobs of one key [B, W, ...], and how many columns of context they begin with."""
    first = jobs[0]
    before = min(first.session.done, context * unit)
    after = 0 if first.last else context * unit
    rows = [
        job.session.buffer.get(job.session.done - before, job.session.done + job.take + after) for job in jobs
    ]
    return np.stack(rows), before


@dataclass(kw_only=True)
class WindowEncodeStream(EncodeStream):
    """Samples to codes, chunk_frames at a time."""

    half: WindowEncoder
    num_codebooks: int
    chunk_frames: int
    dtype: torch.dtype

    @property
    def context(self) -> int:
        """Frames of look-ahead."""
        return self.half.context_frames

    def _job(self, session: CodecSession) -> StreamJob | None:
        return _next_window(session, self.half.config.frame_len, self.chunk_frames, self.context)

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        if jobs[0].take == 0:
            return [
                StreamPiece(
                    job.session.key, None, self._codes(np.zeros((self.num_codebooks, 0), np.int64)), True
                )
                for job in jobs
            ]
        unit, block = self.half.config.frame_len, self.half.config.block_frames
        windows, before = _windows(jobs, unit, self.context)
        short = -windows.shape[1] % (unit * block)
        x = torch.from_numpy(np.pad(windows, ((0, 0), (0, short), (0, 0)))).to(self.device, self.dtype)
        frames = -(-jobs[0].take // (unit * block)) * block
        ids = self.half(x, self.num_codebooks)[:, :, before // unit :][:, :, :frames].cpu().numpy()
        return [
            StreamPiece(job.session.key, None, self._codes(rows), job.last)
            for job, rows in zip(jobs, ids, strict=True)
        ]

    def _first_needed(self, done: int) -> int:
        return done - self.context * self.half.config.frame_len


@dataclass(kw_only=True)
class WindowDecodeStream(DecodeStream):
    """Codes to samples, chunk_frames at a time; seed: of SNAC's noise."""

    half: WindowDecoder
    chunk_frames: int
    seed: int = 0

    @property
    def context(self) -> int:
        """Frames of look-ahead."""
        return self.half.context_frames

    def _job(self, session: CodecSession) -> StreamJob | None:
        return _next_window(session, 1, self.chunk_frames, self.context)

    def _run(self, jobs: list[StreamJob]) -> list[StreamPiece]:
        if jobs[0].take == 0:
            return [StreamPiece(job.session.key, self._silence(), None, True) for job in jobs]
        windows, before = _windows(jobs, 1, self.context)
        block, unit = self.half.config.block_frames, self.half.config.frame_len
        if windows.shape[1] % block:
            wrong = jobs[0].session.buffer.end
            raise ValueError(
                f"the codes are of {wrong} frames, {self.half.config.kind} decodes whole blocks of {block}: "
                "encode again"
            )
        ids = torch.from_numpy(np.ascontiguousarray(windows.transpose(0, 2, 1))).to(self.device)
        start = torch.tensor(
            [job.session.done - before for job in jobs], device=self.device, dtype=torch.int64
        )
        samples = self.half(ids, torch.full_like(start, self.seed), start)[:, before * unit :]
        if not jobs[0].last:
            samples = samples[:, : jobs[0].take * unit]
        return [
            StreamPiece(job.session.key, samples_of(one), None, job.last)
            for job, one in zip(jobs, samples, strict=True)
        ]

    def _first_needed(self, done: int) -> int:
        return done - self.context
