"""The weights of GLM-4-Voice, by their names in the ChatGLM format."""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.safetensors import TensorSource
from innervoice.model.quant import Weight, rows_of
from innervoice.model.quant_source import read_weight
from innervoice.model.weights import LayerWeights, ModelWeights


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device
) -> ModelWeights:
    """All weights, tensor by tensor. Raises ValueError for a tensor that is missing or misshapen."""
    width = config.hidden_size

    def get(name: str, *shape: int) -> Tensor:
        return tensors.get(f"transformer.{name}", shape, dtype=dtype, device=device)

    def weight(name: str, *shape: int, head: bool = False) -> Weight:
        return read_weight(tensors, f"transformer.{name}", shape, dtype=dtype, device=device, head=head)

    name, size = "embedding.word_embeddings.weight", (config.vocab_size, width)
    embedding = weight(name, *size, head=True) if config.tied else get(name, *size)
    order = _row_order(config)

    def layer(index: int) -> LayerWeights:
        prefix = f"encoder.layers.{index}"
        qkv = weight(f"{prefix}.self_attention.query_key_value.weight", config.qkv_size, width)
        bias = (
            get(f"{prefix}.self_attention.query_key_value.bias", config.qkv_size) if config.qkv_bias else None
        )
        return LayerWeights(
            attention_norm=get(f"{prefix}.input_layernorm.weight", width),
            qkv=qkv if order is None else rows_of(qkv, order.to(device)),
            qkv_bias=bias if order is None or bias is None else bias[order.to(device)],
            attention_out=weight(
                f"{prefix}.self_attention.dense.weight", width, config.num_heads * config.head_dim
            ),
            ffn_norm=get(f"{prefix}.post_attention_layernorm.weight", width),
            gate_up=weight(f"{prefix}.mlp.dense_h_to_4h.weight", 2 * config.ffn_size, width),
            down=weight(f"{prefix}.mlp.dense_4h_to_h.weight", width, config.ffn_size),
        )

    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer(index) for index in range(config.num_layers)),
        final_norm=get("encoder.final_layernorm.weight", width),
        output=embedding if config.tied else weight("output_layer.weight", *size, head=True),
    )


def _row_order(config: ModelConfig) -> Tensor | None:
    """The rows of the joint projection in the order of all queries, all keys, all
    values; None: they are in it.

    Without grouped queries the original keeps query, key and value of each head together: [H, 3, head_dim].
    """
    if config.num_kv_heads < config.num_heads:
        return None
    return (
        torch.arange(config.qkv_size, dtype=torch.int64, device="cpu")
        .view(config.num_heads, 3, config.head_dim)
        .transpose(0, 1)
        .flatten()
    )
