"""A Llama as a GGUF file in Q8_0 or Q4_0, every matrix of it, from plain weights: what llama.cpp is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig


def write_gguf(path: Path, config: ModelConfig, tensors: dict[str, Tensor], format_name: str) -> None:
    """tensors: GGUF's names -> float32, whatever the order of queries and keys: it changes no time. No vocabulary, ids alone."""
    import gguf

    kind = gguf.GGMLQuantizationType[format_name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    made: dict[int, Any] = {}  # layers may share a tensor
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor.float().numpy())
            continue
        if id(tensor) not in made:
            made[id(tensor)] = gguf.quantize(np.ascontiguousarray(tensor.float().numpy()), kind)
        writer.add_tensor(name, made[id(tensor)], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
