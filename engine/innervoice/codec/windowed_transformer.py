"""Mimi's transformer: pre-norm layers with rotary positions and layer scale, each token sees the last `window` ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.causal import Level
from innervoice.codec.layers import Affine, linear
from innervoice.codec.weights import Weights
from innervoice.config.codecs import MimiConfig
from innervoice_kernels.rope import rotary
from innervoice_kernels.windowed import store_window, window_attention


@dataclass(frozen=True)
class Layer:
    """Queries, keys and values lie in one weight, in this order."""

    norm: Affine
    qkv: Affine
    out: Affine
    attention_scale: Tensor
    norm_ffn: Affine
    up: Affine
    down: Affine
    ffn_scale: Tensor


@dataclass(frozen=True)
class WindowedTransformer:
    """Its keys and values are in rings: `rings` names them, `ring_shape` is that of one slot."""

    config: MimiConfig
    layers: tuple[Layer, ...]
    frequencies: Tensor

    def ring_shape(self, max_tokens: int) -> tuple[int, ...]:
        """Of a slot's ring in one layer, when a call brings at most max_tokens tokens: [2, R, H, d]."""
        return 2, self.config.window - 1 + max_tokens, self.config.num_groups, self.config.head_dim

    @property
    def rings(self) -> list[str]:
        """Names of the rings."""
        return [f"ring{index}" for index in range(len(self.layers))]

    def __call__(self, x: Tensor, rings: Mapping[str, Tensor], slots: Tensor, at: Level) -> Tensor:
        """x [B, T, D], rings [S, 2, R, H, d] by name, slots [B] -> [B, T, D]; the rings are written in place."""
        position = (at.start[:, None] + torch.arange(x.shape[1], device=x.device)).flatten()
        angle = position[:, None].float() * self.frequencies
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for name, layer in zip(self.rings, self.layers, strict=True):
            attended = self._attend(self._norm(x, layer.norm), layer, rings[name], slots, at, cos, sin)
            x = x + layer.attention_scale * attended
            inner = F.gelu(linear(self._norm(x, layer.norm_ffn), layer.up))
            x = x + layer.ffn_scale * linear(inner, layer.down)
        return x

    def _attend(self, x: Tensor, layer: Layer, ring: Tensor, slots: Tensor, at: Level, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        heads, groups, width = self.config.num_heads, self.config.num_groups, self.config.head_dim
        split = linear(x, layer.qkv).view(rows * tokens, heads + 2 * groups, width)
        turned = rotary(split[:, : heads + groups], cos, sin, False).view(rows, tokens, heads + groups, width)
        v = split[:, heads + groups :].view(rows, tokens, groups, width)
        store_window(turned[:, :, heads:], v, ring, slots, at.start, at.n)
        y = window_attention(turned[:, :, :heads], ring, slots, at.start, at.n, self.config.window)
        return linear(y.reshape(rows, tokens, heads * width), layer.out)

    def _norm(self, x: Tensor, layer: Affine) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, self.config.norm_eps)


def load_transformer(weights: Weights, config: MimiConfig, prefix: str) -> WindowedTransformer:
    """encoder_transformer or decoder_transformer. Raises ValueError for missing and misshapen tensors."""
    layers = tuple(_load_layer(weights, config, f"{prefix}.layers.{index}") for index in range(config.num_layers))
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return WindowedTransformer(config, layers, (1.0 / config.rope_theta**exponent).to(weights.device))


def _load_layer(weights: Weights, config: MimiConfig, name: str) -> Layer:
    width, attention = config.seanet.width, config.num_heads * config.head_dim
    keys, bias = config.num_groups * config.head_dim, config.attention_bias
    sizes = {"q_proj": attention, "k_proj": keys, "v_proj": keys}
    parts = [weights.affine(f"{name}.self_attn.{part}", size, width, bias=size * bias) for part, size in sizes.items()]
    return Layer(
        norm=weights.affine(f"{name}.input_layernorm", width, bias=width),
        qkv=Affine(
            torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts if p.bias is not None]) if bias else None
        ),
        out=weights.affine(f"{name}.self_attn.o_proj", width, attention, bias=width * bias),
        attention_scale=weights.get(f"{name}.self_attn_layer_scale.scale", width),
        norm_ffn=weights.affine(f"{name}.post_attention_layernorm", width, bias=width),
        up=weights.affine(f"{name}.mlp.fc1", config.ffn_dim, width),
        down=weights.affine(f"{name}.mlp.fc2", width, config.ffn_dim),
        ffn_scale=weights.get(f"{name}.mlp_layer_scale.scale", width),
    )
