"""Shared code of the families in Hugging Face's own layout: config keys, tokenizer.json and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.files import note_unknown
from innervoice.checkpoint.model_config import ModelConfig, read_dtype, read_eps, read_flag, read_size
from innervoice.checkpoint.rope import YarnScaling, read_rope
from innervoice.model import text
from innervoice.model.text import ChatMessage, JsonTokenizer, TextTokenizer, load_vocabulary
from innervoice.model.text.dialogue import DialogueItem
from innervoice.types import Vocabulary

# Settings and the values that are run here; the first of them is what a missing key stands for.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "decoder_sparse_step": (1, None),
    "mlp_only_layers": ([], None),
    "compression_config": (None,),
    "is_encoder_decoder": (False, None),
}
_USED = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "rms_norm_eps", "attention_bias", "rope_parameters", "rope_theta", "rope_scaling",
    "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings", "tie_word_embeddings",
    "torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "layer_types", "sliding_window",
)  # fmt: skip
_EXPERTS = (
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    "output_router_logits", "router_aux_loss_coef",
)  # fmt: skip
_NEUTRAL = (
    "architectures", "attention_dropout", "initializer_range", "max_window_layers", "pretraining_tp", "rope_interleaved",
    "transformers.js_config", "transformers_version", "use_cache", "_name_or_path", "output_attentions", "output_hidden_states",
    "return_dict", "is_llama_config", "chunk_size_feed_forward", "problem_type", "id2label", "label2id",
)  # fmt: skip
_NO_SPEECH = "this model takes no speech: give text"


def read_config(
    data: Mapping[str, Any],
    source: str | PathLike[str],
    *,
    family: str,
    qkv_bias: bool,
    qk_norm: bool = False,
    head_dim: int | None = None,
    interleaved: bool = False,
    partial: float | None = None,
    has_experts: bool = False,
) -> ModelConfig:
    """config.json as ModelConfig; head_dim (None: hidden size by heads) and partial
    rotation (None: whole heads are rotated) stand in for missing keys. has_experts: the feed-forward part of every
    layer is one of experts.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    # Keys that mean something else here are refused; those without a meaning are noted.
    note_unknown(data, (*_FIXED, *_USED, *_NEUTRAL, *(_EXPERTS if has_experts else ())), source)
    _refuse(data, source)
    # Heads: without keys of their own, as many kv heads as heads, and the width shared among them.
    heads, width = read_size(data, "num_attention_heads", source), read_size(data, "hidden_size", source)
    kv_heads = (
        read_size(data, "num_key_value_heads", source)
        if data.get("num_key_value_heads") is not None
        else heads
    )
    head_dim = (
        read_size(data, "head_dim", source)
        if data.get("head_dim") is not None
        else head_dim or width // heads
    )
    # Rotation, and the context that its scaling reaches.
    max_position = read_size(data, "max_position_embeddings", source)
    rope = read_rope(data, source, max_position=max_position, default_partial=partial)
    rotary_dim = int(head_dim * rope.partial)
    if heads % kv_heads or rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ValueError(
            f"{source}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}, "
            f"and {rotary_dim} rotated dimensions of head_dim {head_dim} must be even and not more than it"
        )
    if isinstance(rope.scaling, YarnScaling):
        max_position = max(max_position, int(rope.scaling.original_max_position * rope.scaling.factor))
    # The feed-forward part: one, or experts, of which a token uses some.
    experts = _read_experts(data, source) if has_experts else (0, 0)
    # The type that the weights are stored in.
    dtype = read_dtype(data, source, "float32")
    return ModelConfig(
        family=family,
        num_layers=read_size(data, "num_hidden_layers", source),
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=read_size(data, "moe_intermediate_size" if has_experts else "intermediate_size", source),
        vocab_size=read_size(data, "vocab_size", source),
        norm_eps=read_eps(data, "rms_norm_eps", source),
        rotary_dim=rotary_dim,
        rope_theta=rope.theta,
        rope_interleaved=interleaved,
        qkv_bias=qkv_bias,
        tied=read_flag(data, "tie_word_embeddings", source, False),
        max_position=max_position,
        dtype=dtype,
        qk_norm=qk_norm,
        rope_scaling=rope.scaling,
        num_experts=experts[0],
        num_used_experts=experts[1],
        normalizes_experts=read_flag(data, "norm_topk_prob", source, False),
    )


