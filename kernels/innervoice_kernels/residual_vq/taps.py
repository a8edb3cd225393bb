"""A convolution, time first   y_t = b + sum_j w_j x_{t + d j}
x: [B, T + d (k - 1), C]   w: [k, C, C']   ->   [B, T, C']

With kernel 2 s, a convolution of stride s and a transposed one are this too, of two taps: the first over s
columns side by side, the second with s C' channels that are then laid out in time. So a stream keeps columns
of its input alone, for a transposed one a single column, and all of it is matrix products on rows that lie as
they are. What a stream kept may be given beside what is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
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
from innervoice_kernels.native import floats, team
from innervoice_kernels.torch_layers import conv1d


@dataclass(frozen=True, eq=False)
class Taps:
    """weight [k, C, C'] and bias [C'] or None; stride: columns of the input a step, up:
    columns of the output a step.
    """

    weight: Tensor
    bias: Tensor | None
    dilation: int = 1
    stride: int = 1
    up: int = 1

    @property
    def past(self) -> int:
        """Columns of the input, unfolded, that lie before the first output."""
        return (len(self.weight) - 1) * self.dilation * self.stride

    @cached_property
    def native(self) -> _C.TapsConv:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed()

    def packed(self, isa: str | None = None) -> _C.TapsConv:
        """The same for other instructions. Raises ValueError for what is not there."""
        return _C.TapsConv(*self.layer, self.dilation, isa)

    @property
    def layer(self) -> tuple[Tensor, Tensor | None]:
        """Weight [C', k, C] and bias in float32."""
        return floats(self.weight.permute(2, 0, 1)), None if self.bias is None else floats(self.bias)


def conv_taps(weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1) -> Taps:
    """The taps of a convolution's weight [C', C, k]; with a stride, k = 2 stride and no dilation."""
    width = weight.shape[-1]
    assert stride == 1 or (width == 2 * stride and dilation == 1), (tuple(weight.shape), stride, dilation)
    taps = weight.permute(2, 1, 0)  # [k, C, C']
    return Taps(taps.reshape(width // stride, -1, len(weight)).contiguous(), bias, dilation, stride)


def transpose_taps(weight: Tensor, bias: Tensor | None, stride: int) -> Taps:
    """The taps of a transposed convolution's weight [C, C', 2 stride]."""
    channels, out, width = weight.shape
    assert width == 2 * stride, (tuple(weight.shape), stride)
    taps = weight.view(channels, out, 2, stride).permute(2, 0, 3, 1).reshape(2, channels, stride * out)
    return Taps(taps.flip(0).contiguous(), None if bias is None else bias.repeat(stride), up=stride)


def apply_taps_ref(x: Tensor, taps: Taps, before: Tensor | None = None) -> Tensor:
    """The definition, by torch's convolution: x [B, W, C] -> [B, T up, C' / up], T = W
    / stride - (k - 1) dilation.
    """
    x = x if before is None else torch.cat([before, x], 1)
    folded = x.reshape(len(x), x.shape[1] // taps.stride, x.shape[2] * taps.stride)
    y = conv1d(folded.mT, taps.weight.permute(2, 1, 0), taps.bias, dilation=taps.dilation).mT
    return y.reshape(len(x), y.shape[1] * taps.up, y.shape[2] // taps.up)


def _apply_taps_products(x: Tensor, taps: Taps) -> Tensor:
    """A product a tap over all rows at once; what the seams between rows give is left out."""
    rows, (num, channels, out) = len(x), taps.weight.shape
    width = x.shape[1] // taps.stride
    steps = width - (num - 1) * taps.dilation
    flat = x.reshape(rows * width, channels)
    if channels <= 4 < out:  # few channels: their taps side by side make one product
        columns = x.reshape(rows, width, channels).unfold(1, (num - 1) * taps.dilation + 1, 1)[
            ..., :: taps.dilation
        ]
        y = F.linear(
            columns.transpose(2, 3).reshape(rows * steps, -1), taps.weight.flatten(0, 1).T, taps.bias
        )
        return y.view(rows, steps * taps.up, -1)
    if out <= 4 < channels:  # few results: all taps of all columns at once, then shifted sums
        each = (flat @ taps.weight.transpose(0, 1).reshape(channels, num * out)).view(rows, width, num, out)
        y = sum(
            (each[:, j * taps.dilation : j * taps.dilation + steps, j] for j in range(1, num)),
            each[:, :steps, 0],
        )
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


def _apply_taps_native(x: Tensor, taps: Taps, before: Tensor | None) -> Tensor:
    new, past = (_folded(part, taps.stride) for part in (x, x[:, :0] if before is None else before))
    steps = past.shape[1] + new.shape[1] - (len(taps.weight) - 1) * taps.dilation
    y = torch.empty(len(x), max(0, steps), taps.weight.shape[2], dtype=torch.float32, device="cpu")
    taps.native(team(), past, new, y)
    return y.view(len(x), y.shape[1] * taps.up, y.shape[2] // taps.up)


def _folded(x: Tensor, stride: int) -> Tensor:
    return x.reshape(len(x), x.shape[1] // stride, x.shape[2] * stride).contiguous()


@jit
def window_rows(
    before: Ptr, x: Ptr, row: Block, place: Block, known: Block, k: Block, P: Num, T: Num, K: Num
) -> Block:  # fmt: skip
    """Load columns `place` of rows, [R, DEPTH]: the first P lie in `before`; 0 where a row is not known."""
    old, mask = place < P, (k < K)[None, :]
    past = tl.load(
        before + ((row * P + place) * K)[:, None] + k[None, :], mask=(known & old)[:, None] & mask, other=0.0
    )
    new = tl.load(
        x + ((row * T + place - P) * K)[:, None] + k[None, :],
        mask=(known & (place >= P))[:, None] & mask,
        other=0.0,
    )
    return tl.where(old[:, None], past, new)


@jit
def _taps_kernel(
    before: Ptr, x: Ptr, w: Ptr, bias: Ptr, y: Ptr, P: Count, T: Count, STEPS: Count, M: Count, K: Num, N: Num,
    TAPS: constexpr, DILATION: constexpr, BIAS: constexpr, ROWS: constexpr, DEPTH: constexpr,
    COLUMNS: constexpr,
) -> None:  # fmt: skip
    """ROWS steps, those of all rows of the batch in a line, and COLUMNS results a program."""
    m, column = (
        tl.program_id(0) * ROWS + tl.arange(0, ROWS),
        tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS),
    )
    known, is_column = m < M, column < N
    row, step = (m // STEPS).to(tl.int64), m % STEPS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in range(TAPS):
        for first in range(0, K, DEPTH):
            k = first + tl.arange(0, DEPTH)
            a = window_rows(before, x, row, step + tap * DILATION, known, k, P, T, K)
            place = w + (tap * K + k[:, None]) * N + column[None, :]
            total = dot(a, tl.load(place, mask=(k < K)[:, None] & is_column[None, :], other=0.0), total)
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out = y + m.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(out, narrow(total, y), mask=known[:, None] & is_column[None, :])


_FEW = 256  # steps from which on a tile has 64 of them


def _apply_taps_triton(x: Tensor, taps: Taps, before: Tensor) -> Tensor:
    new, past = _folded(x, taps.stride), _folded(before, taps.stride)
    num, depth, out = taps.weight.shape
    steps = max(0, past.shape[1] + new.shape[1] - (num - 1) * taps.dilation)
    y = torch.empty(len(x), steps, out, dtype=x.dtype, device=x.device)
    rows = 16 if len(x) * steps <= _FEW else 64
    bias = taps.weight if taps.bias is None else taps.bias
    launch(
        _taps_kernel, (cdiv(len(x) * steps, rows), cdiv(out, 64)), past, new, taps.weight.contiguous(), bias,
        y, past.shape[1], new.shape[1], steps, len(x) * steps, depth, out, TAPS=num, DILATION=taps.dilation,
        BIAS=taps.bias is not None, ROWS=rows, DEPTH=min(32, next_power(depth, 16)), COLUMNS=64,
        num_warps=4 if rows == 16 else 8, num_stages=2,
    )  # fmt: skip
    return y.view(len(x), steps * taps.up, out // taps.up)


def apply_taps(x: Tensor, taps: Taps, before: Tensor | None = None) -> Tensor:
    """Convolve without padding: x [B, W, C] -> [B, T up, C' / up], T = W / stride - (k - 1) dilation.

    before [B, P, C]: columns that count as x's first ones, whole strides of them. Products added up in a half
    type would be rounded at every tap: those types take torch's convolution where there is no kernel.
    """
    chosen = choose("apply_taps", x, has_native=True)
    if chosen == NATIVE and is_native(x, taps.weight):
        return _apply_taps_native(x, taps, before)
    if chosen == TRITON and before is not None and x.dtype != torch.float64:
        return _apply_taps_triton(x, taps, before)
    if x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        return apply_taps_ref(x, taps, before)
    return _apply_taps_products(x if before is None else torch.cat([before, x], 1), taps)


def is_native(x: Tensor, weight: Tensor) -> bool:
    """Whether native code convolves these: float32 on a CPU."""
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def apply_depthwise_ref(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """The definition, by torch's convolution: one filter a channel, weight [k, C], bias
    [C]; x [B, W, C] -> [B, T, C].
    """
    return conv1d(x.mT, weight.T[:, None], bias, dilation=dilation, groups=weight.shape[1]).mT


def apply_depthwise(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """Convolve each channel by itself, without padding: x [B, W, C] -> [B, W - (k - 1) dilation, C]."""
    return apply_depthwise_ref(x, weight, bias, dilation)
