"""The convolution of the vocoder's residual unit as one kernel: taps times channels on the tensor
cores, bias, bounds, residual.

y_t = r_{t + skip} + [b + sum_j w_j z_{t + d j}],  the bracket zero outside the bounds.
z: [B, C, W]   ->   [B, C, T]
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, narrow, tl


@jit
def _residual_conv_kernel(
    z: Ptr, w: Ptr, bias: Ptr, start: Ptr, end: Ptr, r: Ptr, y: Ptr, delay: Count, skip: Count, W: Count, R: Count,
    T: Num, C: constexpr, TAPS: constexpr, DILATION: constexpr, CLIP: constexpr, ADD: constexpr,
    OUT: constexpr, DEPTH: constexpr, STEPS: constexpr,
) -> None:  # fmt: skip
    """OUT channels by STEPS columns of one row a program; w [TAPS, C, C], outputs first; r [B, C, R]."""
    row = tl.program_id(2).to(tl.int64)
    out = tl.program_id(1) * OUT + tl.arange(0, OUT)
    step = tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([OUT, STEPS], tl.float32)
    for tap in range(TAPS):
        for first in range(0, C, DEPTH):
            channel = first + depth
            known = channel < C
            weights = tl.load(
                w + (tap * C + out[:, None]) * C + channel[None, :],
                mask=(out < C)[:, None] & known[None, :],
                other=0.0,
            )
            place = (row * C + channel[:, None]) * W + (step + tap * DILATION)[None, :]
            values = tl.load(z + place, mask=known[:, None] & (step < T)[None, :], other=0.0)
            total = dot(weights, values, total)
    total += tl.load(bias + out, mask=out < C, other=0.0).to(tl.float32)[:, None]
    if CLIP:
        position = tl.load(start + row) - delay + step
        total = tl.where(((position >= 0) & (position < tl.load(end + row)))[None, :], total, 0.0)
    mask = (out < C)[:, None] & (step < T)[None, :]
    if ADD:
        total = narrow(total, y).to(tl.float32)  # the reference rounds before it adds
        total += tl.load(r + (row * C + out[:, None]) * R + (step + skip)[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(y + (row * C + out[:, None]) * T + step[None, :], narrow(total, y), mask=mask)


def residual_conv(
    z: Tensor,
    taps: Tensor,
    bias: Tensor,
    dilation: int,
    bounds: tuple[Tensor, Tensor] | None,
    delay: int,
    r: Tensor | None,
    skip: int,
) -> Tensor:
    """z [B, C, W], taps [k, C, C], bias [C] -> y [B, C, W - (k - 1) d].

    bounds: those of column 0, from which delay is taken. r [B, C, R]: joins from column
    skip on, None: nothing does.
    """
    rows, channels, window = z.shape
    count = taps.shape[0]
    steps = window - (count - 1) * dilation
    y = torch.empty(rows, channels, steps, dtype=z.dtype, device=z.device)
    start, end = (y, y) if bounds is None else bounds
    other = z if r is None else r
    out, wide = (64, 64) if z.dtype == torch.float32 else (128, 64)
    launch(
        _residual_conv_kernel, (cdiv(steps, wide), cdiv(channels, out), rows), z, taps, bias, start, end,
        other, y, delay, skip, window, other.shape[-1], steps, C=channels, TAPS=count, DILATION=dilation,
        CLIP=bounds is not None, ADD=r is not None, OUT=out, DEPTH=32, STEPS=wide, num_warps=8, num_stages=3,
    )  # fmt: skip
    return y
