"""The vocoder's convolutions, over a stream   y = b + w * leaky(z),  z = state ++ x
x: [B, C, T]  ->   [B, C', T u / s]

Of stride s, y_t = b + sum_j w_j leaky(z_{s t + d j}); transposed, y_{u t + v} = b + sum_i w_{v + u i}
leaky(z_{t - i}). Both keep the inputs that they look back at, whole strides of them. A stream cut anywhere
gives what one call over the whole gives. An output is as late as its look-ahead: with zeros as the first
state, column t of a centred convolution's result is position t - p of the whole, p the padding to the right.
A leaky ReLU goes before; slope 1: none. Clipping to a reply's bounds goes behind.
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
from innervoice_kernels.native import floats, takes, team
from innervoice_kernels.speech_codec.conv import shifted
from innervoice_kernels.speech_codec.residual import StreamEdges, clip
from innervoice_kernels.streams import laid_out
from innervoice_kernels.torch_layers import conv1d, conv_transpose1d

_STEPS = 64  # of a tile, however many there are: one kernel for all lengths


@dataclass(frozen=True, eq=False)
class StreamConvWeights:
    """weight [C', C, k], or transposed [C, C', k] with k of at least a stride, no dilation; bias [C'] or
    None.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    dilation: int = 1
    is_transposed: bool = False
    slope: float = 1.0

    @property
    def reach(self) -> int:
        """From the first tap to the last one, both counted."""
        return (self.weight.shape[-1] - 1) * self.dilation + 1

    @property
    def past(self) -> int:
        """Columns of the input that a stream keeps."""
        return (cdiv(self.reach, self.stride) - 1) * (1 if self.is_transposed else self.stride)

    @property
    def up(self) -> int:
        """Columns of the output a step."""
        return self.stride if self.is_transposed else 1

    @property
    def out_channels(self) -> int:
        """The number of output channels C'."""
        return self.weight.shape[1 if self.is_transposed else 0]

    def widened(self, dtype: torch.dtype) -> StreamConvWeights:
        """The same in another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return StreamConvWeights(
            self.weight.to(dtype), bias, self.stride, self.dilation, self.is_transposed, self.slope
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.weight.device

    @laid_out
    def columns(self) -> tuple[Tensor, Tensor, int]:
        """Weight [C' u, taps, s, C], bias [C' u] and the dilation of the taps: a step of s columns in, u
        columns out.

        Taps that are not there have zeros.
        """
        weight, stride = self.weight, self.stride
        bias = weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        if self.is_transposed:
            weight = torch.unflatten(
                F.pad(weight, (0, -weight.shape[-1] % stride)), 2, (-1, stride)
            )  # [C, C', taps, u]
            steps = weight.flip(2).permute(1, 3, 2, 0).flatten(0, 1)
            return steps[:, :, None].contiguous(), bias.repeat_interleave(stride), 1
        if stride == 1:
            return weight.mT[:, :, None].contiguous(), bias, self.dilation
        spread = weight.new_zeros(*weight.shape[:2], self.past + stride)
        spread[..., -self.reach :: self.dilation] = weight
        return torch.unflatten(spread, 2, (-1, stride)).permute(0, 2, 3, 1).contiguous(), bias, 1

    @cached_property
    def native(self) -> _C.StreamConv:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed()

    def packed(self, isa: str | None = None) -> _C.StreamConv:
        """The same for other instructions. Raises ValueError for what is not there."""
        weight, bias, dilation = self.columns
        stride = 1 if self.is_transposed else self.stride
        return _C.StreamConv(
            floats(weight.flatten(2)), floats(bias), dilation, stride, self.up, self.slope, isa
        )

    @property
    def has_double(self) -> bool:
        """Whether native code takes it in float64: a plain convolution."""
        return (
            self.weight.dtype == torch.float64
            and self.stride == 1
            and not self.is_transposed
            and self.slope == 1
        )

    @cached_property
    def native_double(self) -> _C.DoubleConv:
        """`native` in float64."""
        return self.packed_double()

    def packed_double(self, isa: str | None = None) -> _C.DoubleConv:
        """`packed` in float64."""
        weight, bias, dilation = self.columns
        return _C.DoubleConv(weight.flatten(2).detach(), bias.detach().contiguous(), dilation, isa)

    @laid_out
    def taps(self) -> tuple[Tensor, Tensor, int]:
        """Weight [taps s, C' u, C], bias [C' u] and the taps' dilation, as the Triton kernel reads them."""
        weight, bias, dilation = self.columns
        return weight.permute(1, 2, 0, 3).flatten(0, 1).contiguous(), bias, dilation


def _bent(x: Tensor, slope: float) -> Tensor:
    return x if slope == 1 else F.leaky_relu(x, slope)


def stream_conv_ref(
    x: Tensor, state: Tensor, n: Tensor, weights: StreamConvWeights, bounds: StreamEdges | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, by torch's convolutions: state [B, C, weights.past]; the stride divides n, unless it is
    transposed.
    """
    window = torch.cat([state, x], -1)
    h = _bent(window, weights.slope)
    past = weights.past
    stride = weights.stride
    if weights.is_transposed:
        y = conv_transpose1d(h, weights.weight, weights.bias, stride)[
            ..., past * stride : h.shape[-1] * stride
        ]
    else:
        unused = past + stride - weights.reach
        y = conv1d(h[..., unused:], weights.weight, weights.bias, stride, 0, weights.dilation)
    return clip(y, bounds), shifted(window, n, past)


def stream_conv(
    x: Tensor, state: Tensor, n: Tensor, weights: StreamConvWeights, bounds: StreamEdges | None = None
) -> tuple[Tensor, Tensor]:
    """One chunk through a convolution: x [B, C, T], n [B] columns of each row -> y [B, C', T u / s], state'.

    y is 0 outside the bounds, those of its first column; what it holds beyond a row's own columns is
    undefined. A row with n = 0 keeps its state bit by bit.
    """
    chosen = choose("stream_conv", x, has_native=True)
    if chosen == NATIVE and takes(x, weights.weight):
        return _stream_conv_native(x, state, n, weights, bounds)
    if chosen == NATIVE and x.device.type == "cpu" and x.dtype == torch.float64 and weights.has_double:
        return _stream_conv_double(x, state, n, weights, bounds)
    if chosen == TRITON and x.dtype != torch.float64:
        y = _conv_triton(state, x, 0, _columns(x, weights), weights, bounds)
        return y, shifted(torch.cat([state, x], -1), n, weights.past)
    return stream_conv_ref(x, state, n, weights, bounds)


def _stream_conv_native(
    x: Tensor,
    state: Tensor,
    n: Tensor,
    weights: StreamConvWeights,
    bounds: StreamEdges | None,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    before = floats(state)
    y, after = (
        torch.empty(len(x), weights.out_channels, _columns(x, weights), dtype=torch.float32, device="cpu"),
        torch.empty_like(before),
    )
    native = weights.native if isa is None else weights.packed(isa)
    native(team(), before, floats(x), 0, bounds, y, (n, after))
    return y.to(x.dtype), after.to(x.dtype)


def _stream_conv_double(
    x: Tensor,
    state: Tensor,
    n: Tensor,
    weights: StreamConvWeights,
    bounds: StreamEdges | None,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    before, given = state.detach().contiguous(), x.detach().contiguous()
    y, after = x.new_empty(len(x), weights.out_channels, x.shape[-1]), torch.empty_like(before)
    native = weights.native_double if isa is None else weights.packed_double(isa)
    native(team(), before, given, bounds, y, n, after)
    return y, after


def _columns(x: Tensor, weights: StreamConvWeights) -> int:
    return x.shape[-1] * weights.up if weights.is_transposed else x.shape[-1] // weights.stride


def whole_conv_ref(x: Tensor, weights: StreamConvWeights, padding: int) -> Tensor:
    """The same of a whole signal between zeros, by torch's convolutions with their padding."""
    h, layer = _bent(x, weights.slope), (weights.weight, weights.bias, weights.stride, padding)
    return conv_transpose1d(h, *layer) if weights.is_transposed else conv1d(h, *layer, weights.dilation)


def whole_conv(x: Tensor, weights: StreamConvWeights, padding: int) -> Tensor:
    """A whole signal through a convolution: x [B, C, T] -> [B, C', T'], as torch's modules count T'."""
    chosen = choose("stream_conv", x, has_native=True)
    if not (chosen == NATIVE and takes(x, weights.weight)) and (chosen != TRITON or x.dtype == torch.float64):
        return whole_conv_ref(x, weights, padding)
    if chosen == TRITON:
        return _conv_triton(*_whole(x, weights, padding), weights, None)
    return _whole_conv_native(x, weights, padding)


def _whole_conv_native(x: Tensor, weights: StreamConvWeights, padding: int, isa: str | None = None) -> Tensor:
    zeros, signal, first, columns = _whole(x, weights, padding)
    y = torch.empty(len(x), weights.out_channels, columns, dtype=torch.float32, device="cpu")
    native = weights.native if isa is None else weights.packed(isa)
    native(team(), floats(zeros), floats(signal), first, None, y)
    return y.to(x.dtype)


def _whole(x: Tensor, weights: StreamConvWeights, padding: int) -> tuple[Tensor, Tensor, int, int]:
    """A whole signal as a stream's only chunk: zeros before it, itself, and the first of how many columns of
    the result.
    """
    steps, stride = x.shape[-1], weights.stride
    if weights.is_transposed:
        before = weights.past
        first = padding
        columns = (steps - 1) * stride + weights.reach - 2 * padding
    else:
        before, first = padding + weights.past + stride - weights.reach, 0
        columns = (steps + 2 * padding - weights.reach) // stride + 1
    return x.new_zeros(*x.shape[:2], before), x, first, columns


@jit
def _stream_conv_kernel(
    before: Ptr, x: Ptr, w: Ptr, bias: Ptr, start: Ptr, end: Ptr, y: Ptr, P: Count, T: Num, FIRST: Count,
    LEN: Num, N: Num, C: constexpr, TAPS: constexpr, DILATION: constexpr, STRIDE: constexpr, UP: constexpr,
    SLOPE: constexpr, CLIP: constexpr, OUT: constexpr, DEPTH: constexpr, STEPS: constexpr,
) -> None:  # fmt: skip
    """OUT results of STEPS steps of one row a program; w [TAPS, N, C], N = C' UP; columns behind x are 0."""
    row = tl.program_id(2).to(tl.int64)
    out = tl.program_id(1) * OUT + tl.arange(0, OUT)
    step = FIRST // UP + tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    is_step = step * UP < FIRST + LEN
    total = tl.zeros([OUT, STEPS], tl.float32)
    for tap in range(TAPS):
        column = step * STRIDE + tap * DILATION
        is_old = is_step & (column < P)
        is_new = is_step & (column >= P) & (column < P + T)
        for first in range(0, C, DEPTH):
            channel = first + tl.arange(0, DEPTH)
            known = channel < C
            weights = tl.load(
                w + (tap * N + out[:, None]) * C + channel[None, :],
                mask=(out < N)[:, None] & known[None, :],
                other=0.0,
            )
            line = row * C + channel[:, None]
            old = tl.load(
                before + line * P + column[None, :], mask=known[:, None] & is_old[None, :], other=0.0
            )
            new = tl.load(
                x + line * T + (column - P)[None, :], mask=known[:, None] & is_new[None, :], other=0.0
            )
            value = tl.where((column < P)[None, :], old, new)
            if SLOPE != 1.0:
                wide = value.to(tl.float32)
                value = narrow(tl.where(wide > 0, wide, wide * SLOPE), x)
            total = dot(weights, value, total)
    total += tl.load(bias + out, mask=out < N, other=0.0).to(tl.float32)[:, None]
    place = (step * UP - FIRST)[None, :] + (out % UP)[:, None]
    if CLIP:
        position = tl.load(start + row) + place
        total = tl.where((position >= 0) & (position < tl.load(end + row)), total, 0.0)
    mask = (out < N)[:, None] & (place >= 0) & (place < LEN)
    tl.store(y + (row * (N // UP) + (out // UP)[:, None]) * LEN + place, narrow(total, y), mask=mask)


def _conv_triton(
    before: Tensor,
    x: Tensor,
    first: int,
    columns: int,
    weights: StreamConvWeights,
    bounds: StreamEdges | None,
) -> Tensor:
    """Columns `first` on of what before ++ x ++ zeros give: [B, C', columns]."""
    taps, bias, dilation = weights.taps
    before = before.contiguous()
    x = x.contiguous()
    up = weights.up
    (rows, channels, width), (count, out, _) = x.shape, taps.shape
    y = torch.empty(rows, weights.out_channels, columns, dtype=x.dtype, device=x.device)
    start, end = (y, y) if bounds is None else bounds
    stride, steps = 1 if weights.is_transposed else weights.stride, cdiv(first + columns, up) - first // up
    deepest = 16 if x.dtype == torch.float32 else 32  # float32: without tensor cores
    launch(
        _stream_conv_kernel, (cdiv(steps, _STEPS), cdiv(out, 64), rows), before, x, taps, bias, start, end, y,
        before.shape[-1], width, first, columns, out, C=channels, TAPS=count, DILATION=dilation,
        STRIDE=stride, UP=up, SLOPE=weights.slope, CLIP=bounds is not None, OUT=64,
        DEPTH=min(deepest, next_power(channels, 16)), STEPS=_STEPS, num_warps=8,
        num_stages=2,
    )  # fmt: skip
    return y
