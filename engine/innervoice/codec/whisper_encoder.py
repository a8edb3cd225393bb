"""The speech tokenizer's network: two causal convolutions, block-causal transformer layers, pooling. Weights by checkpoint name.

Source: Zeng et al., "GLM-4-Voice", 2024, and Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from innervoice.config.speech_tokenizer import CONV_KERNEL, CONV_STRIDE, SpeechTokenizerConfig

Weights = Mapping[str, torch.Tensor]


def encode(weights: Weights, config: SpeechTokenizerConfig, features: torch.Tensor, num_positions: torch.Tensor) -> torch.Tensor:
    """States after the last layer: features [B, M, F], number of real positions of each row [B] -> [B, F / 2, D].

    Positions from that number on are padding, which no real position sees.
    """
    x = features.to(weights["conv1.weight"].dtype).transpose(1, 2)  # [B, F, M]
    x = F.gelu(_causal_conv(x, weights, "conv1", 1))
    x = F.gelu(_causal_conv(x, weights, "conv2", CONV_STRIDE))  # [B, T, D]
    x = x + weights["embed_positions.weight"][: x.shape[1]]
    mask = block_mask(x.shape[1], config.block_len, num_positions)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        x = x + _attend(_norm(x, weights, f"{name}.self_attn_layer_norm"), mask, weights, f"{name}.self_attn", config.num_heads)
        x = x + _feed_forward(_norm(x, weights, f"{name}.final_layer_norm"), weights, name)
    return x


def pool(x: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of every `size` positions, zeros added to fill the last: [B, T, D] -> [B, ceil(T / size), D]."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % size))
    return torch.unflatten(x, 1, (-1, size)).mean(2)


def block_mask(num: int, block_len: int, num_positions: torch.Tensor) -> torch.Tensor:
    """May query i see key j? If (j <= i or both are in one block) and key j is no padding: [B, 1, T, T] bool."""
    i = torch.arange(num, device=num_positions.device)
    seen = i[None, :] < ((i // block_len + 1) * block_len)[:, None]  # [T, T]
    real = i[None, :] < num_positions[:, None]  # [B, T]
    return seen & real[:, None, None, :]


def _causal_conv(x: torch.Tensor, weights: Weights, name: str, stride: int) -> torch.Tensor:
    """x [B, T, C] -> [B, T / stride, D]. A matrix product of windows: cuDNN would round float32 to TF32."""
    windows = F.pad(x, (0, 0, CONV_KERNEL - 1, 0)).unfold(1, CONV_KERNEL, stride)  # [B, T / stride, C, kernel]
    return F.linear(windows.flatten(2), weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"])


def _norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def _linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _attend(x: torch.Tensor, mask: torch.Tensor, weights: Weights, name: str, num_heads: int) -> torch.Tensor:
    q, k, v = (
        torch.unflatten(_linear(x, weights, f"{name}.{part}_proj"), -1, (num_heads, -1)).transpose(1, 2)  # [B, H, T, D / H]
        for part in "qkv"
    )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _linear(y.transpose(1, 2).flatten(2), weights, f"{name}.out_proj")


def _feed_forward(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return _linear(F.gelu(_linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")
