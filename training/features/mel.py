"""Mel spectra in plain torch: Whisper's at 16 kHz for hearing, the speech decoder's at 22.05 kHz for
speaking.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

SAMPLE_RATE = 22050
HOP = 256
N_FFT = 1024
NUM_MELS = 80
MAX_HZ = 8000.0
FLOOR = 1e-5

WHISPER_RATE = 16000
WHISPER_HOP = 160
WHISPER_N_FFT = 400


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    above = 15 + np.log(np.maximum(hz, 1e-9) / 1000) / (np.log(6.4) / 27)
    return np.where(hz >= 1000, above, hz * 3 / 200)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Return the frequencies of points on Slaney's scale."""
    return np.where(mel >= 15, 1000 * np.exp((np.log(6.4) / 27) * (mel - 15)), mel * 200 / 3)


@cache
def mel_filters(sample_rate: int, n_fft: int, num_mels: int, max_hz: float) -> torch.Tensor:
    """Return triangular filters of equal area. [num_mels, n_fft / 2 + 1]"""
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(max_hz))), num_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    rising = (bins[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins[None]) / np.diff(edges)[1:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return torch.tensor(np.maximum(0, np.minimum(rising, falling)) * area[:, None], dtype=torch.float32)


@cache
def hann(length: int) -> torch.Tensor:
    """Return the periodic Hann window."""
    return torch.hann_window(length)


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    """Return the natural logarithm of the mel magnitudes of audio at 22.05 kHz. [B, n] -> [B, 80, n //
    256]
    """
    margin = (N_FFT - HOP) // 2
    padded = F.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, N_FFT, HOP, N_FFT, hann(N_FFT), center=False, return_complex=True)
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    filters = mel_filters(SAMPLE_RATE, N_FFT, NUM_MELS, MAX_HZ)
    return torch.log(torch.clamp(filters @ magnitude, min=FLOOR))


def whisper_log_mel(audio: torch.Tensor) -> torch.Tensor:
    """Return Whisper's features of audio at 16 kHz, a multiple of 160 samples long. [n] -> [80, n // 160]"""
    spectrum = torch.stft(
        audio, WHISPER_N_FFT, WHISPER_HOP, WHISPER_N_FFT, hann(WHISPER_N_FFT), return_complex=True
    )[:, :-1]
    filters = mel_filters(WHISPER_RATE, WHISPER_N_FFT, NUM_MELS, WHISPER_RATE / 2)
    logs = (filters @ spectrum.abs().square()).clamp_min(1e-10).log10()
    return (torch.maximum(logs, logs.max() - 8) + 4) / 4
