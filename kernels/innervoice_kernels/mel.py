"""Log-mel features of the Whisper front end.

power = |STFT(x)|^2   periodic Hann(n_fft), hop, centred with reflection, last frame dropped
y     = log10(max(power @ filters, 1e-10));  y = (max(y, max over the row - 8) + 4) / 4
x: [B, T], T a multiple of hop   filters: [n_fft / 2 + 1, M]   ->   [B, M, T / hop]

Source of the formula: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, and its public code.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_LINEAR_HZ = 200.0 / 3.0  # Hz per mel below 1 kHz
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0  # log of the frequency ratio of one mel above 1 kHz


def log_mel_ref(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """The definition above, in the samples' own dtype (float32 or float64)."""
    n_fft = 2 * (filters.shape[0] - 1)
    if not samples.shape[0]:  # the transform refuses an empty batch
        return samples.new_empty(0, filters.shape[1], samples.shape[1] // hop)
    padded = F.pad(samples, (n_fft // 2, n_fft // 2), mode="reflect")
    log = log_frames(padded, filters, hop)[..., :-1]  # [B, M, T / hop]
    return floor_frames(log, log.amax(dim=(1, 2), keepdim=True))


def log_frames(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """Log-mel values of the frames that lie wholly within samples [..., T], before the floor -> [..., M, F]."""
    n_fft = 2 * (filters.shape[0] - 1)
    window = torch.hann_window(n_fft, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, n_fft, hop, window=window, center=False, return_complex=True)  # [..., n_fft / 2 + 1, F]
    return (filters.to(samples.dtype).T @ spectrum.abs().square()).clamp_min(1e-10).log10()


def floor_frames(log: torch.Tensor, loudest: torch.Tensor) -> torch.Tensor:
    """Features from log-mel values and the loudest of them, which broadcasts."""
    return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0


def log_mel(samples: torch.Tensor, filters: torch.Tensor, hop: int = 160) -> torch.Tensor:
    """Log-mel features: samples [B, T], filters [n_fft / 2 + 1, M] -> [B, M, T / hop]."""
    return log_mel_ref(samples, filters, hop)


def mel_filters(num_mel_bins: int, n_fft: int, rate: int) -> torch.Tensor:
    """Triangles from 0 Hz to rate / 2, evenly spaced on Slaney's mel scale, each of unit area in Hz: [n_fft / 2 + 1, M] float32.

    Source: M. Slaney, "Auditory Toolbox", technical report 1998-010.
    """
    bins = torch.linspace(0.0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]  # [F, 1]
    top = _hz_to_mel(rate / 2)
    edges = _mel_to_hz(torch.linspace(0.0, top, num_mel_bins + 2, dtype=torch.float64))  # [M + 2]
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp_min(0.0)  # [F, M]
    return (triangles * (2.0 / (high - low))).float()


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, _KNEE_HZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL)))
