"""Convolutions over a stream   y = f(state ++ x),   state' = the end of state ++ x        x: [B, C, T]   ->   [B, C', T / s]

Row b of a call brings n[b] of the T columns; what its outputs beyond n[b] hold is undefined, and a row with n = 0 keeps its state
bit by bit. A stream cut anywhere gives what one call over the whole gives. An output is as late as its look-ahead: with zeros as
the first state, column t of a centred convolution's result is position t - p of the whole, p the padding to the right.
Idea: a causal convolution keeps its last `reach - stride` inputs, a transposed one its overlap less the bias (moshi).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(window: Tensor, n: Tensor, size: int) -> Tensor:
    """Row b's columns n[b] ... n[b] + size - 1, what a stream keeps after n[b] new ones: window [B, ..., W] -> [B, ..., size]."""
    index = n[:, None] + torch.arange(size, device=window.device)  # [B, size]
    index = index.view(len(n), *[1] * (window.ndim - 2), size)
    return window.gather(-1, index.expand(*window.shape[:-1], size))


def beyond(n: Tensor, size: int) -> Tensor:
    """True for columns that a row does not bring: n [B] -> [B, size]."""
    return torch.arange(size, device=n.device) >= n[:, None]


def stream_conv1d_ref(
    x: Tensor, state: Tensor, n: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """The definition: y_t = bias + sum_j w_j z_{s t + d j}, z = state ++ x; state [B, C, (k - 1) d + 1 - s]; s divides n."""
    window = torch.cat([state, x], -1)
    y = F.conv1d(window, weight, bias, stride, 0, dilation)
    return y, shifted(window, n, state.shape[-1])


def stream_conv1d(
    x: Tensor, state: Tensor, n: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """One chunk through a convolution: x [B, C, T], weight [C', C, k] -> y [B, C', T / stride], state'."""
    return stream_conv1d_ref(x, state, n, weight, bias, stride, dilation)


def stream_conv_transpose1d_ref(
    x: Tensor, state: Tensor, n: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> tuple[Tensor, Tensor]:
    """The definition: y_{s t + j} += w_j x_t; state [B, C', k - s]: what past inputs add to outputs to come, without the bias."""
    steps = x.shape[-1]
    full = F.conv_transpose1d(x.masked_fill(beyond(n, steps)[:, None], 0), weight, None, stride)
    full, after = add_overlap(full, state, n * stride)
    y = full[..., : steps * stride]
    return (y if bias is None else y + bias[:, None]), torch.where((n == 0)[:, None, None], state, after)


def stream_conv_transpose1d(
    x: Tensor, state: Tensor, n: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> tuple[Tensor, Tensor]:
    """One chunk through a transposed convolution: x [B, C, T], weight [C, C', k] -> y [B, C', T * stride], state'."""
    return stream_conv_transpose1d_ref(x, state, n, weight, bias, stride)


def stream_delay_ref(x: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: the first T columns of state ++ x; state [B, C, delay]."""
    window = torch.cat([state, x], -1)
    return window[..., : x.shape[-1]], shifted(window, n, state.shape[-1])


def stream_delay(x: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """A stream, later: x [B, C, T] -> y [B, C, T], state'."""
    return stream_delay_ref(x, state, n)


def add_overlap(full: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Add the overlap of the chunk before to the first columns: full [..., W], state [..., S] -> sums, state' at column n [B]."""
    size = state.shape[-1]
    full = torch.cat([full[..., :size] + state, full[..., size:]], -1)
    return full, shifted(full, n, size)
