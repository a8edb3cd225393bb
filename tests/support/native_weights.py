"""Weights of every kind that native code multiplies, and the numbers that they hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from innervoice.model.quant import Weight, to_int4, to_int8
from innervoice_kernels import _C

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


def held(weight: Weight) -> _C.Weight:
    """The view of a weight that native code takes."""
    if isinstance(weight, Tensor):
        return _C.Weight(weight)
    if hasattr(weight, "group"):
        return _C.Weight(weight.codes, weight.scale, weight.minimum, weight.num_columns, weight.group)
    return _C.Weight(weight.codes, weight.scale)


def numbers(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A weight [N, K] as plain numbers."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)
