"""Snake   y = x + sin(a x)^2 / (a + 1e-9)        x: [B, C, T]   a: [C]   ->   [B, C, T]      (Ziyin et al. 2020)"""

from __future__ import annotations

import torch
from torch import Tensor


def snake_ref(x: Tensor, alpha: Tensor) -> Tensor:
    """The definition, in float32 or wider inside; one alpha a channel, stored as it is (not its logarithm)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    a = alpha.to(wide)[:, None]  # [C, 1]
    y = x.to(wide)
    return (y + torch.sin(y * a).square() / (a + 1e-9)).to(x.dtype)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Snake activation, one alpha a channel: x [B, C, T], alpha [C]."""
    return snake_ref(x, alpha)
