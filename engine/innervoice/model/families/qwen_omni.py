"""The thinkers of Qwen3-Omni (a mixture of experts) and Qwen2.5-Omni (dense) in Hugging Face's layout.

They take and make text: vision and speech parts are not read. Without images all three axes of the rotary
positions advance by one a token, which is the plain rotation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.files import require
from innervoice.checkpoint.model_config import ModelConfig, read_flag
from innervoice.model.families import hugging_face
from innervoice.model.families.hugging_face import (
    default_system,
    dialogue_runs,
    load_text,
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
    "read_config",
    "turn_head_ids",
    "turn_ids",
]

log = logging.getLogger("innervoice")

NAME = "qwen_omni"
MODEL_TYPES: tuple[str, ...] = ("qwen3_omni_moe", "qwen2_5_omni")
PREFIX = "thinker."
# Keys of a rotation's description that have no effect on text and sound, where all axes agree.
_AXES = ("mrope_section", "interleaved", "mrope_interleaved")
# Book-keeping of older transformers in every section.
_NOTHING = (
    "add_cross_attention", "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task",
    "is_decoder", "prefix", "pruned_heads", "sep_token_id", "task_specific_params", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "torchscript", "use_bfloat16", "init_std",
)  # fmt: skip
# Settings and the values that are run here.
_SHIPPED: dict[str, tuple[Any, ...]] = {
    "shared_expert_intermediate_size": (0, None),
    "use_qk_norm": (True, None),
    "attention_bias": (False, None),
}


def read_config(data: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
    """thinker_config.text_config of config.json as ModelConfig.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    has_experts = data.get("model_type") == "qwen3_omni_moe"
    thinker = require(data, "thinker_config", source, dict)
    given = require(thinker, "text_config", f"{source}: thinker_config", dict)
    where = f"{source}: thinker_config.text_config"
    for key, run in _SHIPPED.items():
        if given.get(key) not in (*run, None):
            raise ValueError(
                f"{where}: {key} is {given[key]!r}, which is not supported; supported is {run[0]!r}"
            )
    text = {key: value for key, value in given.items() if key not in (*_NOTHING, *_SHIPPED)}
    text |= {key: _plain(text[key]) for key in ("rope_scaling", "rope_parameters") if text.get(key)}
    # The sections around it say what it leaves open.
    text["tie_word_embeddings"] = read_flag(thinker, "tie_word_embeddings", source, False)
    kinds = (part.get(key) for part in (text, thinker, data) for key in ("dtype", "torch_dtype"))
    text |= {"dtype": next((kind for kind in kinds if kind), None), "torch_dtype": None}
    if has_experts and text.get("norm_topk_prob") is None:
        text["norm_topk_prob"] = True
    return hugging_face.read_config(
        text,
        where,
        family=NAME,
        qkv_bias=not has_experts,
        qk_norm=has_experts,
        has_experts=has_experts,
    )


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> ModelWeights:
    """All weights of the thinker's language model, tensor by tensor.

    Raises ValueError for one that is missing or misshapen.
    """
    from innervoice.model.families import hugging_face_weights

    if str(device) != "meta":
        log.info(
            "only the thinker is loaded, for text: the checkpoint's vision, talker and wave parts are skipped"
        )
    return hugging_face_weights.load_weights(
        config, tensors, dtype, device, fused_gate_up=False, prefix=PREFIX
    )


def _plain(rope: Any) -> Any:
    """A rotation's description without its axes."""
    if not isinstance(rope, Mapping):
        return rope
    kept = {key: value for key, value in rope.items() if key not in _AXES}
    if kept.get("type") == "mrope" and kept.get("rope_type", "mrope") in ("mrope", "default"):
        kept |= {"type": "default", "rope_type": "default"}
    return kept
