"""Inverse STFT   y = sum_t w * irfft(X_t) at t * hop / sum_t w^2, without n_fft/2 samples at either end

real, imag: [B, n_fft/2 + 1, T]   window: [n_fft]   ->   [B, hop * (T - 1)]      (Griffin and Lim 1984)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.conv import add_overlap, beyond


def istft_ref(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """The definition, in float32 or wider. Imaginary parts of the lowest and highest bin are ignored."""
    n_fft, wide = window.shape[0], torch.promote_types(real.dtype, torch.float32)
    w = window.to(wide)
    frames = _frames(real.to(wide), imag.to(wide), w)
    envelope = _overlap_add(w.square()[:, None].expand(1, -1, frames.shape[-1]), hop)
    trimmed = slice(n_fft // 2, envelope.shape[-1] - n_fft // 2)
    return _overlap_add(frames, hop)[:, trimmed] / envelope[:, trimmed]


def istft(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """Samples of a one-sided spectrum: real, imag [B, n_fft/2 + 1, T] -> [B, hop * (T - 1)], float32 or wider."""
    return istft_ref(real, imag, window, hop)


def stream_istft_ref(
    real: Tensor, imag: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The same over a stream. start [B]: position of the first frame; end [B]: number of frames; state [B, n_fft - hop]: overlap.

    -> y [B, hop T], state'. Column 0 of y is sample hop * start - n_fft / 2 of the whole: it is the caller's to drop what lies
    before 0 or after hop * (end - 1). Frames outside [0, end) count for nothing.
    """
    steps = real.shape[-1]
    wide = torch.promote_types(real.dtype, torch.float32)
    w = window.to(wide)
    frames = _frames(real.to(wide), imag.to(wide), w)
    position = start[:, None] + torch.arange(steps, device=real.device)
    outside = (position < 0) | (position >= end[:, None])
    summed = _overlap_add(frames.masked_fill((outside | beyond(n, steps))[:, None], 0), hop)
    summed, after = add_overlap(summed, state, n * hop)
    y = summed[:, : hop * steps] / _envelope(w, hop, start, end, steps)
    return y, torch.where((n == 0)[:, None], state, after)


def stream_istft(
    real: Tensor, imag: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of frames to samples: real, imag [B, n_fft/2 + 1, T] -> y [B, hop T], state'."""
    return stream_istft_ref(real, imag, state, n, window, hop, start, end)


def _frames(real: Tensor, imag: Tensor, window: Tensor) -> Tensor:
    """Windowed samples of each frame, [B, n_fft, T]."""
    if not real.numel():  # which the FFT refuses
        return real.new_zeros(real.shape[0], len(window), real.shape[2])
    inner = F.pad(imag[:, 1:-1], (0, 0, 1, 1))
    frames: Tensor = torch.fft.irfft(torch.complex(real, inner), len(window), dim=1)
    return frames * window[:, None]


def _envelope(window: Tensor, hop: int, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Sum of squared windows of the frames that there are, at each sample: [B, hop * steps]; 1 where there is none."""
    count = len(window) // hop
    taps = window.square().view(count, hop)  # tap i: how a frame i places back ends up here
    position = (start[:, None] + torch.arange(steps, device=window.device))[..., None] - torch.arange(count, device=window.device)
    there = ((position >= 0) & (position < end[:, None, None])).to(window.dtype)  # [B, T, count]
    total: Tensor = (there @ taps).flatten(1)
    return torch.where(total > 1e-6, total, torch.ones_like(total))


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, n_fft, T] -> [B, n_fft + hop * (T - 1)]."""
    n_fft, count = frames.shape[1:]
    return F.fold(frames, (1, n_fft + hop * (count - 1)), (1, n_fft), stride=(1, hop))[:, 0, 0]
