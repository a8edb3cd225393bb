"""RMSNorm   y = x / sqrt(mean(x^2) + eps) * w        x: [..., D]   w: [D]   ->   [..., D]"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_ref(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * w in float32 (float64 for float64 input), rounded once to the type of x.

    x [..., D], w [D] -> [..., D]. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * w.to(wide)).to(x.dtype)


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension: x [..., D], w [D] -> [..., D], in the type of x."""
    return rms_norm_ref(x, w, eps)
