"""transformers' GLM with the weights of ours: eager with its growing cache, or a static cache and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench.peers.compiled import whole
from torch import Tensor, nn

from innervoice.model.transformer import Transformer


def glm(model: Transformer) -> Any:
    """A GlmForCausalLM whose parameters are views of our weights."""
    from transformers import GlmConfig, GlmForCausalLM

    c, w = model.config, model.weights
    config = GlmConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.ffn_size, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
        partial_rotary_factor=c.rotary_dim / c.head_dim, rope_theta=c.rope_theta, attention_bias=c.qkv_bias,
        max_position_embeddings=c.max_position, tie_word_embeddings=c.tied, pad_token_id=0, attention_dropout=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        made = GlmForCausalLM(config)
    with torch.device(w.embedding.device):  # its frequencies are computed, not loaded
        made.model.rotary_emb = type(made.model.rotary_emb)(config)
    _set(made.model.embed_tokens, w.embedding)
    _set(made.model.norm, w.final_norm)
    _set(made.lm_head, w.output)
    sizes = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
    for theirs, ours in zip(made.model.layers, w.layers, strict=True):
        biases = [None] * 3 if ours.qkv_bias is None else ours.qkv_bias.split(sizes)
        for name, part, bias in zip("qkv", ours.qkv.split(sizes), biases, strict=True):
            _set(getattr(theirs.self_attn, f"{name}_proj"), part, bias)
        _set(theirs.self_attn.o_proj, ours.attention_out)
        _set(theirs.mlp.gate_up_proj, ours.gate_up)
        _set(theirs.mlp.down_proj, ours.down)
        _set(theirs.input_layernorm, ours.attention_norm)
        _set(theirs.post_attention_layernorm, ours.ffn_norm)
    return made.eval()


def _set(module: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)


def stepper(
    model: Transformer,
    rows: int,
    context: int,
    *,
    compiled: bool,
    change: Callable[[Any], None] | None = None,
) -> Callable[[], Tensor]:
    """A function that takes one greedy step behind `context` tokens of random keys and values; warmed up. change: of the peer."""
    from transformers import DynamicCache, StaticCache

    peer, c = glm(model), model.config
    if change is not None:
        change(peer)
    embedding = model.weights.embedding
    shape = (rows, c.num_kv_heads, context, c.head_dim)
    places = torch.arange(context, device=embedding.device)
    cache = (
        StaticCache(config=peer.config, max_cache_len=context + 1)
        if compiled
        else DynamicCache(config=peer.config)
    )
    for layer in range(c.num_layers):
        k, v = (torch.randn(shape, dtype=embedding.dtype, device=embedding.device) for _ in range(2))
        cache.update(k, v, layer, {"cache_position": places})
    ids = (torch.arange(rows, device=embedding.device) % c.vocab_size)[:, None]
    position = torch.tensor([context], device=embedding.device)

    def step() -> Tensor:
        if compiled:  # a static cache counts its tokens itself, and would be written past its end
            for layer in cache.layers:
                layer.cumulative_length.fill_(context)
        places = {"cache_position": position, "position_ids": position[None].expand(rows, 1)}
        return peer(ids, past_key_values=cache, use_cache=True, **places).logits[:, -1].argmax(-1)

    forward = whole(step, (ids, position), ids.device) if compiled else step

    @torch.inference_mode()
    def run() -> Tensor:
        taken = forward()
        if not compiled:
            cache.crop(-1)
        return taken

    for _ in range(3):
        run()
    return run
