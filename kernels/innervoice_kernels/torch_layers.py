"""torch's convolutions and LSTM with float32 multiplied as such: by default cuDNN would round it to TF32 on a GPU.

torch's own switch is the whole process's: a caller's other models read it, and threads would change it under each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv1d: x [B, C, T], weight [C', C / groups, k] -> [B, C', T']."""
    if x.dtype != torch.float32:
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return _convolution(x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """torch.nn.functional.conv2d: x [B, C, H, W], weight [C', C, k, k] -> [B, C', H', W']."""
    if x.dtype != torch.float32:
        return F.conv2d(x, weight, bias, stride, padding)
    return _convolution(x, weight, bias, stride, padding)


def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """torch.nn.functional.conv_transpose1d: x [B, C, T], weight [C, C', k] -> [B, C', T']."""
    if x.dtype != torch.float32:
        return F.conv_transpose1d(x, weight, bias, stride, padding)
    return _convolution(x, weight, bias, stride, padding, is_transposed=True)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int = 1,
    groups: int = 1,
    is_transposed: bool = False,
) -> Tensor:
    """The function behind all of torch's convolutions, which takes what they read from the process's settings."""
    sides, cudnn = x.ndim - 2, torch.backends.cudnn
    is_deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    may_round = False
    return torch._convolution(
        x, weight, bias, [stride] * sides, [padding] * sides, [dilation] * sides, is_transposed, [0] * sides, groups,
        cudnn.benchmark, is_deterministic, cudnn.enabled, may_round,
    )  # fmt: skip


def lstm(
    x: Tensor, state: tuple[Tensor, Tensor], weights: Sequence[Tensor], batch_sizes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A torch.nn.LSTM in one direction: x [B, T, C], state: hidden and cell, [L, B, C] each -> y [B, T, C], hidden, cell.

    batch_sizes: of the packed rows that x then is, [sum, C]. On a GPU float32 goes through float64, which is never rounded.
    """
    if not _may_round(x):
        return _lstm(x, state, weights, batch_sizes)
    wide = (state[0].double(), state[1].double())
    made = _lstm(x.double(), wide, [weight.double() for weight in weights], batch_sizes)
    return made[0].to(x.dtype), made[1].to(x.dtype), made[2].to(x.dtype)


def _may_round(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.float32


def _lstm(
    x: Tensor, state: tuple[Tensor, Tensor], weights: Sequence[Tensor], batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    own, layers = list(weights), len(weights) // 4
    if batch_sizes is None:
        return torch.lstm(x, state, own, True, layers, 0.0, False, False, True)
    return torch.lstm(x, batch_sizes, state, own, True, layers, 0.0, False, False)
