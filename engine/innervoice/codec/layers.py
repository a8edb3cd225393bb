"""Layers that flow and HiFT share: a weight with its bias, and the functions that apply the pair.

Norms compute their statistics in float32 whatever the dtype: torch's kernels accumulate so on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.safetensors import TensorSource
from innervoice_kernels.torch_layers import conv1d

Tensors = Mapping[str, Tensor]


class Affine(NamedTuple):
    """Weight and bias of a linear map, a convolution or a norm."""

    weight: Tensor
    bias: Tensor | None


def load_tensors(
    source: TensorSource,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """All tensors of the given shapes. Raises ValueError."""
    return {name: source.get(name, shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def affine(tensors: Tensors, name: str) -> Affine:
    """name.weight and name.bias."""
    return Affine(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def widened(layer: Affine, dtype: torch.dtype) -> Affine:
    """The same layer in another dtype."""
    return Affine(layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))


def linear(x: Tensor, layer: Affine) -> Tensor:
    """Linear map [..., D] -> [..., D']."""
    return F.linear(x, layer.weight, layer.bias)


def conv(x: Tensor, layer: Affine, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """Convolution [B, C, T] -> [B, C', T']."""
    return conv1d(x, layer.weight, layer.bias, stride, padding, dilation)


def layer_norm(x: Tensor, layer: Affine) -> Tensor:
    """[..., D], each row normalised; eps 1e-5."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-5)


def group_norm(x: Tensor, layer: Affine, groups: int) -> Tensor:
    """[B, C, T], normalised over a group's channels and all time; eps 1e-5. No row may be padded."""
    return F.group_norm(x, groups, layer.weight, layer.bias, 1e-5)
