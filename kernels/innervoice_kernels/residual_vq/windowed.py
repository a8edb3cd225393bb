"""Attention over the last W positions of a stream, their keys and values in a ring
y_t = sum_s softmax(q_t k_s / sqrt d) v_s

q: [B, T, H, d]   ring: [S, 2, R, G, d], position p of slot s at [s, :, p mod R]   ->   [B, T, H, d];
t - W < s <= t

A call writes its keys and values first; so that none is overwritten which it still needs, R >= W - 1 + T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, narrow, next_power, tl

_LOG2E = tl.constexpr(1.4426950408889634)
_QUERIES = 16  # a side of the tensor cores
_KEYS, _KEYS_FLOAT32 = 32, 16  # a window of 250 is 9 steps, or 17 whose products take more registers
_LOWEST = tl.constexpr(-1e30)


def store_window_ref(k: Tensor, v: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor) -> None:
    """Write the first n[b] of T keys and values of row b, from position start[b] on, into its ring slot."""
    column = torch.arange(k.shape[1], device=k.device, dtype=torch.int64)
    brought = column < n[:, None]  # [B, T]
    slot = slots[:, None].expand_as(brought)[brought]
    place = ((start[:, None] + column) % ring.shape[2])[brought]
    ring[slot, 0, place] = k[brought]
    ring[slot, 1, place] = v[brought]


@jit
def _store_window_kernel(
    k: Ptr, v: Ptr, ring: Ptr, slots: Ptr, start: Ptr, n: Ptr, k_row: Num, k_token: Num, v_row: Num,
    v_token: Num, R: Num, WIDTH: Num, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Keys and values of one token a program, all heads."""
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if token >= tl.load(n + row):
        return
    place = ((tl.load(start + row) + token) % R) * WIDTH + tl.load(slots + row) * (2 * R * WIDTH)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    tl.store(ring + place + column, tl.load(k + row * k_row + token * k_token + column, mask=mask), mask=mask)
    tl.store(
        ring + R * WIDTH + place + column,
        tl.load(v + row * v_row + token * v_token + column, mask=mask),
        mask=mask,
    )


def _store_window_triton(k: Tensor, v: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor) -> None:
    rows, tokens, groups, width = k.shape
    if not ring.is_contiguous():
        raise ValueError(f"store_window: the ring has strides {ring.stride()}, expected one dense tensor")
    flat = [x if x.stride()[2:] == (width, 1) else x.contiguous() for x in (k, v)]
    launch(
        _store_window_kernel, (tokens, rows), *flat, ring, slots, start, n, flat[0].stride(0),
        flat[0].stride(1), flat[1].stride(0), flat[1].stride(1), ring.shape[2], groups * width,
        BLOCK=next_power(groups * width), num_warps=4,
    )  # fmt: skip


def store_window(k: Tensor, v: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor) -> None:
    """Store k, v [B, T, G, d] in ring [S, 2, R, G, d], in place. slots, start, n: [B] int64."""
    run = _store_window_triton if choose("store_window", k) == TRITON else store_window_ref
    run(k, v, ring, slots, start, n)


def window_attention_ref(
    q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int
) -> Tensor:
    """The definition of attention in a window.

    q [B, T, H, d] at positions start[b] + t, the ring as it is after n[b] of them were stored.

    Undefined for t >= n[b].
    """
    size, groups = ring.shape[2], ring.shape[3]
    end = (start + n)[:, None] - 1
    held = (
        end - (end - torch.arange(size, device=q.device, dtype=torch.int64)) % size
    )  # [B, R] position of each place
    query = start[:, None] + torch.arange(q.shape[1], device=q.device, dtype=torch.int64)
    ahead = query[:, :, None] - held[:, None]
    visible = (ahead >= 0) & (ahead < window) & (held >= 0)[:, None]  # [B, T, R]
    k, v = _rows_of(ring, slots).unbind(1)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        visible[:, None],
        enable_gqa=groups != q.shape[2],
    )
    return y.transpose(1, 2)


