"""GLM-4 in Hugging Face's layout: half of each head rotated in neighbouring pairs, gate and up in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.model_config import ModelConfig, read_flag
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

NAME = "glm"
MODEL_TYPES: tuple[str, ...] = ("glm",)


def read_config(data: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
    """config.json as ModelConfig.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    return hugging_face.read_config(
        data,
        source,
        family=NAME,
        qkv_bias=read_flag(data, "attention_bias", source, True),
        head_dim=128,
        interleaved=True,
        partial=0.5,
    )


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> ModelWeights:
    """All weights, tensor by tensor. Raises ValueError for a tensor that is missing or misshapen."""
    from innervoice.model.families import hugging_face_weights

    return hugging_face_weights.load_weights(config, tensors, dtype, device, fused_gate_up=True)
