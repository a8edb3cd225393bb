"""The thinkers of Qwen3-Omni (a mixture of experts) and Qwen2.5-Omni (dense) in Hugging Face's layout.

They take text and recordings, which an encoder turns into embedding rows, and make text: vision and speech parts are
not read. Without images all three axes of the rotary positions advance by one a token, which is the plain rotation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig, Kind, read_audio_encoder_config
from innervoice.checkpoint.files import read_json, require
from innervoice.checkpoint.model_config import ModelConfig, read_flag
from innervoice.model import text
from innervoice.model.families import hugging_face
from innervoice.model.families.hugging_face import default_system
from innervoice.model.text import ChatMessage, TextTokenizer
from innervoice.model.text.dialogue import DialogueItem, SpokenCodes
from innervoice.types import Ids, Vocabulary

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

log = logging.getLogger("innervoice")

NAME = "qwen_omni"
MODEL_TYPES: tuple[str, ...] = ("qwen3_omni_moe", "qwen2_5_omni")
PREFIX = "thinker."
_KINDS: Mapping[str, Kind] = {"qwen3_omni_moe": "qwen3_omni", "qwen2_5_omni": "qwen2_5_omni"}
# A recording's ids, before, for each row of it, and behind: keys of thinker_config, and the tokens' names.
_HEARD: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("audio_start_token_id",), ("<|audio_start|>", "<|audio_bos|>")),
    (("audio_token_id", "audio_token_index"), ("<|audio_pad|>", "<|AUDIO|>")),
    (("audio_end_token_id",), ("<|audio_end|>", "<|audio_eos|>")),
)
_UNSEEN = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
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


def read_audio_encoder(data: Mapping[str, Any], source: str | PathLike[str]) -> AudioEncoderConfig | None:
    """thinker_config.audio_config of config.json, None where there is none.

    Raises ValueError naming a key that is missing or asks for what is not supported.
    """
    thinker = require(data, "thinker_config", source, dict)
    if thinker.get("audio_config") is None:
        return None
    where = f"{source}: thinker_config.audio_config"
    given = require(thinker, "audio_config", f"{source}: thinker_config", dict)
    own = {key: value for key, value in given.items() if key not in _NOTHING}
    return read_audio_encoder_config(own, where, _KINDS[data["model_type"]])


def load_text(
    directory: str | PathLike[str], num_codes: int | None, *, stand_in: bool = False
) -> tuple[TextTokenizer, Vocabulary]:
    """See `hugging_face.load_text`; the vocabulary names the ids of recordings, and those that are not taken."""
    tokenizer, vocabulary = hugging_face.load_text(directory, num_codes, stand_in=stand_in)
    source = Path(directory) / "config.json"
    thinker = require(read_json(source), "thinker_config", source, dict)
    if thinker.get("audio_config") is None:
        return tokenizer, vocabulary
    heard = [_mark(thinker, tokenizer, *names, f"{source}: thinker_config") for names in _HEARD]
    unseen = {thinker[key] for key in _UNSEEN if isinstance(thinker.get(key), int)}
    beyond = [i for i in heard if not 0 <= i < vocabulary.size]
    if beyond:
        raise ValueError(
            f"{source}: token id {beyond[0]} of recordings lies beyond the vocabulary of {vocabulary.size}"
        )
    before, row, behind = heard
    return tokenizer, replace(vocabulary, heard=(before, row, behind), unseen=tuple(sorted(unseen)))


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
    """One user turn, text or a recording's rows, in the checkpoint's chat template; see Family.turn_ids."""
    content = user if isinstance(user, str) else Ids(_spoken(vocabulary, user))
    return text.chat_turn_ids(tokenizer, content, system, first=first, variables=variables, earlier=earlier)


def turn_head_ids(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    codes: Sequence[int],
    system: str | None = None,
    *,
    first: bool,
) -> list[int]:
    """The beginning of a turn, up to the last of a recording's rows so far; see Family.turn_head_ids."""
    ids = turn_ids(tokenizer, vocabulary, codes, system, first=first)
    end = _spoken(vocabulary, ())[-1]
    return ids[: len(ids) - 1 - ids[::-1].index(end)]


def dialogue_runs(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    items: Sequence[DialogueItem],
    head: str | None = None,
    *,
    opens: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """A dialogue, recordings as their rows, in the checkpoint's chat template; see Family.dialogue_runs."""
    written = [
        replace(item, parts=tuple(_written(vocabulary, part) for part in item.parts)) for item in items
    ]
    return text.chat_runs(tokenizer, written, head, opens=opens, variables=variables)


def load_weights(
    config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> ModelWeights:
    """All weights of the thinker's language model, tensor by tensor.

    Raises ValueError for one that is missing or misshapen.
    """
    from innervoice.model.families import hugging_face_weights

    if str(device) != "meta":
        log.warning(
            "only the thinker is loaded, for text and recordings: the checkpoint's vision, talker and wave parts are skipped"
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


def _mark(
    thinker: Mapping[str, Any],
    tokenizer: TextTokenizer,
    keys: Sequence[str],
    tokens: Sequence[str],
    where: str,
) -> int:
    """An id by its key, or else by its token's name. Raises ValueError where neither is there."""
    named = next((thinker[key] for key in keys if isinstance(thinker.get(key), int)), None)
    known = (tokenizer.special(token) for token in tokens)
    found = named if named is not None else next((i for i in known if i is not None), None)
    if found is None:
        raise ValueError(f"{where}: key {keys[0]!r} is missing, and the tokenizer has no {tokens[0]!r}")
    return int(found)


def _spoken(vocabulary: Vocabulary, rows: Sequence[int]) -> list[int]:
    """A recording's rows between their marks. Raises ValueError for a checkpoint without an audio encoder."""
    if vocabulary.heard is None:
        raise ValueError("this model takes no speech: give text")
    before, _, behind = vocabulary.heard
    return [before, *rows, behind]


def _written(vocabulary: Vocabulary, part: str | SpokenCodes | Ids) -> str | SpokenCodes | Ids:
    return Ids(_spoken(vocabulary, part.codes)) if isinstance(part, SpokenCodes) else part
