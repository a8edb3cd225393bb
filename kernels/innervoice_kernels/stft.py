"""STFT over a stream   X_k = rfft(w * z[hop k - n_fft / 2 : hop k + n_fft / 2])        z: a signal reflected at both its ends

x: [B, T]   ->   real parts, then imaginary parts: [B, n_fft + 2, T / hop].        A frame is late by n_fft / (2 hop) - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.conv import shifted


def stream_stft_ref(
    x: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition. start [B]: position of x's column 0; end [B]: the signal's length; state [B, n_fft - hop]: the past.

    Column j is frame (start - n_fft / 2) / hop + 1 + j. What a frame that reaches over an end is made of must be in state ++ x.
    n_fft is a multiple of 2 hop.
    """
    n_fft = window.shape[0]
    past = torch.cat([state, x], -1)
    size = past.shape[-1]
    first = start - state.shape[-1]  # position of past's column 0
    place = torch.arange(x.shape[-1] // hop, device=x.device)[:, None] * hop + torch.arange(n_fft, device=x.device)
    position = (first[:, None, None] + place).abs()  # [B, frames, n_fft]
    last = end[:, None, None] - 1
    position = torch.where(position > last, 2 * last - position, position)
    index = (position - first[:, None, None]).clamp(0, size - 1).flatten(1)
    spectrum = torch.fft.rfft(past.gather(1, index).view(position.shape) * window)
    return torch.cat([spectrum.real, spectrum.imag], -1).transpose(1, 2), shifted(past, n, state.shape[-1])


def stream_stft(
    x: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of a centred STFT with reflected ends: x [B, T] -> [B, n_fft + 2, T / hop], state'."""
    return stream_stft_ref(x, state, n, window, hop, start, end)
