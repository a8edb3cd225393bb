"""Small models of every supported family by transformers' own classes, with random weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCAB = 211
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": PLAIN}),
    "llama_tied_llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_linear_one_head_each": ("Llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    "llama_head_dim": ("Llama", {"rope_parameters": PLAIN, "head_dim": 40}),
    "qwen2": ("Qwen2", {"rope_parameters": PLAIN}),
    "qwen2_yarn": ("Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": PLAIN, "head_dim": 24}),
    "qwen3_yarn": (
        "Qwen3",
        {"rope_parameters": YARN | {"beta_fast": 8.0, "truncate": False}, "head_dim": 24},
    ),
    "qwen3_moe": ("Qwen3Moe", {"rope_parameters": PLAIN, "head_dim": 24, "norm_topk_prob": True} | MIXTURE),
    "qwen3_moe_shares": (
        "Qwen3Moe",
        {"rope_parameters": PLAIN, "num_key_value_heads": 4} | MIXTURE,
    ),
    "glm": ("Glm", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}, "head_dim": 24}),
    "glm_without_bias": ("Glm", {"rope_parameters": PLAIN, "head_dim": 32, "attention_bias": False}),
}


def make(name: str, **changes: Any) -> Any:
    """transformers' model of a case with weights wide enough that every part of it shows in the logits."""
    kind, own = CASES[name]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 104,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy(sizes | own | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            1.0 if parameter.ndim == 1 else 0.15
        )
    return model