def read_audio_encoder(data: Mapping[str, Any], source: str | PathLike[str]) -> None:
    """See Family.read_audio_encoder: there is none."""


def load_text(
    directory: str | PathLike[str], num_codes: int | None, *, stand_in: bool = False
) -> tuple[TextTokenizer, Vocabulary]:
    """tokenizer.json with its chat template, and the vocabulary: end of turn is the eos id that the
    template closes replies with.

    num_codes: size of the speech codebook, None without one. stand_in: where tokenizer.json is missing, make
    up a tokenizer of the right size. Raises FileNotFoundError, ValueError.
    """
    if stand_in and not (Path(directory) / "tokenizer.json").exists():
        return text.stand_in(directory, num_codes)
    tokenizer = JsonTokenizer.from_pretrained(directory)
    end_of_turn = text.end_of_turn(tokenizer, text.eos_ids(directory, tokenizer))
    return tokenizer, load_vocabulary(directory, num_codes, tokenizer=tokenizer, end_of_turn=end_of_turn)


def turn_ids(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    user: str | Sequence[int],
    system: str | None = None,
    *,
    first: bool,
    variables: Mapping[str, Any] | None = None,
    earlier: Sequence[ChatMessage] | None = None,
) -> list[int]:
    """One user turn in the checkpoint's chat template; see Family.turn_ids. Raises ValueError for speech."""
    if not isinstance(user, str):
        raise ValueError(_NO_SPEECH)
    return text.chat_turn_ids(tokenizer, user, system, first=first, variables=variables, earlier=earlier)


def turn_head_ids(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    codes: Sequence[int],
    system: str | None = None,
    *,
    first: bool,
) -> list[int]:
    """See Family.turn_head_ids. Raises ValueError: there is no speech in this template."""
    raise ValueError(_NO_SPEECH)


def default_system(vocabulary: Vocabulary, items: Sequence[DialogueItem]) -> str | None:
    """See Family.default_system: the chat template has its own."""
    return None


def dialogue_runs(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    items: Sequence[DialogueItem],
    head: str | None = None,
    *,
    opens: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """A dialogue in the checkpoint's chat template; see Family.dialogue_runs. Raises ValueError for speech."""
    return text.chat_runs(tokenizer, items, head, opens=opens, variables=variables)


def _read_experts(data: Mapping[str, Any], source: str | PathLike[str]) -> tuple[int, int]:
    """The number of experts, by either of the key's names, and of those that a token goes through."""
    key = "num_experts" if data.get("num_experts") is not None else "num_local_experts"
    number = read_size(data, key, source)
    used = read_size(data, "num_experts_per_tok", source)
    if used > number:
        raise ValueError(f"{source}: num_experts_per_tok is {used}, more than the {number} of {key}")
    return number, used


def _refuse(data: Mapping[str, Any], source: str | PathLike[str]) -> None:
    for key, run in _FIXED.items():
        if data.get(key, run[0]) not in run:
            raise ValueError(
                f"{source}: {key} is {data[key]!r}, which is not supported; supported is {run[0]!r}"
            )
    kinds, num_layers = data.get("layer_types") or [], data.get("num_hidden_layers")
    if kinds and len(kinds) != num_layers:
        raise ValueError(
            f"{source}: layer_types names {len(kinds)} layers and num_hidden_layers is {num_layers}: "
            "they must be the same"
        )
    other = [kind for kind in kinds if kind != "full_attention"]
    if other:
        raise ValueError(
            f"{source}: layer_types has {other[0]!r}, which is not supported; supported is 'full_attention'"
        )