@jit
def _window_attention_kernel(
    q: Ptr, ring: Ptr, slots: Ptr, start: Ptr, n: Ptr, y: Ptr, q_row: Num, q_token: Num, q_head: Num, T: Count,
    R: Num, WINDOW: Num, scale: Num, H: constexpr, G: constexpr, D: constexpr, BLOCK_D: constexpr,
    QUERIES: constexpr, KEYS: constexpr,
) -> None:  # fmt: skip
    """QUERIES tokens of one head and row a program, over the positions that the
    first to the last of them see.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    count, before = tl.load(n + row), tl.load(start + row)
    first = tile * QUERIES
    if first >= count:
        return
    token, column = first + tl.arange(0, QUERIES), tl.arange(0, BLOCK_D)
    mask = (token < count)[:, None] & (column < D)[None, :]
    queries = tl.load(
        q + row * q_row + token[:, None] * q_token + head * q_head + column[None, :], mask=mask, other=0.0
    )
    slot = ring + tl.load(slots + row) * (2 * R * G * D) + (head // (H // G)) * D
    top = tl.full([QUERIES], _LOWEST, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    position = before + token
    begin = tl.maximum(before + first - WINDOW + 1, 0)
    end = before + tl.minimum(count, first + QUERIES)
    for offset in range(0, end - begin, KEYS):
        key = begin + offset + tl.arange(0, KEYS)
        place = (key % R) * (G * D)
        inside = key < end
        k = tl.load(
            slot + place[None, :] + column[:, None], mask=inside[None, :] & (column < D)[:, None], other=0.0
        )
        v = tl.load(
            slot + R * G * D + place[:, None] + column[None, :],
            mask=inside[:, None] & (column < D)[None, :],
            other=0.0,
        )
        score = dot(queries, k, tl.zeros([QUERIES, KEYS], tl.float32)) * (scale * _LOG2E)
        ahead = position[:, None] - key[None, :]
        score = tl.where(inside[None, :] & (ahead >= 0) & (ahead < WINDOW), score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        rescale = tl.exp2(top - new_top)
        p = tl.exp2(score - new_top[:, None])
        total = total * rescale + tl.sum(p, axis=1)
        out = dot(narrow(p, ring), v, out * rescale[:, None])
        top = new_top
    place = y + ((row * T + token[:, None]) * H + head) * D + column[None, :]
    tl.store(place, narrow(out / total[:, None], y), mask=mask)


def _window_attention_triton(
    q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int
) -> Tensor:
    (rows, tokens, heads, width), groups = q.shape, ring.shape[3]
    if not ring.is_contiguous() or ring.shape[2] < window - 1 + tokens:
        raise ValueError(
            f"window_attention: a ring of {tuple(ring.shape)} for {tokens} tokens and a window of {window}"
        )
    q = q if q.stride(-1) == 1 else q.contiguous()
    y = torch.zeros(rows, tokens, heads, width, dtype=q.dtype, device=q.device)
    launch(
        _window_attention_kernel, (cdiv(tokens, _QUERIES), heads, rows), q, ring, slots, start, n, y,
        q.stride(0), q.stride(1), q.stride(2), tokens, ring.shape[2], window, width**-0.5, H=heads, G=groups,
        D=width, BLOCK_D=next_power(width, 16), QUERIES=_QUERIES,
        KEYS=_KEYS_FLOAT32 if q.dtype == torch.float32 else _KEYS, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y


def window_attention(q: Tensor, ring: Tensor, slots: Tensor, start: Tensor, n: Tensor, window: int) -> Tensor:
    """Attend to the last `window` positions: q [B, T, H, d] -> [B, T, H, d]."""
    run = _window_attention_triton if choose("window_attention", q) == TRITON else window_attention_ref
    return run(q, ring, slots, start, n, window)


def _rows_of(ring: Tensor, slots: Tensor) -> Tensor:
    """The slots' part of the ring: a view where one row is asked for."""
    return ring[int(slots[0]) :][:1] if len(slots) == 1 and ring.device.type == "cpu" else ring[slots]
