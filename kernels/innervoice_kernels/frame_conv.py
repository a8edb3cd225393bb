"""Convolution over frames of true lengths   y_t = b + sum_j w_j x_{s t + j - pad}        x: [R, T, K]   ->   [R, T', N]

Frames from n[r] on count as zero; y is zero from the last frame that has one of x's behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, choose
from innervoice_kernels.conv import beyond
from innervoice_kernels.native import are_halves, floats, takes, taps_first, team


@dataclass(frozen=True, eq=False)
class FrameConvWeights:
    """weight [N, K, taps], bias [N]; pad frames of zeros before the first, taps - 1 - pad behind the last; stride s."""

    weight: Tensor
    bias: Tensor
    pad: int
    stride: int = 1

    @cached_property
    def native(self) -> _C.FrameConv:
        """The weights as native code reads them, packed when they are first used."""
        return _C.FrameConv(taps_first(self.weight), floats(self.bias), are_halves(self.weight))

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
    y = F.conv1d(F.pad(h, (weights.pad, behind)), weights.weight, weights.bias, stride)[..., :count]
    if n is not None:
        y = y.masked_fill(beyond((n + stride - 1) // stride, count)[:, None], 0)
    return y.transpose(1, 2)


def _frame_conv_native(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    rows, frames, _ = x.shape
    lengths = torch.full((rows,), frames) if n is None else n
    y = torch.empty(rows, weights.count(frames), weights.weight.shape[0])
    out_n = (lengths + weights.stride - 1) // weights.stride
    weights.native(team(), floats(x), lengths, weights.stride, weights.pad, y, out_n)
    return y.to(x.dtype)


def frame_conv(x: Tensor, n: Tensor | None, weights: FrameConvWeights) -> Tensor:
    """A convolution over each row's own frames: x [R, T, K], n [R] or None -> y [R, ceil(T / s), N]."""
    is_even = not are_halves(weights.weight) or x.shape[-1] % 2 == 0  # bfloat16 is multiplied in pairs
    if is_even and takes(x, weights.weight) and choose("frame_conv", x, has_native=True) == NATIVE:
        return _frame_conv_native(x, n, weights)
    return frame_conv_ref(x, n, weights)
