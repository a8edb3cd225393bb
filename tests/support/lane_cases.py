"""Weights in lanes that tests multiply, and what the reference makes of them."""

from __future__ import annotations

import torch
from native_weights import KINDS
from torch import Tensor

from innervoice.model.quant import Int4Weight, Int8Weight
from innervoice_kernels.language.linear_lanes import lane_linear_ref

LANED = [kind for kind in KINDS if kind.startswith("int")]
SIZES = (
    (1, 1, 1),
    (3, 17, 5),
    (16, 70, 576),
    (2, 33, 96),
    (1, 9, 8300),
    (5, 3, 160),
    (29, 47, 417),
    (70, 48, 2049),
    (1, 293, 1601),  # long enough for streams side by side
)


def made(kind: str, rows: int, columns: int, generator: torch.Generator) -> Int8Weight | Int4Weight:
    """A random weight of a kind."""
    weight = KINDS[kind](torch.randn(rows, columns, generator=generator))
    assert isinstance(weight, Int8Weight | Int4Weight)
    return weight


def reference(x: Tensor, weight: Int8Weight | Int4Weight, wide: torch.dtype = torch.float32) -> Tensor:
    """The product by the reference; wide: the type that it computes in."""
    if isinstance(weight, Int8Weight):
        return lane_linear_ref(x, weight.codes, weight.scale, wide=wide)
    return lane_linear_ref(x, weight.codes, weight.scale, weight.minimum, weight.group, wide)
