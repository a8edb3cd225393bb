"""Attention over the last W positions of a stream, their keys and values in a ring   y_t = sum_s softmax(q_t k_s / sqrt d) v_s

q, k, v: [B, T, H, d]   ring: [S, 2, R, H, d], position p of slot s at [s, :, p mod R]   ->   [B, T, H, d];   t - W < s <= t

A call writes its keys and values first; so that none is overwritten which it still needs, R >= W - 1 + T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def store_window_ref(k: Tensor, v: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor) -> None:
    """Write the first n[b] of T keys and values of row b, positions from start[b], into its slot of the ring."""
    column = torch.arange(k.shape[1], device=k.device)
    brought = column < n[:, None]  # [B, T]
    slot = slots[:, None].expand_as(brought)[brought]
    place = ((start[:, None] + column) % ring.shape[2])[brought]
    ring[slot, 0, place] = k[brought]
    ring[slot, 1, place] = v[brought]


def store_window(k: Tensor, v: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor) -> None:
    """Keep keys and values: k, v [B, T, H, d] -> ring [S, 2, R, H, d], in place."""
    store_window_ref(k, v, ring, slots, start, n)


def window_attention_ref(q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int) -> Tensor:
    """The definition. q [B, T, H, d] at positions start[b] + t, the ring as it is after n[b] of them were stored.

    Undefined for t >= n[b].
    """
    size, groups = ring.shape[2], ring.shape[3]
    end = (start + n)[:, None] - 1
    held = end - (end - torch.arange(size, device=q.device)) % size  # [B, R] position of each place
    query = start[:, None] + torch.arange(q.shape[1], device=q.device)
    ahead = query[:, :, None] - held[:, None]
    visible = (ahead >= 0) & (ahead < window) & (held >= 0)[:, None]  # [B, T, R]
    k, v = _rows_of(ring, slots).unbind(1)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible[:, None], enable_gqa=groups != q.shape[2]
    )
    return y.transpose(1, 2)


def window_attention(q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int) -> Tensor:
    """Attend to the last `window` positions: q [B, T, H, d] -> [B, T, H, d]."""
    return window_attention_ref(q, ring, slots, start, n, window)


def _rows_of(ring: Tensor, slots: Tensor) -> Tensor:
    """The slots' part of the ring: a view where one row is asked for."""
    return ring[int(slots[0]) :][:1] if len(slots) == 1 and ring.device.type == "cpu" else ring[slots]
