"""Mimi's transformer.

Pre-norm layers with rotary positions and layer scale; a token sees the last `window` ones, itself included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.checkpoint.codecs import MimiConfig
from innervoice.codec.residual_vq.causal import Level
from innervoice.codec.residual_vq.weights import CodecWeights
from innervoice_kernels.residual_vq.window_layer import RingRows, WindowLayer, window_layer


@dataclass(frozen=True)
class WindowedTransformer:
    """The transformer over a window, with keys and values in rings: `rings` names them,
    `ring_shape` is that of one slot.
    """

    config: MimiConfig
    layers: tuple[WindowLayer, ...]
    frequencies: Tensor

    def ring_shape(self, max_tokens: int) -> tuple[int, ...]:
        """The shape of a slot's ring in one layer, when a call brings at most
        max_tokens tokens: [2, R, H, d].
        """
        return 2, self.config.window - 1 + max_tokens, self.config.num_groups, self.config.head_dim

    @property
    def rings(self) -> list[str]:
        """Names of the rings."""
        return [f"ring{index}" for index in range(len(self.layers))]

    def __call__(self, x: Tensor, rings: Mapping[str, Tensor], slots: Tensor, at: Level) -> Tensor:
        """x [B, T, D], rings [S, 2, R, H, d] by name, written in place; slots [B] -> [B, T, D]."""
        position = (
            at.start[:, None] + torch.arange(x.shape[1], device=x.device, dtype=torch.int64)
        ).flatten()
        angle = position[:, None].float() * self.frequencies
        rows = RingRows(slots, at.start, at.n, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
        for name, layer in zip(self.rings, self.layers, strict=True):
            x = window_layer(x, layer, rings[name], rows)
        return x


def load_transformer(weights: CodecWeights, config: MimiConfig, prefix: str) -> WindowedTransformer:
    """encoder_transformer or decoder_transformer. Raises ValueError for missing and misshapen tensors."""
    layers = tuple(
        _load_layer(weights, config, f"{prefix}.layers.{index}") for index in range(config.num_layers)
    )
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    return WindowedTransformer(config, layers, (1.0 / config.rope_theta**exponent).to(weights.device))


def _load_layer(weights: CodecWeights, config: MimiConfig, name: str) -> WindowLayer:
    width, attention = config.seanet.width, config.num_heads * config.head_dim
    keys, bias = config.num_groups * config.head_dim, config.attention_bias
    sizes = {"q_proj": attention, "k_proj": keys, "v_proj": keys}
    parts = [
        weights.affine(f"{name}.self_attn.{part}", size, width, bias=size * bias)
        for part, size in sizes.items()
    ]
    biases = [part.bias for part in parts if part.bias is not None]
    return WindowLayer(
        norm=weights.affine(f"{name}.input_layernorm", width, bias=width),
        qkv=(torch.cat([part.weight for part in parts]), torch.cat(biases) if bias else None),
        out=weights.affine(f"{name}.self_attn.o_proj", width, attention, bias=width * bias),
        scale=weights.get(f"{name}.self_attn_layer_scale.scale", width),
        norm_ffn=weights.affine(f"{name}.post_attention_layernorm", width, bias=width),
        up=weights.affine(f"{name}.mlp.fc1", config.ffn_dim, width),
        down=weights.affine(f"{name}.mlp.fc2", width, config.ffn_dim),
        scale_ffn=weights.get(f"{name}.mlp_layer_scale.scale", width),
        heads=config.num_heads, groups=config.num_groups, window=config.window, eps=config.norm_eps,
    )  # fmt: skip
