"""GroupNorm over true lengths, then Mish   y = mish((x - mean) / sqrt(var + eps) * w + b)
x: [B, C, T]   ->   [B, C, T]

mean and var of row b: over the group's channels and the first n[b] columns.
(Wu and He 2018; Misra 2019)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Num, Ptr, constexpr, jit, launch, narrow, next_power, tl
from innervoice_kernels.native import floats, team
from innervoice_kernels.speech_codec.activation_blocks import mish
from innervoice_kernels.speech_codec.conv import beyond

# Values of a group that a program holds: 16 a thread of 8 warps, however long the rows are, so that one kernel
# serves them all and a sum is the same however far its row is padded.
_TILE = 4096


def group_norm_mish_ref(
    x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5
) -> Tensor:
    """The definition, in float32 or wider inside.

    Columns from n on come out as zero; a row of length 0 is zero.
    """
    rows, channels, steps = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    outside = beyond(n, steps)[:, None]  # [B, 1, T]
    grouped = (rows, groups, channels // groups * steps)
    y = x.to(wide).masked_fill(outside, 0).reshape(grouped)
    count = (n * (channels // groups)).clamp(min=1).to(wide)[:, None, None]  # [B, 1, 1]
    centred = (
        (y - y.sum(-1, keepdim=True) / count)
        .view(rows, channels, steps)
        .masked_fill(outside, 0)
        .reshape(grouped)
    )
    variance = centred.square().sum(-1, keepdim=True) / count
    normed = (centred / (variance + eps).sqrt()).view(rows, channels, steps)
    y = F.mish(normed * weight.to(wide)[:, None] + bias.to(wide)[:, None])
    return y.masked_fill(outside, 0).to(x.dtype)


def group_norm_mish(
    x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5
) -> Tensor:
    """Normalise each row over its own length, then Mish: x [B, C, T], n [B], weight and bias [C]."""
    chosen = choose("group_norm_mish", x, has_native=True)
    if chosen == NATIVE and x.dtype == torch.float32:
        return _group_norm_mish_native(x, n, weight, bias, groups, eps)
    if chosen == TRITON and x.dtype != torch.float64:
        return _group_norm_mish_triton(x, n, weight, bias, groups, eps)
    return group_norm_mish_ref(x, n, weight, bias, groups, eps)


def _group_norm_mish_native(
    x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, isa: str | None = None
) -> Tensor:
    y = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    _C.group_norm_mish(team(), x.contiguous(), n, floats(weight), floats(bias), groups, eps, y, isa)
    return y


@jit
def _group_norm_mish_kernel(
    x: Ptr, n: Ptr, weight: Ptr, bias: Ptr, y: Ptr, x_row: Num, x_channel: Num, x_step: Num, T: Num, eps: Num,
    C: constexpr, WIDTH: constexpr, BLOCK: constexpr, STEPS: constexpr,
) -> None:  # fmt: skip
    """A program normalises one group of WIDTH channels of one row: mean, then
    variance around it, then the result.
    """
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(n + row).to(tl.int32)
    lane, step = tl.arange(0, BLOCK), tl.arange(0, STEPS)
    channel = group * WIDTH + lane
    x += row * x_row + channel[:, None] * x_channel
    y += (row * C + channel[:, None]) * T
    inside = (lane < WIDTH)[:, None]
    total = tl.zeros([BLOCK, STEPS], tl.float32)
    for first in range(0, length, STEPS):
        t = (first + step)[None, :]
        total += tl.load(x + t * x_step, mask=inside & (t < length), other=0.0).to(tl.float32)
    count = tl.maximum(length * WIDTH, 1).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / count
    square = tl.zeros([BLOCK, STEPS], tl.float32)
    for first in range(0, length, STEPS):
        t = (first + step)[None, :]
        there = inside & (t < length)
        centred = tl.load(x + t * x_step, mask=there, other=0.0).to(tl.float32) - mean
        square += tl.where(there, centred * centred, 0.0)
    scale = 1 / tl.sqrt_rn(tl.sum(tl.sum(square, axis=1), axis=0) / count + eps)
    w = tl.load(weight + channel, mask=lane < WIDTH, other=0.0).to(tl.float32)[:, None]
    b = tl.load(bias + channel, mask=lane < WIDTH, other=0.0).to(tl.float32)[:, None]
    for first in range(0, T, STEPS):
        t = (first + step)[None, :]
        value = tl.load(x + t * x_step, mask=inside & (t < length), other=0.0).to(tl.float32)
        made = tl.where(t < length, mish((value - mean) * scale * w + b), 0.0)
        tl.store(y + t, narrow(made, y), mask=inside & (t < T))


def _group_norm_mish_triton(
    x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> Tensor:
    rows, channels, steps = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = channels // groups
    block = next_power(width)
    launch(
        _group_norm_mish_kernel, (rows, groups), x, n, weight.contiguous(), bias.contiguous(), y, *x.stride(),
        steps, eps, C=channels, WIDTH=width, BLOCK=block,
        STEPS=max(16, _TILE // block), num_warps=8,
    )  # fmt: skip
    return y
