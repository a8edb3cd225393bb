"""Transformer layers of Whisper's form whose attention stays inside windows.

Recordings lie one behind another, [T of all, D]; what is no attention is one product for all.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022; Xu et al., "Qwen3-Omni
Technical Report", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig

EncoderWeights = Mapping[str, Tensor]


def linear(x: Tensor, weights: EncoderWeights, name: str) -> Tensor:
    """x W^T + b by the name of a layer; without a bias in the weights none is added."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(x: Tensor, weights: EncoderWeights, name: str) -> Tensor:
    """LayerNorm over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def window_lens(columns: Sequence[int], window: int) -> list[int]:
    """Lengths of all windows of recordings of so many columns, cut from each one's start."""
    return [min(window, n - start) for n in columns for start in range(0, n, window)]


def run_layers(x: Tensor, weights: EncoderWeights, config: AudioEncoderConfig, lens: Sequence[int]) -> Tensor:
    """All layers over columns [T, D] whose windows have these lengths -> [T, D]."""
    for index in range(config.num_layers):
        name = f"layers.{index}"
        normed = norm(x, weights, f"{name}.self_attn_layer_norm")
        q, k, v = (linear(normed, weights, f"{name}.self_attn.{part}_proj") for part in "qkv")
        attended = _attend(q, k, v, config.num_heads, lens)
        x = x + linear(attended, weights, f"{name}.self_attn.out_proj")
        inner = F.gelu(linear(norm(x, weights, f"{name}.final_layer_norm"), weights, f"{name}.fc1"))
        x = x + linear(inner, weights, f"{name}.fc2")
    return x


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, lens: Sequence[int]) -> Tensor:
    """Every column sees all of its window: [T, D] -> [T, D]; windows of one length in a row go in one call."""
    made, begin, index = [], 0, 0
    while index < len(lens):
        count = next((i for i, n in enumerate(lens[index:]) if n != lens[index]), len(lens) - index)
        end = begin + count * lens[index]
        heads = [x[begin:end].view(count, lens[index], num_heads, -1).transpose(1, 2) for x in (q, k, v)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])  # [count, H, n, D / H]
        made.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        begin, index = end, index + count
    return torch.cat(made)
