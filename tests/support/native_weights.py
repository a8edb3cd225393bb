"""Weights of every kind that native code multiplies, and the numbers that they hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from innervoice.model.lanes import LanedWeight
from innervoice.model.quant import Weight, to_int4, to_int8, unlaned

KINDS: dict[str, Callable[[Tensor], Weight]] = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.bfloat16(),
    "int8": to_int8,
    **{
        f"int4-{g}{'s' if s else ''}": lambda w, g=g, s=s: to_int4(w, g, s)  # type: ignore[misc]
        for g in (32, 64, 128)
        for s in (False, True)
    },
}


def numbers(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A weight [N, K] as plain numbers."""
    if isinstance(weight, LanedWeight):
        weight = unlaned(weight)
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)
