"""Streams of the codecs that look ahead: a window with context on both sides is run, and its middle is kept.

DAC and SNAC: context as wide as the network sees, so that the pieces join to what one call over the whole gives; the look-ahead
is `context` frames. EnCodec 48 kHz: whole chunks, faded into each other; it looks ahead one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from innervoice.codec.residual_vq.dac import DacDecoder, DacEncoder
from innervoice.codec.residual_vq.encodec import ChunkDecoder, ChunkEncoder, fade_weights
from innervoice.codec.residual_vq.slot_stream import (
    CodecSession,
    DecodeStream,
    EncodeStream,
    StreamJob,
    StreamPiece,
    samples_of,
)
from innervoice.types import Samples


def context_frames(half: DacEncoder | DacDecoder) -> int:
    """Frames of context on each side, whole blocks: what the network sees, through attention to the ends of its windows."""
    block = half.config.block_frames
    reach = -(-half.reach // block) * block
    if half.attention is not None and isinstance(half, DacDecoder):
        reach += block  # the first convolution, before attention, sees three frames further
    if half.attention is not None and isinstance(half, DacEncoder):
        reach += block  # and so does the last one, after it
    return int(reach)


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

    half: DacEncoder
    num_codebooks: int
    chunk_frames: int
    dtype: torch.dtype

    @property
    def context(self) -> int:
        """Frames of look-ahead."""
        return context_frames(self.half)

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

    half: DacDecoder
    chunk_frames: int
    seed: int = 0

    @property
    def context(self) -> int:
        """Frames of look-ahead."""
        return context_frames(self.half)

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
                f"the codes are of {wrong} frames, {self.half.config.kind} decodes whole blocks of {block}: encode again"
            )
        ids = torch.from_numpy(np.ascontiguousarray(windows.transpose(0, 2, 1))).to(self.device)
        start = torch.tensor([job.session.done - before for job in jobs], device=self.device)
        samples = self.half(ids, torch.full_like(start, self.seed), start)[:, before * unit :]
        if not jobs[0].last:
            samples = samples[:, : jobs[0].take * unit]
        return [
            StreamPiece(job.session.key, samples_of(one), None, job.last)
            for job, one in zip(jobs, samples, strict=True)
        ]

    def _first_needed(self, done: int) -> int:
        return done - self.context


@dataclass(kw_only=True)
class ChunkEncodeStream(EncodeStream):
    """EnCodec 48 kHz: a chunk whenever it is whole, one every chunk_stride samples."""

    half: ChunkEncoder
    num_codebooks: int
    dtype: torch.dtype

    def _job(self, session: CodecSession) -> StreamJob | None:
        length, stride = self.half.config.chunk_len, self.half.config.chunk_stride
        assert length is not None and stride is not None
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
        decoded = self.half(torch.from_numpy(ids).to(self.device), torch.tensor(scales, device=self.device))
        made = decoded.float().cpu().numpy()
        return [
            StreamPiece(job.session.key, self._faded(job, chunk), None, job.last)
            for job, chunk in zip(jobs, made, strict=True)
        ]

    def _faded(self, job: StreamJob, chunk: Samples) -> Samples:
        """What is final after this chunk; the rest, times its weights, becomes the tail. Weights join it as a last column."""
        config, place = self.half.config, job.session.place
        weights = fade_weights(config, "cpu").numpy()[: len(chunk), None]
        total = np.concatenate([chunk * weights, weights], 1)
        tail = self._tails.pop(place, None)
        if tail is not None:
            if len(tail) > len(total):
                total = np.pad(total, ((0, len(tail) - len(total)), (0, 0)))
            total[: len(tail)] += tail
        assert config.chunk_stride is not None
        if not job.last:
            self._tails[place], total = total[config.chunk_stride :], total[: config.chunk_stride]
        samples: Samples = total[:, :-1] / total[:, -1:]
        return samples[:, 0] if self.channels == 1 else samples

    def _clear(self, place: int) -> None:
        self._tails.pop(place, None)

    def _copy(self, place: int, target: int) -> None:
        if place in self._tails:
            self._tails[target] = self._tails[place].copy()
