"""Inverse STFT   y = sum_t w * irfft(X_t) at t * hop / sum_t w^2, without n_fft/2 samples at either end

real, imag: [B, n_fft/2 + 1, T]   window: [n_fft]   ->   [B, hop * (T - 1)]      (Griffin and Lim 1984)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def istft_ref(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """The definition, in float32 or wider. Imaginary parts of the lowest and highest bin are ignored."""
    n_fft, wide = window.shape[0], torch.promote_types(real.dtype, torch.float32)
    if not real.shape[0]:  # the transform refuses an empty batch
        return real.new_empty(0, hop * (real.shape[-1] - 1), dtype=wide)
    w = window.to(wide)[:, None]  # [n_fft, 1]
    inner = F.pad(imag.to(wide)[:, 1:-1], (0, 0, 1, 1))
    frames = torch.fft.irfft(torch.complex(real.to(wide), inner), n_fft, dim=1) * w  # [B, n_fft, T]
    envelope = _overlap_add(w.square().expand(1, -1, frames.shape[-1]), hop)
    trimmed = slice(n_fft // 2, envelope.shape[-1] - n_fft // 2)
    return _overlap_add(frames, hop)[:, trimmed] / envelope[:, trimmed]


def istft(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """Samples of a one-sided spectrum: real, imag [B, n_fft/2 + 1, T] -> [B, hop * (T - 1)], float32 or wider."""
    return istft_ref(real, imag, window, hop)


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, n_fft, T] -> [B, n_fft + hop * (T - 1)]."""
    n_fft, count = frames.shape[1:]
    return F.fold(frames, (1, n_fft + hop * (count - 1)), (1, n_fft), stride=(1, hop))[:, 0, 0]
