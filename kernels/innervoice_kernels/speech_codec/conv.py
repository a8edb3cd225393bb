"""The parts of streams   state' = the end of state ++ x        x: [B, C, T]

Row b of a call brings n[b] of the T columns, and a row with n = 0 keeps its state bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shifted(window: Tensor, n: Tensor, size: int) -> Tensor:
    """Row b's columns n[b] ... n[b] + size - 1, what a stream keeps after n[b] new ones: window
    [B, ..., W] -> [B, ..., size].
    """
    index = n[:, None] + torch.arange(size, device=window.device, dtype=torch.int64)  # [B, size]
    index = index.view(len(n), *[1] * (window.ndim - 2), size)
    return window.gather(-1, index.expand(*window.shape[:-1], size))


def beyond(n: Tensor, size: int) -> Tensor:
    """True for columns that a row does not bring: n [B] -> [B, size]."""
    return torch.arange(size, device=n.device, dtype=torch.int64) >= n[:, None]


def stream_delay_ref(x: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: the first T columns of state ++ x; state [B, C, delay]."""
    window = torch.cat([state, x], -1)
    return window[..., : x.shape[-1]], shifted(window, n, state.shape[-1])


def stream_delay(x: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """A stream, later: x [B, C, T] -> y [B, C, T], state'."""
    return stream_delay_ref(x, state, n)


def add_overlap(full: Tensor, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Add the overlap of the chunk before to the first columns: full [..., W], state [..., S] ->
    sums, state' at column n [B].
    """
    size = state.shape[-1]
    full = torch.cat([full[..., :size] + state, full[..., size:]], -1)
    return full, shifted(full, n, size)
