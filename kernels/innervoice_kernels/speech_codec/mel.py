"""Log-mel features of the Whisper front end.

power = |STFT(x)|^2   periodic Hann(n_fft), hop, centred with reflection, last frame dropped
y     = log10(max(power @ filters, 1e-10));  y = (max(y, max over the row - 8) + 4) / 4
x: [B, T], T a multiple of hop   filters: [n_fft / 2 + 1, M]   ->   [B, M, T / hop]

Source of the formula: Radford et al., "Robust Speech Recognition via Large-Scale Weak
Supervision", 2022, and its public code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Count, Ptr, cdiv, constexpr, dot, jit, launch, next_power, tl
from innervoice_kernels.native import floats, team
from innervoice_kernels.speech_codec.fourier import forward_table, native_transform

_LINEAR_HZ = 200.0 / 3.0  # Hz per mel below 1 kHz
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0  # log of the frequency ratio of one mel above 1 kHz


def log_mel_ref(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """The definition above, in the samples' own dtype (float32 or float64)."""
    return _log_mel_by(log_frames_ref, samples, filters, hop)


def log_frames_ref(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """The definition of log_frames."""
    n_fft = 2 * (filters.shape[0] - 1)
    if not samples.numel():  # the transform refuses an empty batch
        return samples.new_empty(
            *samples.shape[:-1], filters.shape[1], (samples.shape[-1] - n_fft) // hop + 1
        )
    window = torch.hann_window(n_fft, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(
        samples, n_fft, hop, window=window, center=False, return_complex=True
    )  # [..., n_fft / 2 + 1, F]
    return (filters.to(samples.dtype).T @ spectrum.abs().square()).clamp_min(1e-10).log10()


def log_frames(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """Log-mel values of the frames that lie wholly within samples [..., T], before the floor -> [..., M, F].

    Native code, exact to the last digits, takes twice as long as torch's transform in float32:
    it runs where it is asked for.
    """
    n_fft = 2 * (filters.shape[0] - 1)
    if samples.dtype != torch.float32 or n_fft < 4 or samples.shape[-1] < n_fft:
        return log_frames_ref(samples, filters, hop)
    chosen = choose("log_frames", samples, has_native=True, is_faster=False)
    run = {NATIVE: _log_frames_native, TRITON: _log_frames_triton}.get(chosen, log_frames_ref)
    return run(samples, filters, hop)


@cache
def _window(n_fft: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(n_fft, dtype=torch.float64, device=device)


def _log_frames_native(
    samples: torch.Tensor, filters: torch.Tensor, hop: int, isa: str | None = None
) -> torch.Tensor:
    n_fft, rows = 2 * (filters.shape[0] - 1), samples.reshape(-1, samples.shape[-1]).contiguous()
    y = torch.empty(
        len(rows), filters.shape[1], (rows.shape[1] - n_fft) // hop + 1, dtype=torch.float32, device="cpu"
    )
    native_transform(n_fft, isa).log_mel(team(), rows, floats(filters), hop, y)
    return y.view(*samples.shape[:-1], *y.shape[1:])


@jit
def _log_mel_kernel(
    x: Ptr, window: Ptr, table: Ptr, filters: Ptr, y: Ptr, W: Count, FRAMES: Count, HOP: constexpr, N: constexpr,
    M: constexpr, TILE: constexpr, DEPTH: constexpr, BINS: constexpr, MELS: constexpr,
) -> None:  # fmt: skip
    """TILE frames of a row a program: power of BINS bins at a time, which its filters add up.

    Samples that lie alike around a frame's middle are added for the real parts and subtracted for the
    imaginary ones. In float64, so that a bin of a thousandth of its frame's strength still has float32's
    digits: the logarithm shows them.
    """
    row, frame = tl.program_id(1).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    mel = tl.arange(0, MELS)
    is_frame = (frame < FRAMES)[:, None]
    begin = x + row * W + (frame * HOP)[:, None]
    heard = tl.zeros([TILE, MELS], tl.float32)
    for low in range(0, N // 2 + 1, BINS):
        k = low + tl.arange(0, BINS)
        is_bin = k < N // 2 + 1
        real = tl.zeros([TILE, BINS], tl.float64)
        imag = tl.zeros([TILE, BINS], tl.float64)
        for first in range(0, N // 2 + 1, DEPTH):
            i = first + tl.arange(0, DEPTH)
            is_left, is_right = i < N // 2 + 1, (i > 0) & (i < N // 2)
            left = tl.load(begin + i[None, :], mask=is_frame & is_left[None, :], other=0.0).to(tl.float64)
            left *= tl.load(window + i, mask=is_left, other=0.0)[None, :]
            right = tl.load(begin + (N - i)[None, :], mask=is_frame & is_right[None, :], other=0.0).to(
                tl.float64
            )
            right *= tl.load(window + N - i, mask=is_right, other=0.0)[None, :]
            to, mask = table + i[:, None] * (N + 2) + k[None, :], is_left[:, None] & is_bin[None, :]
            real += tl.dot(left + right, tl.load(to, mask=mask, other=0.0), out_dtype=tl.float64)
            imag += tl.dot(left - right, tl.load(to + N // 2 + 1, mask=mask, other=0.0), out_dtype=tl.float64)
        weights = tl.load(
            filters + k[:, None] * M + mel[None, :], mask=is_bin[:, None] & (mel < M)[None, :], other=0.0
        )
        heard = dot((real * real + imag * imag).to(tl.float32), weights, heard)
    value = tl.log(tl.maximum(heard, 1e-10)) * 0.4342944819032518
    tl.store(
        y + (row * M + mel[None, :]) * FRAMES + frame[:, None], value, mask=is_frame & (mel < M)[None, :]
    )


def _log_frames_triton(samples: torch.Tensor, filters: torch.Tensor, hop: int) -> torch.Tensor:
    (num_bins, mels), device = filters.shape, samples.device
    n_fft, rows = 2 * (num_bins - 1), samples.reshape(-1, samples.shape[-1]).contiguous()
    frames = (rows.shape[1] - n_fft) // hop + 1
    y = torch.empty(len(rows), mels, frames, device=device, dtype=torch.float32)
    launch(
        _log_mel_kernel, (cdiv(frames, 16), len(rows)), rows, _window(n_fft, device),
        forward_table(n_fft, device, torch.float64), filters.float().contiguous(), y, rows.shape[1], frames,
        HOP=hop, N=n_fft, M=mels, TILE=16, DEPTH=16, BINS=32, MELS=next_power(mels, 16), num_warps=4,
        num_stages=2,
    )  # fmt: skip
    return y.view(*samples.shape[:-1], mels, frames)


def _log_mel_by(
    frames_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    samples: torch.Tensor,
    filters: torch.Tensor,
    hop: int,
) -> torch.Tensor:
    half = filters.shape[0] - 1
    if not samples.shape[0]:  # which cannot be reflected
        return samples.new_empty(0, filters.shape[1], samples.shape[1] // hop)
    log = frames_of(F.pad(samples, (half, half), mode="reflect"), filters, hop)[..., :-1]  # [B, M, T / hop]
    return floor_frames(log, log.amax(dim=(1, 2), keepdim=True))


def floor_frames(log: torch.Tensor, loudest: torch.Tensor) -> torch.Tensor:
    """Features from log-mel values and the loudest of them, which broadcasts."""
    return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0


def log_mel(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """Log-mel features: samples [B, T], filters [n_fft / 2 + 1, M] -> [B, M, T / hop]."""
    return _log_mel_by(log_frames, samples, filters, hop)


def mel_filters(num_mel_bins: int, n_fft: int, rate: int) -> torch.Tensor:
    """Triangles from 0 Hz to rate / 2, evenly spaced on Slaney's mel scale, each of unit area in
    Hz: [n_fft / 2 + 1, M] float32.

    Source: M. Slaney, "Auditory Toolbox", technical report 1998-010.
    """
    bins = torch.linspace(0.0, rate / 2, n_fft // 2 + 1, dtype=torch.float64, device="cpu")[:, None]  # [F, 1]
    top = _hz_to_mel(rate / 2)
    edges = _mel_to_hz(
        torch.linspace(0.0, top, num_mel_bins + 2, dtype=torch.float64, device="cpu")
    )  # [M + 2]
    low = edges[:-2]
    peak = edges[1:-1]
    high = edges[2:]
    triangles = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp_min(
        0.0
    )  # [F, M]
    return (triangles * (2.0 / (high - low))).float()


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, _KNEE_HZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL)))
