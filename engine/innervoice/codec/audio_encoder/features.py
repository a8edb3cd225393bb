"""Log-mel features of a recording that comes in frames, in the windows that an encoder's columns attend within.

A window is complete when its samples and the right half of its last frame are there. The floor of the features, 8 below
the loudest value of the whole recording, is known at its end: until then it is that of the sound so far, and a louder
window may change earlier ones. Windows are computed in the same shapes however the samples came, so they are the same
bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from innervoice.checkpoint.audio_encoder import CHUNK_FRAMES, HOP, N_FFT, AudioEncoderConfig
from innervoice.types import Samples
from innervoice_kernels.speech_codec.mel import floor_frames, log_frames

_ZEROS_HEARD = 2  # frames of the zeros behind a recording of Qwen2.5-Omni that its last samples reach into


@dataclass(frozen=True, eq=False)
class FeatureWindow:
    """Features [M, F] of a window, all that its rows depend on. is_long: its recording has a chunk that is whole."""

    mel: Tensor
    is_long: bool

    @cached_property
    def digest(self) -> bytes:
        """A name of the content: windows of equal digest have equal rows."""
        content = self.mel.cpu().contiguous().numpy().tobytes()
        shape = f"{tuple(self.mel.shape)} {self.is_long}".encode()
        return hashlib.blake2b(shape + content, digest_size=16).digest()


class RecordingFeatures:
    """A recording's features: push samples at the encoder's rate, read the windows that are complete, end."""

    def __init__(self, config: AudioEncoderConfig, filters: Tensor) -> None:
        self._config, self._filters = config, filters
        self._wave = np.zeros(0, np.float32)
        self._num_samples = 0
        self._is_ended = False
        self._logs: list[Tensor] = []  # of complete windows, before the floor
        self._loudest = filters.new_full((), -torch.inf)
        self._windows: list[FeatureWindow] | None = []  # None: to be made anew

    @property
    def num_missing(self) -> int:
        """Samples that the next window waits for."""
        return self._needed(len(self._logs) + 1) - self._num_samples

    def push(self, samples: Samples) -> None:
        """Append samples [T]."""
        end = self._num_samples + len(samples)
        if end > len(self._wave):
            self._wave = np.concatenate([self._wave[: self._num_samples], np.zeros(end, np.float32)])
        self._wave[self._num_samples : end] = samples
        self._num_samples = end
        size = self._config.window_frames
        while not self._is_ended and self.num_missing <= 0:
            start = len(self._logs) * size
            self._add(self._log_frames(start, start + size))

    def end(self) -> None:
        """End the recording: its last window ends with it. Raises ValueError for one that is too short."""
        self._config.num_rows(self._num_samples)
        self._is_ended = True
        frames, size = self._config.num_frames(self._num_samples), self._config.window_frames
        while (start := len(self._logs) * size) < frames:
            self._add(self._log_frames(start, min(start + size, frames)))
        if self._config.kind == "qwen2_5_omni":
            behind = self._log_frames(frames, frames + _ZEROS_HEARD).amax()
            self._loudest = torch.maximum(self._loudest, behind)
        self._windows = None

    def windows(self) -> list[FeatureWindow]:
        """The complete windows, their features floored by the loudest so far."""
        if self._windows is None:
            size = CHUNK_FRAMES[self._config.kind]
            is_long = len(self._logs) > 1 or (bool(self._logs) and self._logs[0].shape[1] >= size)
            self._windows = [FeatureWindow(floor_frames(log, self._loudest), is_long) for log in self._logs]
        return self._windows

    def _add(self, log: Tensor) -> None:
        self._logs.append(log)
        self._loudest = torch.maximum(self._loudest, log.amax())
        self._windows = None

    def _needed(self, num_windows: int) -> int:
        return (num_windows * self._config.window_frames - 1) * HOP + N_FFT // 2

    @torch.inference_mode()
    def _log_frames(self, start: int, stop: int) -> Tensor:
        """Log-mel values [M, F] of frames, before the floor; past the end they are reflected, or zeros."""
        num, half = self._num_samples, N_FFT // 2
        place = np.abs(np.arange(start * HOP - half, (stop - 1) * HOP + half))
        is_there = place < num
        if self._config.kind == "qwen3_omni":
            place = np.where(is_there, place, 2 * (num - 1) - place)
            segment = self._wave[place]
        else:
            segment = np.where(is_there, self._wave[np.minimum(place, num - 1)], np.float32(0))
        return log_frames(torch.from_numpy(segment).to(self._filters.device), self._filters, HOP)
