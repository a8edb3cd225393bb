"""HiFT's residual unit over a stream   y = x + conv_1(snake_b(conv_d(snake_a(x))))
x: [B, C, T]   ->   [B, C, T]

Both convolutions are centred: column t of y is position t - h (d + 1) of the whole, h = (k - 1) / 2. (Kong et
al. 2020, HiFi-GAN)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.native import CHANNEL_MULTIPLE, are_halves, floats, takes, taps_first, team
from innervoice_kernels.speech_codec.conv import shifted
from innervoice_kernels.speech_codec.residual_conv import residual_conv
from innervoice_kernels.speech_codec.snake import snake
from innervoice_kernels.streams import laid_out
from innervoice_kernels.torch_layers import conv1d


@dataclass(frozen=True, eq=False)
class ResidualWeights:
    """alpha, beta [C]; first, second [C, C, k] with biases [C]; k odd."""

    alpha: Tensor
    first: Tensor
    first_bias: Tensor | None
    beta: Tensor
    second: Tensor
    second_bias: Tensor | None
    dilation: int

    @property
    def half(self) -> int:
        """The number of steps that a plain convolution of this width sees to one side."""
        return self.first.shape[-1] // 2

    @property
    def delay(self) -> int:
        """By how many columns y is later than x."""
        return self.half * (self.dilation + 1)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.first.device

    @laid_out
    def taps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights [k, C, C] of both convolutions with their biases, as the Triton kernel reads them."""
        first, second = (weight.permute(2, 0, 1).contiguous() for weight in (self.first, self.second))
        none = torch.zeros_like(self.alpha)
        first_bias, second_bias = (
            none if bias is None else bias for bias in (self.first_bias, self.second_bias)
        )
        return first, second, first_bias, second_bias

    @cached_property
    def native(self) -> _C.ResidualUnit:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed(are_halves(self.first))

    def packed(self, halves: bool = False, isa: str | None = None) -> _C.ResidualUnit:
        """The same for products in bfloat16, or for other instructions. Raises ValueError for what is not
        there.
        """
        channels = len(self.alpha)
        extra = -channels % (4 if channels <= CHANNEL_MULTIPLE and not halves else CHANNEL_MULTIPLE)

        def vector(x: Tensor | None) -> Tensor:
            return F.pad(floats(torch.zeros_like(self.alpha) if x is None else x), (0, extra))

        first, second = (taps_first(F.pad(w, (0, 0, 0, extra, 0, extra))) for w in (self.first, self.second))
        # Alpha is 1 where there is no channel: anything but what would divide by nearly 0.
        alpha, beta = (F.pad(floats(x), (0, extra), value=1.0) for x in (self.alpha, self.beta))
        biases = vector(self.first_bias), vector(self.second_bias)
        return _C.ResidualUnit(alpha, first, biases[0], beta, second, biases[1], self.dilation, halves, isa)


StreamEdges = tuple[Tensor, Tensor]
"""Position of a stream's column 0, and the number of positions there are, [B] int64 each."""


def clip(x: Tensor, bounds: StreamEdges | None, delay: int = 0) -> Tensor:
    """Zero what lies before position 0 or at the end and after, in [B, C, T] whose column 0 is `delay` before
    the bounds' one.
    """
    if bounds is None:
        return x
    position = (bounds[0] - delay)[:, None] + torch.arange(x.shape[-1], device=x.device, dtype=torch.int64)
    return x.masked_fill(((position < 0) | (position >= bounds[1][:, None]))[:, None], 0)


def stream_residual_ref(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: StreamEdges | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition. history [B, C, 2 h d]: past x; inner [B, C, 2 h]: past inputs of the second
    convolution, before snake.

    x is zero outside the bounds, and so is y; None: no column is outside.
    """
    half = weights.half
    dilation = weights.dilation
    steps = x.shape[-1]
    past = torch.cat([history, x], -1)
    middle = conv1d(snake(past, weights.alpha), weights.first, weights.first_bias, dilation=dilation)
    middle = torch.cat([inner, clip(middle, bounds, half * dilation)], -1)
    y = conv1d(snake(middle, weights.beta), weights.second, weights.second_bias)
    skip = history.shape[-1] - weights.delay
    y = past[..., skip : skip + steps] + clip(y, bounds, weights.delay)
    return y, shifted(past, n, history.shape[-1]), shifted(middle, n, inner.shape[-1])


def stream_residual(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: StreamEdges | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk through a residual unit: x [B, C, T] -> y [B, C, T], history', inner'."""
    chosen = choose("stream_residual", x, has_native=True)
    if chosen == NATIVE and takes(x, weights.first):
        return _stream_residual_native(x, history, inner, n, weights, bounds)
    if chosen == TRITON:
        return _stream_residual_triton(x, history, inner, n, weights, bounds)
    return stream_residual_ref(x, history, inner, n, weights, bounds)


def _stream_residual_triton(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: StreamEdges | None
) -> tuple[Tensor, Tensor, Tensor]:
    half, dilation = weights.half, weights.dilation
    first, second, first_bias, second_bias = weights.taps
    past = torch.cat([history, x], -1)
    made = residual_conv(
        snake(past, weights.alpha), first, first_bias, dilation, bounds, half * dilation, None, 0
    )
    middle = torch.cat([inner, made], -1)
    skip = history.shape[-1] - weights.delay
    y = residual_conv(snake(middle, weights.beta), second, second_bias, 1, bounds, weights.delay, past, skip)
    return y, shifted(past, n, history.shape[-1]), shifted(middle, n, inner.shape[-1])


def _stream_residual_native(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: StreamEdges | None
) -> tuple[Tensor, Tensor, Tensor]:
    wave, before, middle = (floats(part) for part in (x, history, inner))
    y, history_after, inner_after = (torch.empty_like(part) for part in (wave, before, middle))
    weights.native(team(), wave, before, middle, n, bounds, y, history_after, inner_after)
    return y.to(x.dtype), history_after.to(x.dtype), inner_after.to(x.dtype)


def residual_ref(x: Tensor, weights: ResidualWeights) -> Tensor:
    """The same of a whole signal: both convolutions see zeros outside it."""
    half, dilation = weights.half, weights.dilation
    first, second = (weights.first, weights.first_bias), (weights.second, weights.second_bias)
    h = conv1d(snake(x, weights.alpha), *first, padding=half * dilation, dilation=dilation)
    return x + conv1d(snake(h, weights.beta), *second, padding=half)


def residual(x: Tensor, weights: ResidualWeights) -> Tensor:
    """A whole signal through a residual unit: x [B, C, T] -> y [B, C, T]."""
    chosen = choose("stream_residual", x, has_native=True)
    if chosen != TRITON and not (chosen == NATIVE and takes(x, weights.first)):
        return residual_ref(x, weights)
    rows, channels, steps = x.shape
    history = x.new_zeros(rows, channels, 2 * weights.half * weights.dilation)
    n = torch.full((rows,), steps + weights.delay, device=x.device, dtype=torch.int64)
    bounds = (torch.zeros_like(n), torch.full_like(n, steps))
    padded = F.pad(x, (0, weights.delay))
    return stream_residual(
        padded, history, x.new_zeros(rows, channels, 2 * weights.half), n, weights, bounds
    )[0][..., weights.delay :]
