"""Rotary position   (a, b) -> (a cos - b sin, b cos + a sin)        x: [T, H, D]   cos, sin: [T, R/2]   ->   [T, H, D]"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_ref(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pair i of the first R dimensions by the angle of its position; dimensions R and up pass through.

    x [T, H, D], cos and sin [T, R/2]; pair i is (2i, 2i+1) when interleaved, else (i, i + R/2). The arithmetic is in
    float32 (float64 for float64 input), rounded once. Su et al., "RoFormer", 2021.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    num_pairs = cos.shape[-1]
    rotated, rest = x[..., : 2 * num_pairs].to(wide), x[..., 2 * num_pairs :]
    pairs = torch.unflatten(rotated, -1, (num_pairs, 2) if interleaved else (2, num_pairs))
    a, b = pairs.unbind(-1 if interleaved else -2)  # [T, H, R/2]
    c, s = cos[:, None].to(wide), sin[:, None].to(wide)
    turned = torch.stack((a * c - b * s, b * c + a * s), dim=-1 if interleaved else -2)
    return torch.cat((turned.flatten(-2).to(x.dtype), rest), dim=-1)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary position embedding of queries or keys: x [T, H, D], cos and sin [T, R/2] -> [T, H, D]."""
    return rotary_ref(x, cos, sin, interleaved)
