"""A convolution, time first   y_t = b + sum_j w_j x_{t + d j}        x: [B, T + d (k - 1), C]   w: [k, C, C']   ->   [B, T, C']

With kernel 2 s, a convolution of stride s and a transposed one are this too, of two taps: the first over s columns side by side,
the second with s C' channels that are then laid out in time. So a stream keeps columns of its input alone, for a transposed one a
single column, and all of it is matrix products on rows that lie as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Taps(NamedTuple):
    """weight [k, C, C'] and bias [C'] or None; stride: columns of the input a step, up: columns of the output a step."""

    weight: Tensor
    bias: Tensor | None
    dilation: int = 1
    stride: int = 1
    up: int = 1

    @property
    def past(self) -> int:
        """Columns of the input, unfolded, that lie before the first output."""
        return (len(self.weight) - 1) * self.dilation * self.stride


def conv_taps(weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1) -> Taps:
    """Of a convolution's weight [C', C, k]; with a stride, k = 2 stride and no dilation."""
    width = weight.shape[-1]
    assert stride == 1 or (width == 2 * stride and dilation == 1), (tuple(weight.shape), stride, dilation)
    taps = weight.permute(2, 1, 0)  # [k, C, C']
    return Taps(taps.reshape(width // stride, -1, len(weight)).contiguous(), bias, dilation, stride)


def transpose_taps(weight: Tensor, bias: Tensor | None, stride: int) -> Taps:
    """Of a transposed convolution's weight [C, C', 2 stride]."""
    channels, out, width = weight.shape
    assert width == 2 * stride, (tuple(weight.shape), stride)
    taps = weight.view(channels, out, 2, stride).permute(2, 0, 3, 1).reshape(2, channels, stride * out)
    return Taps(taps.flip(0).contiguous(), None if bias is None else bias.repeat(stride), up=stride)


def apply_taps_ref(x: Tensor, taps: Taps) -> Tensor:
    """The definition, by torch's convolution: x [B, W, C] -> [B, T up, C' / up], T = W / stride - (k - 1) dilation."""
    folded = x.reshape(len(x), x.shape[1] // taps.stride, x.shape[2] * taps.stride)
    y = F.conv1d(folded.mT, taps.weight.permute(2, 1, 0), taps.bias, dilation=taps.dilation).mT
    return y.reshape(len(x), y.shape[1] * taps.up, y.shape[2] // taps.up)


def _apply_taps_products(x: Tensor, taps: Taps) -> Tensor:
    """A product a tap over all rows at once; what the seams between rows give is left out."""
    rows, (num, channels, out) = len(x), taps.weight.shape
    width = x.shape[1] // taps.stride
    steps = width - (num - 1) * taps.dilation
    flat = x.reshape(rows * width, channels)
    if channels <= 4 < out:  # few channels: their taps side by side make one product
        columns = x.reshape(rows, width, channels).unfold(1, (num - 1) * taps.dilation + 1, 1)[..., :: taps.dilation]
        y = F.linear(columns.transpose(2, 3).reshape(rows * steps, -1), taps.weight.flatten(0, 1).T, taps.bias)
        return y.view(rows, steps * taps.up, -1)
    if out <= 4 < channels:  # few results: all taps of all columns at once, then shifted sums
        each = (flat @ taps.weight.transpose(0, 1).reshape(channels, num * out)).view(rows, width, num, out)
        y = sum((each[:, j * taps.dilation : j * taps.dilation + steps, j] for j in range(1, num)), each[:, :steps, 0])
        return y if taps.bias is None else y + taps.bias
    used = rows * width - (num - 1) * taps.dilation
    y = flat.new_empty(rows * width, out)
    if taps.bias is None:
        torch.mm(flat[:used], taps.weight[0], out=y[:used])
    else:
        torch.addmm(taps.bias, flat[:used], taps.weight[0], out=y[:used])
    for j in range(1, num):
        y[:used].addmm_(flat[j * taps.dilation : j * taps.dilation + used], taps.weight[j])
    return y.view(rows, width, out)[:, :steps].reshape(rows, steps * taps.up, -1)


def apply_taps(x: Tensor, taps: Taps) -> Tensor:
    """Convolve without padding: x [B, W, C] -> [B, T up, C' / up], T = W / stride - (k - 1) dilation.

    Products added up in a half type would be rounded at every tap: those types take torch's convolution.
    """
    whole = x.numel() > 0 and x.dtype in (torch.float32, torch.float64)
    return _apply_taps_products(x, taps) if whole else apply_taps_ref(x, taps)


def apply_depthwise_ref(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """The definition, by torch's convolution: one filter a channel, weight [k, C], bias [C]; x [B, W, C] -> [B, T, C]."""
    return F.conv1d(x.mT, weight.T[:, None], bias, dilation=dilation, groups=weight.shape[1]).mT


def apply_depthwise(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """Convolve each channel by itself, without padding: x [B, W, C] -> [B, W - (k - 1) dilation, C]."""
    return apply_depthwise_ref(x, weight, bias, dilation)
