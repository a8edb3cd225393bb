"""Models that are measured: their config.json, with random weights made on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import DummyTensors, TensorSource
from innervoice.model.families import family_of, glm4_voice
from innervoice.model.quant_source import BlankSource, QuantizingSource
from innervoice.model.transformer import Transformer
from innervoice.tools.decode_bench import DecodeModel
from innervoice.types import Vocabulary

GLM_4_VOICE: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMForConditionalGeneration"], "num_layers": 40, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
    "kv_channels": 128, "padded_vocab_size": 168960, "layernorm_epsilon": 3.90625e-08, "rmsnorm": True, "post_layer_norm": True,
    "add_qkv_bias": True, "add_bias_linear": False, "rope_ratio": 1, "original_rope": True, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "eos_token_id": [151329, 151336, 151338],
}  # fmt: skip
# The thinker of Qwen3-Omni-30B-A3B, as a model of text.
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 48, "hidden_size": 2048,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "vocab_size": 152064, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "max_position_embeddings": 65536, "tie_word_embeddings": False, "hidden_act": "silu",
    "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL = GLM_4_VOICE | {
    "num_layers": 2, "hidden_size": 256, "ffn_hidden_size": 688, "num_attention_heads": 8, "kv_channels": 32,
    "padded_vocab_size": 4096, "torch_dtype": "float32", "eos_token_id": [4095],
}  # fmt: skip


def random_model(data: dict[str, Any], device: str, to: Quantization | None = None) -> DecodeModel:
    """A decoder of this config.json with random weights, quantised or not, laid out as an engine lays them out; text up to 0.9
    of its vocabulary, speech behind it.
    """
    config = glm4_voice.read_config(data, "config.json")
    source: TensorSource = DummyTensors() if to is None else QuantizingSource(DummyTensors(), to)
    weights = glm4_voice.load_weights(config, source, getattr(torch, config.dtype), device)
    return DecodeModel(Transformer(config, weights.laid_out()), vocabulary_of(config))


def blank_model(data: dict[str, Any], to: Quantization | str | None = None) -> Transformer:
    """A decoder of this config.json, laid out as an engine lays it out, on torch's meta device: shapes and types alone."""
    family = family_of(data, "config.json")
    config = family.read_config(data, "config.json")
    source = BlankSource(Quantization(to) if isinstance(to, str) else to)
    weights = family.load_weights(config, source, getattr(torch, config.dtype), "meta")
    return Transformer(config, weights.laid_out())


def vocabulary_of(config: ModelConfig) -> Vocabulary:
    """As GLM-4-Voice's lies: text, then speech, then a few ids that nobody draws."""
    size = config.vocab_size
    text_end = size * 9 // 10
    return Vocabulary(
        size=size, text=(0, text_end - 8), speech=(text_end, size - 224), end_of_turn=text_end - 2, open=text_end - 3,
        close=text_end - 4, done=text_end - 5, eos=(text_end - 2,),
    )  # fmt: skip


def write_shipped_configs(target: Path, tiny_dir: Path, num_layers: int = 40) -> None:
    """The tiny checkpoint's config files with the sizes that GLM-4-Voice ships, below a directory: what dummy weights need."""

    def change(path: str, **values: Any) -> None:
        data = json.loads((tiny_dir / path).read_text()) | values
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_text(json.dumps(data))

    change(
        "glm-4-voice-9b/config.json",
        num_layers=num_layers, num_hidden_layers=num_layers, hidden_size=4096, ffn_hidden_size=13696, num_attention_heads=32,
        kv_channels=128, padded_vocab_size=168960, vocab_size=168960, torch_dtype="bfloat16",
        eos_token_id=[151329, 151336, 151338], pad_token_id=151329,
    )  # fmt: skip
    change(
        "glm-4-voice-9b/generation_config.json", eos_token_id=[151329, 151336, 151338], pad_token_id=151329
    )
    change(
        "glm-4-voice-tokenizer/config.json",
        d_model=1280, encoder_attention_heads=20, encoder_ffn_dim=5120, encoder_layers=32, pooling_position=16,
        quantize_position=16, quantize_vocab_size=16384,
    )  # fmt: skip
    yaml = (tiny_dir / "glm-4-voice-decoder" / "config.yaml").read_text()
    for small, full in (
        ("input_size: 64", "input_size: 512"), ("vocab_size: 64", "vocab_size: 16384"), ("output_size: 64", "output_size: 512"),
        ("attention_heads: 4", "attention_heads: 8"), ("linear_units: 96", "linear_units: 2048"),
        ("num_blocks: 2", "num_blocks: 6"),
        ("channels: [32, 32]", "channels: [256, 256]"), ("attention_head_dim: 16", "attention_head_dim: 64"),
        ("n_blocks: 2", "n_blocks: 4"), ("num_mid_blocks: 3", "num_mid_blocks: 12"), ("num_heads: 2", "num_heads: 8"),
        ("base_channels: 32", "base_channels: 512"), ("cond_channels: 48", "cond_channels: 512"),
    ):  # fmt: skip
        assert small in yaml
        yaml = yaml.replace(small, full)
    (target / "glm-4-voice-decoder").mkdir()
    (target / "glm-4-voice-decoder" / "config.yaml").write_text(yaml)
