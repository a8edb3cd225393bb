"""Attention with relative positions   score(u, c) = ((q_u + b_u) . k_c + (q_u + b_v) . p_{U-1-u+c}) / sqrt(d)

q: [B, H, U, d]   k, v: [B, H, K, d]   p: [H, K + U - 1, d], by falling distance   ->   [B, H, U, d]      (Dai et al. 2019)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, bias_u: Tensor, bias_v: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """The definition; scores and softmax in float32 or wider. visible [B, U, K] bool; seeing nothing gives the mean of v."""
    num_queries, num_keys, wide = q.shape[2], k.shape[2], torch.promote_types(q.dtype, torch.float32)
    content = (q + bias_u[:, None]) @ k.transpose(-1, -2)  # [B, H, U, K]
    by_distance = (q + bias_v[:, None]) @ positions.transpose(-1, -2)  # [B, H, U, K + U - 1]
    place = torch.arange(num_keys, device=q.device) + torch.arange(num_queries - 1, -1, -1, device=q.device)[:, None]
    position = by_distance.gather(-1, place.expand(*content.shape[:2], -1, -1))
    scores = (content.to(wide) + position.to(wide)) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible[:, None], torch.finfo(wide).min).softmax(-1)
    return weights.to(v.dtype) @ v


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_u: Tensor, bias_v: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """Attention of U new tokens over K cached and new ones; bias_u, bias_v [H, d]."""
    return relative_attention_ref(q, k, v, bias_u, bias_v, positions, visible)
