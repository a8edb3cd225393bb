"""Gated SiLU   y = gate * sigmoid(gate) * up        x = [gate | up]: [..., 2F]   ->   [..., F]"""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul_ref(x: Tensor) -> Tensor:
    """y = gate * sigmoid(gate) * up in float32 (float64 for float64 input), rounded once to the type of x.

    x [..., 2F], gate first -> [..., F]. Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)


def silu_mul(x: Tensor) -> Tensor:
    """SiLU of the first half times the second half: x [..., 2F] -> [..., F], in the type of x."""
    return silu_mul_ref(x)
