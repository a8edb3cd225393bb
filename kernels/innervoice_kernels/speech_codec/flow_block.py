"""A transformer of the flow   y = x + out(attention(norm x));  y + down(gelu(up(norm y)))
x: [R, T, C]   ->   [R, T, C]

All frames of a row see each other; what lies beyond its true length is not seen. On a GPU it is seven launches:
attention has a program for each head and piece of a row, the products one for each piece and some columns; the
norms are torch's. (Matcha-TTS, Mehta et al. 2023)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import (
    Block,
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    dot,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.native import WeightAndBias
from innervoice_kernels.speech_codec.conv import beyond

_LOG2E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, eq=False)
class TransformerWeights:
    """Weight and bias of norms [C] and linear maps; qkv [3 H d, C] has no bias."""

    norm_attention: WeightAndBias
    qkv: Tensor
    out: WeightAndBias
    norm_ffn: WeightAndBias
    up: WeightAndBias
    down: WeightAndBias


def flow_block_ref(x: Tensor, n: Tensor | None, weights: TransformerWeights, heads: int) -> Tensor:
    """The definition. n [R]: true lengths, None: all rows have T. Frames from n[r] on are undefined."""
    rows, frames, channels = x.shape
    visible = None if n is None else ~beyond(n, frames)[:, None, None]  # [R, 1, 1, T]
    normed = F.layer_norm(x, (channels,), *weights.norm_attention, 1e-5)
    inner = weights.qkv.shape[0] // 3
    q, k, v = (
        F.linear(normed, weights.qkv).view(rows, frames, 3, heads, inner // heads).permute(2, 0, 3, 1, 4)
    )
    attended = F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).reshape(rows, frames, inner)
    x = x + F.linear(attended, *weights.out)
    normed = F.layer_norm(x, (channels,), *weights.norm_ffn, 1e-5)
    return x + F.linear(F.gelu(F.linear(normed, *weights.up)), *weights.down)


@jit
def _length(n: Ptr, row: Block, T: Count) -> Block:
    """Frames of a row: n[row], or T without n."""
    length = T
    if n is not None:
        length = tl.load(n + row).to(tl.int32)
    return length


@jit
def _flow_linear_kernel(
    x: Ptr, n: Ptr, weight: Ptr, bias: Ptr, beside: Ptr, y: Ptr, T: Count, DEPTHS: constexpr,
    COLUMNS: constexpr, GELU: constexpr, TILE: constexpr, WIDE: constexpr, DEPTH: constexpr,
) -> None:  # fmt: skip
    """TILE frames of a row and WIDE columns of y = beside + gelu(weight x + bias) a program.

    x: [R, T, DEPTHS]; y, beside: [R, T, COLUMNS]. Without bias, beside or GELU that part is left out.
    """
    row, frame = tl.program_id(2).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    length = _length(n, row, T)
    if tl.program_id(0) * TILE >= length:
        return
    known, is_column = frame < length, column < COLUMNS
    place = x + ((row * T + frame) * DEPTHS)[:, None]
    total = tl.zeros([TILE, WIDE], tl.float32)
    for first in range(0, DEPTHS, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a = tl.load(place + k[None, :], mask=known[:, None] & (k < DEPTHS)[None, :], other=0.0)
        at = weight + column[None, :] * DEPTHS + k[:, None]
        total = dot(a, tl.load(at, mask=(k < DEPTHS)[:, None] & is_column[None, :], other=0.0), total)
    if bias is not None:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    made = narrow(total, y).to(tl.float32)
    if GELU:
        made = 0.5 * made * (1 + tl.erf(made * 0.7071067811865476))
    here = (row * T + frame)[:, None] * COLUMNS + column[None, :]
    mask = known[:, None] & is_column[None, :]
    if beside is not None:
        made += tl.load(beside + here, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + here, narrow(made, y), mask=mask)


@jit
def _flow_attend_kernel(
    qkv: Ptr, n: Ptr, y: Ptr, T: Count, scale: Num, H: constexpr, D: constexpr, BLOCK_D: constexpr,
    TILE: constexpr, KEYS: constexpr,
) -> None:  # fmt: skip
    """TILE frames of a head of a row a program, which see all frames of their row: y [R, T, H, D]."""
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    frame, wide = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    length = _length(n, row, T)
    if tl.program_id(0) * TILE >= length:
        return
    rows = qkv + row * T * (3 * H * D) + head * D
    is_query = (frame < length)[:, None] & (wide < D)[None, :]
    asked = tl.load(rows + frame[:, None] * (3 * H * D) + wide[None, :], mask=is_query, other=0.0)
    factor = scale * _LOG2E
    top = tl.full([TILE], float("-inf"), tl.float32)
    weight = tl.zeros([TILE], tl.float32)
    seen = tl.zeros([TILE, BLOCK_D], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < length
        at = rows + H * D + key[None, :] * (3 * H * D) + wide[:, None]
        keys = tl.load(at, mask=inside[None, :] & (wide < D)[:, None], other=0.0)
        score = dot(asked, keys, tl.zeros([TILE, KEYS], tl.float32))
        score = tl.where(inside[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1) * factor)
        rescale = tl.exp2(top - new_top)
        p = tl.exp2(score * factor - new_top[:, None])
        weight = weight * rescale + tl.sum(p, axis=1)
        at = rows + 2 * H * D + key[:, None] * (3 * H * D) + wide[None, :]
        values = tl.load(at, mask=inside[:, None] & (wide < D)[None, :], other=0.0)
        seen = dot(narrow(p, qkv), values, seen * rescale[:, None])
        top = new_top
    here = (row * T + frame)[:, None] * (H * D) + head * D + wide[None, :]
    tl.store(y + here, narrow(seen / weight[:, None], y), mask=is_query)


def _flow_block_triton(x: Tensor, n: Tensor | None, weights: TransformerWeights, heads: int) -> Tensor:
    x, n = x.contiguous(), None if n is None else n.contiguous()
    rows, frames, channels = x.shape
    inner = weights.qkv.shape[0] // 3
    tile = 16 if x.dtype == torch.float32 else 64
    qkv = _linear(F.layer_norm(x, (channels,), *weights.norm_attention, 1e-5), n, weights.qkv)
    attended = torch.empty(rows, frames, inner, dtype=x.dtype, device=x.device)
    launch(
        _flow_attend_kernel, (cdiv(frames, tile), heads, rows), qkv, n, attended, frames,
        (inner // heads) ** -0.5, H=heads, D=inner // heads, BLOCK_D=next_power(inner // heads, 16),
        TILE=tile, KEYS=tile, num_warps=4, num_stages=2,
    )  # fmt: skip
    x = _linear(attended, n, *weights.out, beside=x)
    hidden = _linear(F.layer_norm(x, (channels,), *weights.norm_ffn, 1e-5), n, *weights.up, is_gelu=True)
    return _linear(hidden, n, *weights.down, beside=x)


def _linear(
    x: Tensor,
    n: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    beside: Tensor | None = None,
    is_gelu: bool = False,
) -> Tensor:
    """beside + gelu(weight x + bias) over the frames of each row, by one launch: what is None is left out."""
    rows, frames, depths = x.shape
    columns = weight.shape[0]
    y = torch.empty(rows, frames, columns, dtype=x.dtype, device=x.device)
    is_float = x.dtype == torch.float32
    # Eight tiles side by side: with the frames of one reply, programs for all multiprocessors.
    wide = 64 if is_float else min(128, next_power(cdiv(columns, 8), 32))
    launch(
        _flow_linear_kernel, (cdiv(frames, 16 if is_float else 64), cdiv(columns, wide), rows), x, n,
        weight.contiguous(), None if bias is None else bias.contiguous(), beside, y, frames, DEPTHS=depths,
        COLUMNS=columns, GELU=is_gelu, TILE=16 if is_float else 64, WIDE=wide,
        DEPTH=16 if is_float else min(64, next_power(depths, 16)), num_warps=4,
        num_stages=2 if is_float else 3,
    )  # fmt: skip
    return y


def flow_block(x: Tensor, n: Tensor | None, weights: TransformerWeights, heads: int) -> Tensor:
    """A transformer over each row's own frames: x [R, T, C], n [R] or None -> y [R, T, C], undefined from
    n[r] on.

    On a CPU the stage that it is part of (flow_stage.py) has the native code.
    """
    if choose("flow_block", x) == TRITON and x.dtype != torch.float64:
        return _flow_block_triton(x, n, weights, heads)
    return flow_block_ref(x, n, weights, heads)
