"""Attention with relative positions   score(u, c) = ((q_u + b_u) . k_c + (q_u + b_v) . p_{U-1-u+c}) / sqrt(d)

q: [B, H, U, d]   k, v: [B, H, K, d]   p: [H, K + U - 1, d], by falling distance   ->   [B, H, U, d]
(Dai et al. 2019)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Num, Ptr, cdiv, constexpr, dot, jit, launch, narrow, next_power, tl
from innervoice_kernels.native import CHANNEL_MULTIPLE, floats, team

_LOG2E = tl.constexpr(1.4426950408889634)
_HIDDEN = tl.constexpr(-1e30)  # the score of a key that is not seen
_TILE = 16  # queries, and keys: a side of the tensor cores


def relative_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, bias_u: Tensor, bias_v: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """The definition; scores and softmax in float32 or wider. visible [B, U, K] bool; seeing nothing gives
    the mean of v.
    """
    num_queries = q.shape[2]
    num_keys = k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    content = (q + bias_u[:, None]) @ k.transpose(-1, -2)  # [B, H, U, K]
    by_distance = (q + bias_v[:, None]) @ positions.transpose(-1, -2)  # [B, H, U, K + U - 1]
    place = (
        torch.arange(num_keys, device=q.device, dtype=torch.int64)
        + torch.arange(num_queries - 1, -1, -1, device=q.device, dtype=torch.int64)[:, None]
    )
    position = by_distance.gather(-1, place.expand(*content.shape[:2], -1, -1))
    scores = (content.to(wide) + position.to(wide)) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible[:, None], torch.finfo(wide).min).softmax(-1)
    return weights.to(v.dtype) @ v


def _relative_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_u: Tensor,
    bias_v: Tensor,
    positions: Tensor,
    visible: Tensor,
    isa: str | None = None,
) -> Tensor:
    y = torch.empty(q.shape, dtype=torch.float32, device="cpu")
    places = (floats(bias_u), floats(bias_v), floats(positions), visible.contiguous())
    _C.relative_attention(team(), floats(q), floats(k), floats(v), *places, y, isa)
    return y


@jit
def _relative_attention_kernel(
    q: Ptr, k: Ptr, v: Ptr, bias_u: Ptr, bias_v: Ptr, positions: Ptr, visible: Ptr, y: Ptr, q_row: Num,
    q_head: Num, q_token: Num, k_row: Num, k_head: Num, k_token: Num, v_row: Num, v_head: Num, v_token: Num,
    U: Num, K: Num, scale: Num, H: constexpr, D: constexpr, BLOCK_D: constexpr, TILE: constexpr,
) -> None:  # fmt: skip
    """TILE queries of one head and row a program, over TILE keys at a time.

    A tile's scores by distance are a product with 2 TILE distances, of which every query takes TILE, shifted
    by its place.
    """
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    first = tl.program_id(0) * TILE
    index = tl.arange(0, TILE)
    column = tl.arange(0, BLOCK_D)
    both = tl.arange(0, 2 * TILE)
    query, is_wide = first + index, column < D
    is_query = (query < U)[:, None] & is_wide[None, :]
    asked = tl.load(
        q + row * q_row + head * q_head + query[:, None] * q_token + column[None, :], mask=is_query, other=0.0
    )
    asked = asked.to(tl.float32)
    u = tl.load(bias_u + head * D + column, mask=is_wide, other=0.0).to(tl.float32)
    with_u = narrow(asked + u[None, :], q)
    other = tl.load(bias_v + head * D + column, mask=is_wide, other=0.0).to(tl.float32)
    with_v = narrow(asked + other[None, :], q)
    shift = TILE - 1 - index[:, None] + index[None, :]
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    out = tl.zeros([TILE, BLOCK_D], tl.float32)
    for begin in range(0, K, TILE):
        key = begin + index
        inside = key < K
        at = k + row * k_row + head * k_head + key[None, :] * k_token + column[:, None]
        keys = tl.load(at, mask=inside[None, :] & is_wide[:, None], other=0.0)
        score = dot(with_u, keys, tl.zeros([TILE, TILE], tl.float32))
        place = U - first - TILE + begin + both
        known = (place >= 0) & (place < K + U - 1)
        at = positions + (head * (K + U - 1) + place[None, :]) * D + column[:, None]
        distances = tl.load(at, mask=known[None, :] & is_wide[:, None], other=0.0)
        score += tl.gather(dot(with_v, distances, tl.zeros([TILE, 2 * TILE], tl.float32)), shift, axis=1)
        seen = tl.load(
            visible + (row * U + query[:, None]) * K + key[None, :],
            mask=(query < U)[:, None] & inside[None, :],
            other=0,
        )
        score = tl.where(seen != 0, score * (scale * _LOG2E), _HIDDEN)
        score = tl.where(inside[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        rescale = tl.exp2(top - new_top)
        p = tl.exp2(score - new_top[:, None])
        total = total * rescale + tl.sum(p, axis=1)
        at = v + row * v_row + head * v_head + key[:, None] * v_token + column[None, :]
        values = tl.load(at, mask=inside[:, None] & is_wide[None, :], other=0.0)
        out = dot(narrow(p, v), values, out * rescale[:, None])
        top = new_top
    place = ((row * H + head) * U + query[:, None]) * D + column[None, :]
    tl.store(y + place, narrow(out / total[:, None], y), mask=is_query)


def _relative_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, bias_u: Tensor, bias_v: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    rows, heads, queries, width = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    y = torch.empty(rows, heads, queries, width, dtype=q.dtype, device=q.device)
    launch(
        _relative_attention_kernel, (cdiv(queries, _TILE), heads, rows), q, k, v, bias_u.contiguous(),
        bias_v.contiguous(), positions.contiguous(), visible.contiguous(), y, *q.stride()[:3],
        *k.stride()[:3], *v.stride()[:3], queries, k.shape[2], width**-0.5, H=heads, D=width,
        BLOCK_D=next_power(width, 16), TILE=_TILE, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_u: Tensor, bias_v: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """Attention of U new tokens over K cached and new ones; bias_u, bias_v [H, d]."""
    chosen = choose("relative_attention", q, has_native=True)
    if (
        chosen == NATIVE
        and q.dtype == torch.float32
        and q.shape[-1] % CHANNEL_MULTIPLE == 0
        and q.numel() > 0
    ):
        return _relative_attention_native(q, k, v, bias_u, bias_v, positions, visible)
    if chosen == TRITON and q.dtype != torch.float64:
        return _relative_attention_triton(q, k, v, bias_u, bias_v, positions, visible)
    return relative_attention_ref(q, k, v, bias_u, bias_v, positions, visible)
