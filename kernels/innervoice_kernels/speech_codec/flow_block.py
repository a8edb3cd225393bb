"""A transformer of the flow   y = x + out(attention(norm x));  y + down(gelu(up(norm y)))
x: [R, T, C]   ->   [R, T, C]

All frames of a row see each other; what lies beyond its true length is not seen. On a GPU it is two launches:
norm and projection to queries, keys and values; attention and everything behind it. (Matcha-TTS, Mehta et al.
2023)
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
_EPS = tl.constexpr(1e-5)


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
def _row_statistics(
    x: Ptr, place: Block, known: Block, C: constexpr, BLOCK_C: constexpr
) -> tuple[Block, Block]:  # fmt: skip
    """Mean and reciprocal deviation of rows of C channels, which begin at x + place."""
    column = tl.arange(0, BLOCK_C)
    mask = known[:, None] & (column < C)[None, :]
    value = tl.load(x + place[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=1) / C
    centred = tl.where(mask, value - mean[:, None], 0.0)
    return mean, 1 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / C + _EPS)


@jit
def _normed_part(
    x: Ptr, place: Block, known: Block, mean: Block, scale: Block, weight: Ptr, bias: Ptr, k: Block,
    C: constexpr
) -> Block:  # fmt: skip
    """Channels k of those rows, normalised, in x's type."""
    inside = k < C
    value = tl.load(x + place[:, None] + k[None, :], mask=known[:, None] & inside[None, :], other=0.0).to(
        tl.float32
    )
    w = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + k, mask=inside, other=0.0).to(tl.float32)
    return narrow((value - mean[:, None]) * scale[:, None] * w[None, :] + b[None, :], x)


