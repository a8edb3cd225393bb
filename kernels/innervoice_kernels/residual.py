"""HiFT's residual unit over a stream   y = x + conv_1(snake_b(conv_d(snake_a(x))))        x: [B, C, T]   ->   [B, C, T]

Both convolutions are centred: column t of y is position t - h (d + 1) of the whole, h = (k - 1) / 2. (Kong et al. 2020, HiFi-GAN)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.conv import shifted
from innervoice_kernels.snake import snake


class ResidualWeights(NamedTuple):
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
        """How far a plain convolution of this width sees to one side."""
        return self.first.shape[-1] // 2

    @property
    def delay(self) -> int:
        """By how many columns y is later than x."""
        return self.half * (self.dilation + 1)


Bounds = tuple[Tensor, Tensor]
"""Position of a stream's column 0, and the number of positions there are, [B] int64 each."""


def clip(x: Tensor, bounds: Bounds | None, delay: int = 0) -> Tensor:
    """Zero what lies before position 0 or at the end and after, in [B, C, T] whose column 0 is `delay` before the bounds' one."""
    if bounds is None:
        return x
    position = (bounds[0] - delay)[:, None] + torch.arange(x.shape[-1], device=x.device)
    return x.masked_fill(((position < 0) | (position >= bounds[1][:, None]))[:, None], 0)


def stream_residual_ref(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: Bounds | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition. history [B, C, 2 h d]: past x; inner [B, C, 2 h]: past inputs of the second convolution, before snake.

    x is zero outside the bounds, and so is y; None: no column is outside.
    """
    half, dilation, steps = weights.half, weights.dilation, x.shape[-1]
    past = torch.cat([history, x], -1)
    middle = F.conv1d(snake(past, weights.alpha), weights.first, weights.first_bias, dilation=dilation)
    middle = torch.cat([inner, clip(middle, bounds, half * dilation)], -1)
    y = F.conv1d(snake(middle, weights.beta), weights.second, weights.second_bias)
    skip = history.shape[-1] - weights.delay
    y = past[..., skip : skip + steps] + clip(y, bounds, weights.delay)
    return y, shifted(past, n, history.shape[-1]), shifted(middle, n, inner.shape[-1])


def stream_residual(
    x: Tensor, history: Tensor, inner: Tensor, n: Tensor, weights: ResidualWeights, bounds: Bounds | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk through a residual unit: x [B, C, T] -> y [B, C, T], history', inner'."""
    return stream_residual_ref(x, history, inner, n, weights, bounds)
