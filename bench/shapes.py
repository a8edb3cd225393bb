"""Models that are measured: their config.json, with random weights made on the device."""

from __future__ import annotations

from typing import Any

import torch

from innervoice.config.model import ModelConfig
from innervoice.config.quantization import Quantization
from innervoice.decode_bench import DecodeModel
from innervoice.model.families import glm4_voice
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import Transformer
from innervoice.safetensors_file import DummyTensors, TensorSource
from innervoice.types import Vocabulary

GLM_4_VOICE: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMForConditionalGeneration"], "num_layers": 40, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
    "kv_channels": 128, "padded_vocab_size": 168960, "layernorm_epsilon": 3.90625e-08, "rmsnorm": True, "post_layer_norm": True,
    "add_qkv_bias": True, "add_bias_linear": False, "rope_ratio": 1, "original_rope": True, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "eos_token_id": [151329, 151336, 151338],
}  # fmt: skip
SMALL = GLM_4_VOICE | {
    "num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 688, "num_attention_heads": 8, "kv_channels": 32,
    "padded_vocab_size": 4096, "torch_dtype": "float32", "eos_token_id": [4095],
}  # fmt: skip


def random_model(data: dict[str, Any], device: str, to: Quantization | None = None) -> DecodeModel:
    """A decoder of this config.json with random weights, quantised or not; text up to 0.9 of its vocabulary, speech behind it."""
    config = glm4_voice.read_config(data, "config.json")
    source: TensorSource = DummyTensors() if to is None else QuantizingSource(DummyTensors(), to)
    weights = glm4_voice.load_weights(config, source, getattr(torch, config.dtype), device)
    return DecodeModel(Transformer(config, weights), vocabulary_of(config))


def vocabulary_of(config: ModelConfig) -> Vocabulary:
    """As GLM-4-Voice's lies: text, then speech, then a few ids that nobody draws."""
    size = config.vocab_size
    text_end = size * 9 // 10
    return Vocabulary(
        size=size, text=(0, text_end - 8), speech=(text_end, size - 224), end_of_turn=text_end - 2, open=text_end - 3,
        close=text_end - 4, done=text_end - 5, eos=(text_end - 2,),
    )  # fmt: skip