@jit
def _flow_project_kernel(
    x: Ptr, norm: Ptr, norm_bias: Ptr, weight: Ptr, qkv: Ptr, M: Count, C: constexpr, COLUMNS: constexpr,
    BLOCK_C: constexpr, TILE: constexpr, WIDE: constexpr, DEPTH: constexpr,
) -> None:  # fmt: skip
    """TILE frames, of all rows in a line, and WIDE of their queries, keys and values a program."""
    frame, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    known, place = frame < M, frame.to(tl.int64) * C
    mean, scale = _row_statistics(x, place, known, C, BLOCK_C)
    total = tl.zeros([TILE, WIDE], tl.float32)
    for first in range(0, C, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a = _normed_part(x, place, known, mean, scale, norm, norm_bias, k, C)
        at = weight + column[None, :] * C + k[:, None]
        total = dot(a, tl.load(at, mask=(k < C)[:, None] & (column < COLUMNS)[None, :], other=0.0), total)
    to = qkv + frame.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(to, narrow(total, qkv), mask=known[:, None] & (column < COLUMNS)[None, :])


@jit
def _flow_block_kernel(
    x: Ptr, n: Ptr, qkv: Ptr, out: Ptr, out_bias: Ptr, norm: Ptr, norm_bias: Ptr, up: Ptr, up_bias: Ptr,
    down: Ptr, down_bias: Ptr, y: Ptr, T: Count, scale: Num, C: constexpr, H: constexpr, D: constexpr,
    F: constexpr, BLOCK_C: constexpr, BLOCK_D: constexpr, TILE: constexpr, KEYS: constexpr, HIDDEN: constexpr,
    DEPTH: constexpr,
) -> None:  # fmt: skip
    """TILE frames of a row a program: attention, a head at a time, into the residual; norm; the feed-forward,
    HIDDEN at a time.

    What attention leaves is written, since the norm's products read it again a part at a time; then the
    result takes its place.
    """
    row, frame = tl.program_id(1).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    length = tl.load(n + row).to(tl.int32)
    known = frame < length
    channel = tl.arange(0, BLOCK_C)
    wide = tl.arange(0, BLOCK_D)
    place = (row * T + frame) * C
    here = place[:, None] + channel[None, :]
    is_here = (frame < T)[:, None] & (channel < C)[None, :]
    if tl.program_id(0) * TILE >= length:
        tl.store(y + here, narrow(tl.zeros([TILE, BLOCK_C], tl.float32), y), mask=is_here)
        return
    is_known = known[:, None] & (channel < C)[None, :]
    is_query = known[:, None] & (wide < D)[None, :]
    total = tl.load(out_bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    total = total + tl.zeros([TILE, BLOCK_C], tl.float32)
    rows = qkv + row * T * (3 * H * D)
    for head in range(H):
        asked = tl.load(
            rows + frame[:, None] * (3 * H * D) + head * D + wide[None, :], mask=is_query, other=0.0
        )
        top = tl.full([TILE], float("-inf"), tl.float32)
        weight = tl.zeros([TILE], tl.float32)
        seen = tl.zeros([TILE, BLOCK_D], tl.float32)
        for first in range(0, length, KEYS):
            key = first + tl.arange(0, KEYS)
            inside = key < length
            at = rows + (H + head) * D + key[None, :] * (3 * H * D) + wide[:, None]
            keys = tl.load(at, mask=inside[None, :] & (wide < D)[:, None], other=0.0)
            score = dot(asked, keys, tl.zeros([TILE, KEYS], tl.float32)) * (scale * _LOG2E)
            score = tl.where(inside[None, :], score, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, axis=1))
            rescale = tl.exp2(top - new_top)
            p = tl.exp2(score - new_top[:, None])
            weight = weight * rescale + tl.sum(p, axis=1)
            at = rows + (2 * H + head) * D + key[:, None] * (3 * H * D) + wide[None, :]
            values = tl.load(at, mask=inside[:, None] & (wide < D)[None, :], other=0.0)
            seen = dot(narrow(p, qkv), values, seen * rescale[:, None])
            top = new_top
        at = out + channel[None, :] * (H * D) + head * D + wide[:, None]
        factors = tl.load(at, mask=(channel < C)[None, :] & (wide < D)[:, None], other=0.0)
        total = dot(narrow(seen / weight[:, None], qkv), factors, total)
    total = narrow(total, y).to(tl.float32) + tl.load(x + here, mask=is_known, other=0.0).to(tl.float32)
    tl.store(y + here, narrow(total, y), mask=is_known)
    tl.debug_barrier()  # all threads of this program read what they wrote
    mean, deviation = _row_statistics(y, place, known, C, BLOCK_C)
    total = tl.load(down_bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    total = total + tl.zeros([TILE, BLOCK_C], tl.float32)
    for low in range(0, F, HIDDEN):
        hidden = low + tl.arange(0, HIDDEN)
        inside = hidden < F
        made = tl.zeros([TILE, HIDDEN], tl.float32)
        for first in range(0, C, DEPTH):
            k = first + tl.arange(0, DEPTH)
            a = _normed_part(y, place, known, mean, deviation, norm, norm_bias, k, C)
            at = up + hidden[None, :] * C + k[:, None]
            made = dot(a, tl.load(at, mask=(k < C)[:, None] & inside[None, :], other=0.0), made)
        made += tl.load(up_bias + hidden, mask=inside, other=0.0).to(tl.float32)[None, :]
        made = narrow(made, y).to(tl.float32)
        made = 0.5 * made * (1 + tl.erf(made * 0.7071067811865476))
        at = down + channel[None, :] * F + hidden[:, None]
        factors = tl.load(at, mask=(channel < C)[None, :] & inside[:, None], other=0.0)
        total = dot(narrow(made, y), factors, total)
    total = narrow(total, y).to(tl.float32) + tl.load(y + here, mask=is_known, other=0.0).to(tl.float32)
    tl.debug_barrier()  # it is read by all before it is written
    tl.store(y + here, narrow(tl.where(known[:, None], total, 0.0), y), mask=is_here)


def _flow_block_triton(x: Tensor, n: Tensor | None, weights: TransformerWeights, heads: int) -> Tensor:
    rows, frames, channels = x.shape
    x = x.contiguous()
    inner = weights.qkv.shape[0] // 3
    hidden = weights.up[0].shape[0]
    lengths = torch.full((rows,), frames, device=x.device, dtype=torch.int64) if n is None else n.contiguous()
    qkv = torch.empty(rows, frames, 3 * inner, dtype=x.dtype, device=x.device)
    y = torch.empty(rows, frames, channels, dtype=x.dtype, device=x.device)
    is_float = x.dtype == torch.float32
    block = next_power(channels, 16)
    width = inner // heads
    depth = 16 if is_float else 64
    tile = 16 if is_float else 64
    launch(
        _flow_project_kernel, (cdiv(rows * frames, tile), cdiv(3 * inner, 64)), x,
        *_dense(weights.norm_attention), weights.qkv.contiguous(), qkv, rows * frames, C=channels,
        COLUMNS=3 * inner, BLOCK_C=block, TILE=tile, WIDE=64, DEPTH=min(depth, block),
        num_warps=4 if is_float else 8, num_stages=2,
    )  # fmt: skip
    tile = 16 if is_float else 32
    launch(
        _flow_block_kernel, (cdiv(frames, tile), rows), x, lengths, qkv, *_dense(weights.out),
        *_dense(weights.norm_ffn), *_dense(weights.up), *_dense(weights.down), y, frames, width**-0.5,
        C=channels, H=heads, D=width, F=hidden, BLOCK_C=block, BLOCK_D=next_power(width, 16), TILE=tile,
        KEYS=16 if is_float else 64, HIDDEN=16 if is_float else 64, DEPTH=min(depth, block), num_warps=8,
        num_stages=2,
    )  # fmt: skip
    return y


def _dense(pair: WeightAndBias) -> WeightAndBias:
    return pair[0].contiguous(), pair[1].contiguous()


def flow_block(x: Tensor, n: Tensor | None, weights: TransformerWeights, heads: int) -> Tensor:
    """A transformer over each row's own frames: x [R, T, C], n [R] or None -> y [R, T, C], undefined from
    n[r] on.

    On a CPU the stage that it is part of (flow_stage.py) has the native code.
    """
    if choose("flow_block", x) == TRITON and x.dtype != torch.float64:
        return _flow_block_triton(x, n, weights, heads)
    return flow_block_ref(x, n, weights, heads)
