"""The layers of a decode step by the fused kernels: five launches a layer, in memory
that is kept from step to step.

Weights of any kind are multiplied with norm, gate and residual in one launch. A cache of fp8 has kernels of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.kv_cache import KVCache
from innervoice.model.quant import expert_weights, step_linear
from innervoice.model.transformer import Transformer
from innervoice.model.weights import LayerWeights
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.language.attention import paged_attention
from innervoice_kernels.language.attention_decode import Workspace
from innervoice_kernels.language.expert_products import routed_ffn
from innervoice_kernels.language.linear import Norm, SplitWorkspace
from innervoice_kernels.language.norm import rms_norm
from innervoice_kernels.language.qkv import HeadNorm
from innervoice_kernels.language.rope import rotary
from innervoice_kernels.language.step_attention import Tags, step_attention
from innervoice_kernels.sampling.step import RowFeed, StepInputs


@dataclass(frozen=True)
class Memory:
    """The workspaces in which parts of products and of attention are summed. One step at a time uses it."""

    products: SplitWorkspace
    attention: Workspace
    attended: Tensor  # [max_rows, H, head_dim]; rows that feed nothing leave theirs as it is
    query_start: Tensor  # [max_rows + 1] int32: 0, 1, 2, ...

    @classmethod
    def allocate(cls, model: Transformer, max_rows: int, max_context: int) -> Memory:
        """For batches of up to max_rows rows."""
        c = model.config
        dtype = model.weights.dtype
        device = model.weights.device
        layers = model.weights.layers
        products = (
            w for x in layers for w in (x.qkv, x.attention_out, x.down if x.router is None else x.router)
        )
        shapes = tuple({(w.shape[0], w.shape[1]) for w in products})
        row_tiles = -(-max_rows // 16)
        one = SplitWorkspace.allocate(shapes, dtype, device)
        parts = SplitWorkspace(
            one.partial.new_empty(len(one.partial) * row_tiles),
            one.arrived.new_zeros(len(one.arrived) * row_tiles),
        )
        attention = Workspace.allocate(max_rows, c.num_heads, c.num_kv_heads, c.head_dim, max_context, device)
        attended = torch.zeros(max_rows, c.num_heads, c.head_dim, dtype=dtype, device=device)
        return cls(parts, attention, attended, torch.arange(max_rows + 1, dtype=torch.int32, device=device))


def decode_layers(
    model: Transformer,
    feed: RowFeed,
    inputs: StepInputs,
    kv: KVCache,
    memory: Memory,
    tracer: Tracer,
    *,
    weighted: bool,
    invariant: bool,
) -> Tensor:
    """Hidden states [B, D] after the final norm, of one token a row; its keys and values are written.

    weighted: some row has a reflection weight. invariant: a row's sums are the same in every batch.
    """
    c, x = model.config, inputs.x
    how: dict[str, Any] = {"workspace": memory.products, "invariant": invariant}
    tags = (inputs.query_tag, kv.key_tag, feed.log_weight) if weighted else None
    for index, layer in enumerate(model.weights.layers):
        # Norm, queries, keys and values.
        with tracer.span("qkv", layer=index):
            qkv = step_linear(layer.qkv, x, Norm(layer.attention_norm, c.norm_eps), **how)
        # Rotation; keys and values into their pages; attention.
        with tracer.span("attention", layer=index):
            y = _attended(c, index, layer, qkv, feed, inputs, kv, memory, tags)
        # The output of attention and the residual.
        with tracer.span("out", layer=index):
            x = step_linear(layer.attention_out, y.flatten(1), residual=x, **how)
        # Norm and the gated feed-forward, into the residual.
        with tracer.span("ffn", layer=index):
            x = _feed_forward(model, layer, x, how)
    return rms_norm(x, model.weights.final_norm, c.norm_eps)


def _feed_forward(model: Transformer, layer: LayerWeights, x: Tensor, how: dict[str, Any]) -> Tensor:
    """x [B, D] -> x + feed-forward [B, D]: two launches, or eight of experts."""
    c = model.config
    if layer.router is None:
        h = step_linear(layer.gate_up, x, Norm(layer.ffn_norm, c.norm_eps), gated=True, **how)
        return step_linear(layer.down, h, residual=x, **how)
    h = rms_norm(x, layer.ffn_norm, c.norm_eps)
    weights = expert_weights(layer.gate_up), expert_weights(layer.down)
    return routed_ffn(
        h, step_linear(layer.router, h, **how), *weights, c.num_used_experts, c.normalizes_experts, x,
        invariant=how["invariant"],
    )  # fmt: skip


def _attended(
    c: ModelConfig,
    index: int,
    layer: LayerWeights,
    qkv: Tensor,
    feed: RowFeed,
    inputs: StepInputs,
    kv: KVCache,
    memory: Memory,
    tags: Tags | None,
) -> Tensor:
    """Attention [B, H, head_dim] over keys and values with those of this step: in one launch, but for a cache of fp8."""
    num_rows, norms = len(qkv), None
    if layer.q_norm is not None and layer.k_norm is not None:
        norms = HeadNorm(layer.q_norm, layer.k_norm, c.norm_eps)
    place, scale, out = (inputs.cos, inputs.sin), c.head_dim**-0.5, memory.attended[:num_rows]
    pages = (kv.k[index], kv.v[index], feed.page_table)
    if kv.k_scale is None or kv.v_scale is None:
        return step_attention(
            qkv, *place, *pages, inputs.context_len, scale, c.rope_interleaved, layer.qkv_bias, norms, tags,
            out=out, workspace=memory.attention,
        )  # fmt: skip
    heads = torch.unflatten(qkv if layer.qkv_bias is None else qkv + layer.qkv_bias, -1, (-1, c.head_dim))
    q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
    if norms is not None:
        q, k = rms_norm(q, norms.q, norms.eps), rms_norm(k, norms.k, norms.eps)
    kv.store(index, rotary(k, *place, c.rope_interleaved), v, inputs.slots)
    return paged_attention(
        rotary(q, *place, c.rope_interleaved), *pages, memory.query_start[: num_rows + 1], inputs.context_len, scale,
        *(tags or ()), k_scale=kv.k_scale[index], v_scale=kv.v_scale[index], max_queries=1, out=out,
        workspace=memory.attention,
    )  # fmt: skip
