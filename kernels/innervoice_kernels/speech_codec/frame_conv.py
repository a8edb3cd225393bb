"""Convolution over frames of true lengths   y_t = b + sum_j w_j x_{s t + j - pad}
x: [R, T, K]   ->   [R, T', N]

Frames from n[r] on count as zero; y is zero from the last frame that has one of x's behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, narrow, next_power, tl
from innervoice_kernels.native import are_halves, floats, takes, taps_first, team
from innervoice_kernels.speech_codec.conv import beyond
from innervoice_kernels.streams import laid_out
from innervoice_kernels.torch_layers import conv1d

_ROWS = 64  # frames a program, however many there are: one kernel for all lengths


@dataclass(frozen=True, eq=False)
class FrameConvWeights:
    """weight [N, K, taps], bias [N]; pad frames of zeros before the first, taps - 1 -
    pad behind the last; stride s.
    """

    weight: Tensor
    bias: Tensor
    pad: int
    stride: int = 1

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.weight.device

    @cached_property
    def native(self) -> _C.FrameConv:
        """The weights as native code reads them, packed when they are first used."""
        return _C.FrameConv(taps_first(self.weight), floats(self.bias), are_halves(self.weight))

    @laid_out
    def taps(self) -> Tensor:
        """The weight as the Triton kernel reads it: [taps, K, N]."""
        return self.weight.permute(2, 1, 0).contiguous()

    def count(self, frames: int) -> int:
        """Frames of the result."""
        return -(-frames // self.stride)


def frame_conv_ref(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    """The definition. n None: all rows have T frames."""
    frames, stride = x.shape[1], weights.stride
    count = weights.count(frames)
    h = x.transpose(1, 2)
    if n is not None:
        h = h.masked_fill(beyond(n, frames)[:, None], 0)
    taps = weights.weight.shape[2]
    behind = max(0, (count - 1) * stride + taps - weights.pad - frames)
    y = conv1d(F.pad(h, (weights.pad, behind)), weights.weight, weights.bias, stride)[..., :count]
    if n is not None:
        y = y.masked_fill(beyond((n + stride - 1) // stride, count)[:, None], 0)
    return y.transpose(1, 2)


def _frame_conv_native(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    rows, frames, _ = x.shape
    lengths = torch.full((rows,), frames, dtype=torch.int64, device="cpu") if n is None else n
    y = torch.empty(rows, weights.count(frames), weights.weight.shape[0], dtype=torch.float32, device="cpu")
    out_n = (lengths + weights.stride - 1) // weights.stride
    weights.native(team(), floats(x), lengths, weights.stride, weights.pad, y, out_n)
    return y.to(x.dtype)


@jit
def _frame_conv_kernel(
    x: Ptr, n: Ptr, w: Ptr, bias: Ptr, y: Ptr, T: Count, OUT: Count, K: Num, N: Num, TAPS: constexpr,
    PAD: constexpr, STRIDE: constexpr, ROWS: constexpr, DEPTH: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """ROWS frames of one row of the batch and COLUMNS results a program; w [TAPS, K, N]."""
    row = tl.program_id(2).to(tl.int64)
    frame, column = (
        tl.program_id(0) * ROWS + tl.arange(0, ROWS),
        tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS),
    )
    is_column, count = column < N, tl.load(n + row)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in range(TAPS):
        place = frame * STRIDE + tap - PAD
        is_frame = (place >= 0) & (place < count)
        for first in range(0, K, DEPTH):
            k = first + tl.arange(0, DEPTH)
            a = tl.load(
                x + ((row * T + place) * K)[:, None] + k[None, :],
                mask=is_frame[:, None] & (k < K)[None, :],
                other=0.0,
            )
            weights = w + (tap * K + k[:, None]) * N + column[None, :]
            total = dot(a, tl.load(weights, mask=(k < K)[:, None] & is_column[None, :], other=0.0), total)
    total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    total = tl.where((frame * STRIDE < count)[:, None], total, 0.0)
    out = y + (row * OUT + frame)[:, None] * N + column[None, :]
    tl.store(out, narrow(total, y), mask=(frame < OUT)[:, None] & is_column[None, :])


def _frame_conv_triton(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    (rows, frames, depth), (taps, _, out) = x.shape, weights.taps.shape
    lengths = torch.full((rows,), frames, device=x.device, dtype=torch.int64) if n is None else n
    count = weights.count(frames)
    y = torch.empty(rows, count, out, dtype=x.dtype, device=x.device)
    launch(
        _frame_conv_kernel, (cdiv(count, _ROWS), cdiv(out, 64), rows), x.contiguous(), lengths, weights.taps,
        weights.bias, y, frames, count, depth, out, TAPS=taps, PAD=weights.pad, STRIDE=weights.stride,
        ROWS=_ROWS, DEPTH=min(32, next_power(depth, 16)), COLUMNS=64, num_warps=8,
        num_stages=2,
    )  # fmt: skip
    return y


def frame_conv(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    """A convolution over each row's own frames: x [R, T, K], n [R] or None -> y [R, ceil(T / s), N]."""
    chosen = choose("frame_conv", x, has_native=True)
    is_even = not are_halves(weights.weight) or x.shape[-1] % 2 == 0  # bfloat16 is multiplied in pairs
    if chosen == NATIVE and is_even and takes(x, weights.weight):
        return _frame_conv_native(x, n, weights)
    if chosen == TRITON and x.dtype != torch.float64:
        return _frame_conv_triton(x, n, weights)
    return frame_conv_ref(x, n, weights)
