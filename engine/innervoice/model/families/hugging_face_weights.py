"""The weights of the families in Hugging Face's own layout, by their names in the file."""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.safetensors import TensorSource
from innervoice.model.quant import Weight, joined, stacked
from innervoice.model.quant_source import read_weight
from innervoice.model.weights import LayerWeights, ModelWeights


def load_weights(
    config: ModelConfig,
    tensors: TensorSource,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    fused_gate_up: bool,
    prefix: str = "",
) -> ModelWeights:
    """All weights, tensor by tensor; fused_gate_up: the file has gate and up in one
    tensor, as they are kept here; prefix: of every name.

    Raises ValueError for a tensor that is missing or misshapen.
    """
    width = config.hidden_size

    # Norms and biases are plain tensors; what is multiplied may be quantised.
    def get(name: str, *shape: int) -> Tensor:
        return tensors.get(prefix + name, shape, dtype=dtype, device=device)

    def weight(name: str, *shape: int, head: bool = False) -> Weight:
        return read_weight(tensors, prefix + name, shape, dtype=dtype, device=device, head=head)

    # Experts one below the other, of each gate and then up.
    def feed_forward(mlp: str) -> tuple[Weight, Weight]:
        inner = config.ffn_size
        parts = [f"{mlp}.experts.{e}" for e in range(config.num_experts)] or [mlp]
        halves = [f"{part}.{half}_proj.weight" for part in parts for half in ("gate", "up")]
        down = joined([weight(f"{part}.down_proj.weight", width, inner) for part in parts], dtype)
        if fused_gate_up:
            return weight(f"{mlp}.gate_up_proj.weight", 2 * inner, width), down
        return joined([weight(name, inner, width) for name in halves], dtype), down

    # A tied embedding is the head as well, and is read as such.
    name, size = "model.embed_tokens.weight", (config.vocab_size, width)
    embedding = weight(name, *size, head=True) if config.tied else get(name, *size)

    def layer(index: int) -> LayerWeights:
        place = f"model.layers.{index}"
        attention, mlp = f"{place}.self_attn", f"{place}.mlp"
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        rows = {f"{attention}.{name}_proj": count * config.head_dim for name, count in heads.items()}
        gate_up, down = feed_forward(mlp)
        return LayerWeights(
            attention_norm=get(f"{place}.input_layernorm.weight", width),
            qkv=joined([weight(f"{name}.weight", count, width) for name, count in rows.items()], dtype),
            qkv_bias=stacked([get(f"{name}.bias", count) for name, count in rows.items()])
            if config.qkv_bias
            else None,
            attention_out=weight(f"{attention}.o_proj.weight", width, config.num_heads * config.head_dim),
            ffn_norm=get(f"{place}.post_attention_layernorm.weight", width),
            gate_up=gate_up,
            down=down,
            q_norm=get(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            k_norm=get(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            router=get(f"{mlp}.gate.weight", config.num_experts, width) if config.num_experts else None,
        )

    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer(index) for index in range(config.num_layers)),
        final_norm=get("model.norm.weight", width),
        output=embedding if config.tied else weight("lm_head.weight", *size, head=True),
    )
