"""GroupNorm over true lengths, then Mish   y = mish((x - mean) / sqrt(var + eps) * w + b)        x: [B, C, T]   ->   [B, C, T]

mean and var of row b: over the group's channels and the first n[b] columns.       (Wu and He 2018; Misra 2019)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.conv import beyond


def group_norm_mish_ref(x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """The definition, in float32 or wider inside. Columns from n on come out as zero; a row of length 0 is zero."""
    rows, channels, steps = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    outside = beyond(n, steps)[:, None]  # [B, 1, T]
    grouped = (rows, groups, channels // groups * steps)
    y = x.to(wide).masked_fill(outside, 0).reshape(grouped)
    count = (n * (channels // groups)).clamp(min=1).to(wide)[:, None, None]  # [B, 1, 1]
    centred = (y - y.sum(-1, keepdim=True) / count).view(rows, channels, steps).masked_fill(outside, 0).reshape(grouped)
    variance = centred.square().sum(-1, keepdim=True) / count
    normed = (centred / (variance + eps).sqrt()).view(rows, channels, steps)
    y = F.mish(normed * weight.to(wide)[:, None] + bias.to(wide)[:, None])
    return y.masked_fill(outside, 0).to(x.dtype)


def group_norm_mish(x: Tensor, n: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Normalise each row over its own length, then Mish: x [B, C, T], n [B], weight and bias [C]."""
    return group_norm_mish_ref(x, n, weight, bias, groups, eps)
