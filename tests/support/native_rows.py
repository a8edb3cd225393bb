"""Small random models, and rows whose steps the native decoder makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from native_weights import KINDS, numbers
from rows import Rows
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.kv_cache import KVCache
from innervoice.model.native import NativeDecoder
from innervoice.model.quant import Weight
from innervoice.model.transformer import AttentionInputs, Transformer
from innervoice.model.weights import LayerWeights, ModelWeights

BASE = ModelConfig("llama", 3, 48, 6, 2, 16, 100, 300, 1e-5, 16, 10000.0, False, False, True, 2048, "float32")
MODELS = {
    "plain": BASE,
    "interleaved": replace(BASE, rope_interleaved=True, qkv_bias=True, tied=False, rotary_dim=8),
    "head norms": replace(BASE, qk_norm=True, head_dim=24, rotary_dim=24, num_kv_heads=3),
    "experts": replace(BASE, ffn_size=41, num_experts=7, num_used_experts=3),
    "experts of plain shares": replace(
        BASE, ffn_size=32, num_experts=5, num_used_experts=2, normalizes_experts=False
    ),
}


def make_model(config: ModelConfig, kind: str = "float32", dtype: torch.dtype = torch.float32) -> Transformer:
    """A model with random weights of a kind, embedding and norms in dtype."""
    generator = torch.Generator().manual_seed(0)
    c = config

    def vector(size: int, middle: float) -> Tensor:
        return (middle + 0.1 * torch.randn(size, generator=generator)).to(dtype)

    def linear(outputs: int, inputs: int) -> Weight:
        w = (torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(dtype)
        return w if kind in ("float32", "bfloat16") else KINDS[kind](w)

    def head_norm() -> Tensor | None:
        return vector(c.head_dim, 1.0) if c.qk_norm else None

    layers = tuple(
        LayerWeights(
            attention_norm=vector(c.hidden_size, 1.0),
            qkv=linear(c.qkv_size, c.hidden_size),
            qkv_bias=vector(c.qkv_size, 0.0) if c.qkv_bias else None,
            attention_out=linear(c.hidden_size, c.num_heads * c.head_dim),
            ffn_norm=vector(c.hidden_size, 1.0),
            gate_up=linear(2 * c.ffn_size * max(c.num_experts, 1), c.hidden_size),
            down=linear(c.hidden_size * max(c.num_experts, 1), c.ffn_size),
            q_norm=head_norm(),
            k_norm=head_norm(),
            router=vector(c.num_experts * c.hidden_size, 0.0).view(-1, c.hidden_size)
            if c.num_experts
            else None,
        )
        for _ in range(c.num_layers)
    )
    embedding = (torch.randn(c.vocab_size, c.hidden_size, generator=generator) / 4).to(dtype)
    output = embedding if c.tied else linear(c.vocab_size, c.hidden_size)
    return Transformer(c, ModelWeights(embedding, layers, vector(c.hidden_size, 1.0), output))


def plain_of(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The same numbers, dequantised, in a type: what the rule compares with."""
    w = model.weights
    layers = tuple(
        replace(
            layer,
            **{name: numbers(value, dtype) for name, value in vars(layer).items() if value is not None},
        )
        for layer in w.layers
    )
    embedding = numbers(w.embedding, dtype)
    output = embedding if w.output is w.embedding else numbers(w.output, dtype)
    return Transformer(model.config, ModelWeights(embedding, layers, numbers(w.final_norm, dtype), output))


class NativeRows(Rows):
    """Rows whose steps the native decoder makes."""

    def __init__(self, model: Transformer, native: NativeDecoder, *args: object) -> None:
        super().__init__(plain_of(model, model.weights.final_norm.dtype), *args)  # type: ignore[arg-type]
        self.model = _Steps(native)  # type: ignore[assignment]


class _Steps:
    def __init__(self, native: NativeDecoder) -> None:
        self.native = native

    def forward(self, ids: Tensor, batch: AttentionInputs, kv: KVCache) -> Tensor:
        if batch.query_tag is not None:
            batch = replace(batch, query_tag=batch.query_tag.contiguous())
        return self.native.logits(ids, batch, kv, torch.arange(len(ids)))

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


STEPS = ((5, 17, 1), (1, 1, 1), (2, 0, 3), (40, 300, 1), (1, 1, 1), (600, 1, 1), (1, 8, 1))
REFLECTION = (1.5, 1.0, 2.0)


def run(rows: Rows, steps: Sequence[Sequence[int]] = STEPS) -> Tensor:
    """Feed each row so many random tokens a step, with random tags -> all logits, below each other."""
    generator = torch.Generator().manual_seed(1)
    out = []
    for lengths in steps:
        ids = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in lengths]
        tags = [[tuple(torch.randint(0, 2, (2,), generator=generator).tolist()) for _ in row] for row in ids]
        out += rows.step(ids, tags)
    return torch.cat(out)
