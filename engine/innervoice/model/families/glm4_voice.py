"""GLM-4-Voice: the ChatGLM checkpoint format and its prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.files import agree, note_unknown, require
from innervoice.checkpoint.model_config import ModelConfig, read_dtype, read_eps, read_flag, read_size
from innervoice.model import text
from innervoice.model.text import (
    TextTokenizer,
    TiktokenTokenizer,
    default_system,
    dialogue_runs,
    load_vocabulary,
    turn_head_ids,
    turn_ids,
)
from innervoice.types import Vocabulary

if TYPE_CHECKING:
    import torch

    from innervoice.checkpoint.safetensors import TensorSource
    from innervoice.model.weights import ModelWeights

__all__ = [
    "MODEL_TYPES",
    "NAME",
    "default_system",
    "dialogue_runs",
    "load_text",
    "load_weights",
    "read_audio_encoder",
    "read_config",
    "turn_head_ids",
    "turn_ids",
]

NAME = "glm4_voice"
MODEL_TYPES: tuple[str, ...] = ("chatglm",)

# Settings of the original code, its default, and the one value that is run here.
_FIXED: dict[str, tuple[Any, Any]] = {
    "rmsnorm": (True, True),
    "post_layer_norm": (True, True),
    "original_rope": (True, True),
    "add_bias_linear": (False, False),
    "apply_residual_connection_post_layernorm": (False, False),
    "fp32_residual_connection": (False, False),
    "quantization_bit": (0, 0),
    "pre_seq_len": (None, None),
}
_USED = (
    "model_type", "num_layers", "num_hidden_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels",
    "multi_query_attention", "multi_query_group_num", "padded_vocab_size", "vocab_size", "layernorm_epsilon", "add_qkv_bias",
    "rope_ratio", "seq_length", "tie_word_embeddings", "torch_dtype", "dtype", "eos_token_id", "pad_token_id",
)  # fmt: skip
_NEUTRAL = (
    "architectures", "auto_map", "transformers_version", "use_cache", "_name_or_path", "hidden_dropout", "attention_dropout",
    "classifier_dropout", "bias_dropout_fusion", "apply_query_key_layer_scaling", "attention_softmax_in_fp32",
)  # fmt: skip
# Settings with two names: the original code's, which counts, and the one that transformers has for others.
_SPELLINGS = (
    ("num_layers", "num_hidden_layers"), ("padded_vocab_size", "vocab_size"), ("ffn_hidden_size", "intermediate_size"),
    ("kv_channels", "head_dim"), ("layernorm_epsilon", "rms_norm_eps"), ("seq_length", "max_position_embeddings"),
)  # fmt: skip
_DEFAULT_MAX_POSITION = 8192  # the base model's; the frequencies do not depend on it


def read_config(data: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
    """ChatGLM's config.json.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    note_unknown(data, (*_FIXED, *_USED, *_NEUTRAL), source)
    for key, (default, expected) in _FIXED.items():
        if data.get(key, default) != expected:
            raise ValueError(
                f"{source}: {key} is {data[key]!r}, which is not supported; GLM-4-Voice has {expected!r}"
            )
    for spellings in _SPELLINGS:
        agree(data, source, *spellings)
    heads, head_dim = read_size(data, "num_attention_heads", source), read_size(data, "kv_channels", source)
    kv_heads = (
        read_size(data, "multi_query_group_num", source)
        if read_flag(data, "multi_query_attention", source, False)
        else heads
    )
    if heads % kv_heads or head_dim % 4:
        raise ValueError(
            f"{source}: num_attention_heads {heads} must be a multiple of multi_query_group_num {kv_heads}, "
            f"and kv_channels {head_dim} of 4"
        )
    dtype = read_dtype(data, source, "bfloat16")
    return ModelConfig(
        family=NAME,
        num_layers=read_size(data, "num_layers", source),
        hidden_size=read_size(data, "hidden_size", source),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=read_size(data, "ffn_hidden_size", source),
        vocab_size=read_size(data, "padded_vocab_size", source),
        norm_eps=read_eps(data, "layernorm_epsilon", source),
        rotary_dim=head_dim // 2,
        rope_theta=10000.0 * _rope_ratio(data, source),
        rope_interleaved=True,
        qkv_bias=read_flag(data, "add_qkv_bias", source, False),
        tied=read_flag(data, "tie_word_embeddings", source, False),
        max_position=read_size(data, "seq_length", source) if "seq_length" in data else _DEFAULT_MAX_POSITION,
        dtype=dtype,
    )


def read_audio_encoder(data: Mapping[str, Any], source: str | PathLike[str]) -> None:
    """See Family.read_audio_encoder: the speech tokenizer hears."""


def _rope_ratio(data: Mapping[str, Any], source: str | PathLike[str]) -> float:
    value = float(require({"rope_ratio": 1, **data}, "rope_ratio", source))
    if not 0 < value < math.inf:
        raise ValueError(f"{source}: rope_ratio is {value}, expected a finite number above 0")
    return value


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> ModelWeights:
    """All weights, tensor by tensor. Raises ValueError for a tensor that is missing or misshapen."""
    from innervoice.model.families import glm4_voice_weights

    return glm4_voice_weights.load_weights(config, tensors, dtype, device)


def load_text(
    directory: str | PathLike[str], num_codes: int | None, *, stand_in: bool = False
) -> tuple[TextTokenizer, Vocabulary]:
    """The tokenizer and the vocabulary of a checkpoint; num_codes: size of the
    speech codebook, None without one.

    stand_in: where the tokenizer's files are missing, make up one of the right size. Raises
    FileNotFoundError, ValueError.
    """
    if stand_in and not all(
        (Path(directory) / name).exists() for name in ("tokenizer.model", "tokenizer_config.json")
    ):
        return text.stand_in(directory, num_codes)
    tokenizer = TiktokenTokenizer.from_pretrained(directory)
    return tokenizer, load_vocabulary(directory, num_codes, tokenizer=tokenizer)
