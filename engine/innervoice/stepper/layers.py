"""The layers of a decode step by the fused kernels: six launches a layer, in memory that is kept from step to step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.model.transformer import KVCache, Transformer
from innervoice.trace import Tracer
from innervoice_kernels.attention import paged_attention
from innervoice_kernels.attention_decode import Workspace
from innervoice_kernels.linear import Norm, SplitWorkspace, gated_linear, linear
from innervoice_kernels.norm import rms_norm
from innervoice_kernels.qkv import HeadNorm, qkv_rope_store
from innervoice_kernels.step import Feed, Inputs


@dataclass(frozen=True)
class Memory:
    """Where parts of products and of attention meet. One step at a time uses it."""

    products: SplitWorkspace
    attention: Workspace
    attended: Tensor  # [max_rows, H, head_dim]; rows that feed nothing leave theirs as it is
    query_start: Tensor  # [max_rows + 1] int32: 0, 1, 2, ...

    @classmethod
    def allocate(cls, model: Transformer, max_rows: int, max_context: int) -> Memory:
        """For batches of up to max_rows rows."""
        c, embedding = model.config, model.weights.embedding
        device = embedding.device
        shapes = tuple(
            (len(w), w.shape[1]) for layer in model.weights.layers for w in (layer.qkv, layer.attention_out, layer.down)
        )
        row_tiles = -(-max_rows // 16)
        one = SplitWorkspace.allocate(shapes, embedding.dtype, device)
        products = SplitWorkspace(
            one.partial.new_empty(len(one.partial) * row_tiles), one.arrived.new_zeros(len(one.arrived) * row_tiles)
        )
        attention = Workspace.allocate(max_rows, c.num_heads, c.num_kv_heads, c.head_dim, max_context, device)
        attended = torch.zeros(max_rows, c.num_heads, c.head_dim, dtype=embedding.dtype, device=device)
        return cls(products, attention, attended, torch.arange(max_rows + 1, dtype=torch.int32, device=device))


def decode_layers(
    model: Transformer,
    feed: Feed,
    inputs: Inputs,
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
    num_rows = len(x)
    tags = (inputs.query_tag, kv.key_tag, feed.log_weight) if weighted else (None, None, None)
    for index, layer in enumerate(model.weights.layers):
        with tracer.span("qkv", layer=index):
            qkv = linear(
                x, layer.qkv, norm=Norm(layer.attention_norm, c.norm_eps), invariant=invariant, workspace=memory.products
            )
            norms = None if layer.q_norm is None or layer.k_norm is None else HeadNorm(layer.q_norm, layer.k_norm, c.norm_eps)
            q = qkv_rope_store(
                qkv, inputs.cos, inputs.sin, kv.k[index], kv.v[index], inputs.slots, c.rope_interleaved, layer.qkv_bias, norms
            )
        with tracer.span("attention", layer=index):
            y = paged_attention(
                q, kv.k[index], kv.v[index], feed.page_table, memory.query_start[: num_rows + 1], inputs.context_len,
                c.head_dim**-0.5, *tags, max_queries=1, out=memory.attended[:num_rows], workspace=memory.attention,
            )  # fmt: skip
        with tracer.span("out", layer=index):
            x = linear(y.flatten(1), layer.attention_out, residual=x, invariant=invariant, workspace=memory.products)
        with tracer.span("ffn", layer=index):
            h = gated_linear(x, layer.gate_up, Norm(layer.ffn_norm, c.norm_eps), invariant=invariant)
            x = linear(h, layer.down, residual=x, invariant=invariant, workspace=memory.products)
    return rms_norm(x, model.weights.final_norm, c.norm_eps)
