"""The tensors of a decoder, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Linear weights are [out, in].

    qkv: rows of all query heads, then key heads, then value heads; gate_up: gate rows (through SiLU), then up rows; q_norm and
    k_norm: of one head, the same for all.
    """

    attention_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2G) * head_dim, D]
    qkv_bias: Tensor | None
    attention_out: Tensor  # [D, H * head_dim]
    ffn_norm: Tensor  # [D]
    gate_up: Tensor  # [2F, D]
    down: Tensor  # [D, F]
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a decoder, of one type and on one device. output is the embedding itself where they are tied."""

    embedding: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [D]
    output: Tensor  # [V, D]
