"""The decoder: token ids and a paged KV cache in, hidden states and logits out.

Rows of any lengths, prefill and decode mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.kv_cache import KVCache
from innervoice.model.quant import Weight, embed, expert_weights, linear, rows_between
from innervoice.model.rope_scaling import frequencies
from innervoice.model.weights import LayerWeights, ModelWeights
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.language.activation import silu_mul
from innervoice_kernels.language.attention import paged_attention
from innervoice_kernels.language.expert_products import routed_ffn
from innervoice_kernels.language.experts import ExpertProduct, grouped_ffn
from innervoice_kernels.language.norm import rms_norm
from innervoice_kernels.language.rope import rotary


@dataclass(frozen=True)
class AttentionInputs:
    """The layout of a ragged batch: T tokens of B sequences.

    Row b owns tokens query_start[b] to query_start[b + 1].

    They are the last ones of its context_len[b] tokens; position i of the row lies in page
    page_table[b, i // page_size]. query_tag and log_weight are the reflection weight of
    paged_attention, or both None. min_queries, max_queries: no row has fewer tokens, or more; None: unknown.
    """

    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64, page * page_size + offset
    page_table: Tensor  # [B, N] int32
    query_start: Tensor  # [B + 1] int32
    context_len: Tensor  # [B] int32
    query_tag: Tensor | None = None  # [T] int32
    log_weight: Tensor | None = None  # [T] float32
    min_queries: int = 1
    max_queries: int | None = None


class Transformer:
    """A decoder over weights in memory; it holds no state between calls.

    invariant: a token's sums are the same whatever is fed beside it, on a GPU at the cost of speed.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, *, invariant: bool = False) -> None:
        self.config = config
        self.weights = weights
        self.invariant = invariant
        inv_freq, self._rotary_scale = frequencies(config)
        self._inv_freq = inv_freq.to(weights.device)  # [rotary_dim / 2]

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, rotary_dim / 2] at positions [T], rounded to the
        model's type, as the original does.
        """
        angle = positions[:, None].float() * self._inv_freq
        cos, sin = ((part * self._rotary_scale).to(self.weights.dtype) for part in (angle.cos(), angle.sin()))
        return cos, sin

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        batch: AttentionInputs,
        kv: KVCache,
        rows: tuple[Tensor, Tensor] | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Hidden states [T, D] after the final norm for ids [T] int64; writes the keys and
        values of these tokens into kv.

        rows: places [R] int64 and values [R, D] of embedding rows, which stand in for the embeddings there. layer:
        return the states behind so many layers instead, of 0 the embeddings; all layers are computed.
        """
        x = embed(self.weights.embedding, ids, self.weights.dtype)
        if rows is not None:
            places, values = rows
            x = x.index_copy(0, places, values.to(x.dtype))
        cos, sin = self.rotation(batch.positions)
        behind = [x]
        for index, weights in enumerate(self.weights.layers):
            x = x + self._attention(index, weights, x, cos, sin, batch, kv)
            x = x + self._feed_forward(weights, rms_norm(x, weights.ffn_norm, self.config.norm_eps))
            if index + 1 == layer:
                behind = [x]
        if layer is not None:
            return behind[0]
        return rms_norm(x, self.weights.final_norm, self.config.norm_eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, span: tuple[int, int] | None = None) -> Tensor:
        """Hidden states [..., D] -> float32 logits [..., V], or
        [..., last - first] of the ids of a span alone.
        """
        output = self.weights.output
        return self._linear(output if span is None else rows_between(output, *span), hidden).float()

    def _linear(self, weight: Weight, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(weight, x, bias, invariant=self.invariant)

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        if layer.router is None:
            return self._linear(layer.down, silu_mul(self._linear(layer.gate_up, x)))
        c, logits = self.config, self._linear(layer.router, x)
        how = (c.num_used_experts, c.normalizes_experts)
        if choose("expert_ffn", x) == TRITON:
            weights = expert_weights(layer.gate_up), expert_weights(layer.down)
            return routed_ffn(x, logits, *weights, *how, invariant=self.invariant)

        def product(weight: Weight) -> ExpertProduct:
            size = weight.shape[0] // c.num_experts
            return lambda e, rows: self._linear(rows_between(weight, e * size, (e + 1) * size), rows)

        return grouped_ffn(x, logits, product(layer.gate_up), product(layer.down), *how)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: AttentionInputs,
        kv: KVCache,
    ) -> Tensor:
        """x [T, D] -> [T, D]."""
        c = self.config
        qkv = self._linear(layer.qkv, rms_norm(x, layer.attention_norm, c.norm_eps), layer.qkv_bias)
        heads = torch.unflatten(qkv, -1, (-1, c.head_dim))  # [T, H + 2G, head_dim]
        q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, c.norm_eps), rms_norm(k, layer.k_norm, c.norm_eps)
        q, k = rotary(q, cos, sin, c.rope_interleaved), rotary(k, cos, sin, c.rope_interleaved)
        kv.store(index, k, v, batch.slots)
        y = paged_attention(
            q, kv.k[index], kv.v[index], batch.page_table, batch.query_start, batch.context_len, c.head_dim**-0.5,
            query_tag=batch.query_tag, key_tag=None if batch.query_tag is None else kv.key_tag, log_weight=batch.log_weight,
            k_scale=None if kv.k_scale is None else kv.k_scale[index], v_scale=None if kv.v_scale is None else kv.v_scale[index],
            min_queries=batch.min_queries, max_queries=batch.max_queries, is_tiled=self.invariant,
        )  # fmt: skip
        return self._linear(layer.attention_out, y.flatten(1))
