"""Llama, Qwen2 (bias on query, key and value), Qwen3 (norm on query and key) and Qwen3-MoE in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.families import hugging_face
from innervoice.model.families.hugging_face import (
    default_system,
    dialogue_runs,
    load_text,
    read_audio_encoder,
    turn_head_ids,
    turn_ids,
)

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

NAME = "llama"
MODEL_TYPES: tuple[str, ...] = ("llama", "qwen2", "qwen3", "qwen3_moe")
_QWEN3_HEAD_DIM = 128


def read_config(data: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
    """config.json as ModelConfig.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    kind = data.get("model_type")
    # Qwen2 has no such key: its bias is on query, key and value alone, always. The key would
    # put one on the output too.
    if kind != "qwen2" and data.get("attention_bias"):
        raise ValueError(f"{source}: attention_bias is true, which is not supported for model_type {kind!r}")
    return hugging_face.read_config(
        data,
        source,
        family=NAME,
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        head_dim=_QWEN3_HEAD_DIM if kind == "qwen3" else None,
        has_experts=kind == "qwen3_moe",
    )


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> ModelWeights:
    """All weights, tensor by tensor. Raises ValueError for a tensor that is missing or misshapen."""
    from innervoice.model.families import hugging_face_weights

    return hugging_face_weights.load_weights(config, tensors, dtype, device, fused_gate_up=False)
