"""The decoder: token ids and a paged KV cache in, hidden states and logits out. Rows of any lengths, prefill and decode mixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.config.model import ModelConfig
from innervoice.model.quant import embed, linear, rows_between
from innervoice.model.rope_scaling import frequencies
from innervoice.model.weights import LayerWeights, ModelWeights
from innervoice_kernels.activation import silu_mul
from innervoice_kernels.attention import paged_attention
from innervoice_kernels.kvstore import store_kv
from innervoice_kernels.kvstore_fp8 import store_kv_fp8
from innervoice_kernels.norm import rms_norm
from innervoice_kernels.rope import rotary


@dataclass(frozen=True)
class AttentionInputs:
    """Where the T tokens of a ragged batch of B rows stand. Row b owns tokens query_start[b] to query_start[b + 1].

    They are the last ones of its context_len[b] tokens; position i of the row lies in page page_table[b, i // page_size].
    query_tag and log_weight are the reflection weight of paged_attention, or both None.
    """

    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64, page * page_size + offset
    page_table: Tensor  # [B, N] int32
    query_start: Tensor  # [B + 1] int32
    context_len: Tensor  # [B] int32
    query_tag: Tensor | None = None  # [T] int32
    log_weight: Tensor | None = None  # [T] float32


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of all layers in pages, and for each place the reply whose reflection it holds, or 0.

    Pages of float8_e4m3fn have a scale a page and head.
    """

    k: Tensor  # [L, P, page_size, G, head_dim]
    v: Tensor
    key_tag: Tensor  # [P, page_size] int32
    k_scale: Tensor | None = None  # [L, P, G] float32
    v_scale: Tensor | None = None

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> KVCache:
        """Empty pages."""
        shape = (config.num_layers, num_pages, page_size, config.num_kv_heads, config.head_dim)
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        tag = torch.zeros(num_pages, page_size, dtype=torch.int32, device=device)
        if dtype != torch.float8_e4m3fn:
            return cls(k, v, tag)
        scales = (torch.zeros(*shape[:2], shape[3], dtype=torch.float32, device=device) for _ in range(2))
        return cls(k, v, tag, *scales)

    def store(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Write the keys and values [T, G, head_dim] of a layer's new tokens."""
        pages = (self.k[layer], self.v[layer])
        if self.k_scale is None or self.v_scale is None:
            store_kv(k, v, *pages, slots)
        else:
            store_kv_fp8(k, v, *pages, self.k_scale[layer], self.v_scale[layer], slots)

    def copy_page(self, source: int, target: int) -> None:
        """Copy what one page holds of all layers to another."""
        for pages in (self.k, self.v, self.k_scale, self.v_scale):
            if pages is not None:
                pages[:, target] = pages[:, source]
        self.key_tag[target] = self.key_tag[source]

    def take(self, pages: Tensor) -> KVCache:
        """A copy of some pages on the host. pages [P'] int64."""
        k, v, *scales = (None if held is None else held.index_select(1, pages).cpu() for held in self._paged())
        assert k is not None and v is not None
        return KVCache(_like(self.k, k), _like(self.v, v), self.key_tag[pages].cpu(), *scales)

    def put(self, pages: Tensor, taken: KVCache, first: int) -> None:
        """Write what `take` gave, from its page `first` on, into these pages."""
        for target, source in zip(self._paged(), taken._paged(), strict=True):
            if target is not None and source is not None:
                target.index_copy_(1, pages, source[:, first:].to(target.device))
        self.key_tag[pages] = taken.key_tag[first:].to(self.key_tag.device)

    def _paged(self) -> list[Tensor | None]:
        """What has a page in its second dimension; float8 as bytes, which alone can be indexed everywhere."""
        held = (self.k, self.v, self.k_scale, self.v_scale)
        return [one if one is None or one.element_size() > 1 else one.view(torch.uint8) for one in held]


def _like(held: Tensor, taken: Tensor) -> Tensor:
    return taken if taken.dtype == held.dtype else taken.view(held.dtype)


class Transformer:
    """A decoder over weights in memory; it holds no state between calls."""

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        inv_freq, self._rotary_scale = frequencies(config)
        self._inv_freq = inv_freq.to(weights.device)  # [rotary_dim / 2]

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, rotary_dim / 2] at positions [T], rounded to the model's type, as the original does."""
        angle = positions[:, None].float() * self._inv_freq
        cos, sin = ((part * self._rotary_scale).to(self.weights.dtype) for part in (angle.cos(), angle.sin()))
        return cos, sin

    @torch.inference_mode()
    def forward(self, ids: Tensor, batch: AttentionInputs, kv: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm for ids [T] int64; writes the keys and values of these tokens into kv."""
        x = embed(self.weights.embedding, ids, self.weights.dtype)
        cos, sin = self.rotation(batch.positions)
        for index, layer in enumerate(self.weights.layers):
            x = x + self._attention(index, layer, x, cos, sin, batch, kv)
            gate_up = linear(layer.gate_up, rms_norm(x, layer.ffn_norm, self.config.norm_eps))
            x = x + linear(layer.down, silu_mul(gate_up))
        return rms_norm(x, self.weights.final_norm, self.config.norm_eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, span: tuple[int, int] | None = None) -> Tensor:
        """Hidden states [..., D] -> float32 logits [..., V], or [..., last - first] of the ids of a span alone."""
        output = self.weights.output
        return linear(output if span is None else rows_between(output, *span), hidden).float()

    def _attention(
        self, index: int, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor, batch: AttentionInputs, kv: KVCache
    ) -> Tensor:
        """x [T, D] -> [T, D]."""
        c = self.config
        qkv = linear(layer.qkv, rms_norm(x, layer.attention_norm, c.norm_eps), layer.qkv_bias)
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
        )  # fmt: skip
        return linear(layer.attention_out, y.flatten(1))
