"""The configuration of a language model checkpoint: its shape, and its sampling defaults."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.files import note_unknown, read_json, require
from innervoice.checkpoint.rope import RopeScaling
from innervoice.fields import MOST_INT32
from innervoice.types import Sampling

log = logging.getLogger("innervoice")

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with RMSNorm before each part, rotary positions, grouped queries and a
    gated SiLU feed-forward part.

    rotary_dim: how many of head_dim are rotated; tied: the output layer is the embedding; dtype: what the
    checkpoint names; qk_norm: RMSNorm over each head's query and key before they are rotated;
    rope_scaling None: plain frequencies. num_experts: of every layer's feed-forward part, each of ffn_size; 0: it is
    one dense part. A token goes through num_used_experts, whose shares sum to 1 where normalizes_experts.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    norm_eps: float
    rotary_dim: int
    rope_theta: float
    rope_interleaved: bool
    qkv_bias: bool
    tied: bool
    max_position: int
    dtype: str
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    num_experts: int = 0
    num_used_experts: int = 0
    normalizes_experts: bool = True

    @property
    def qkv_size(self) -> int:
        """Rows of the joint query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Numbers in all weight tensors."""
        attention = (
            self.qkv_size * (self.hidden_size + self.qkv_bias)
            + self.num_heads * self.head_dim * self.hidden_size
        )
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        ffn = 3 * self.ffn_size * max(self.num_experts, 1) + self.num_experts  # with the router
        layer = norms + attention + ffn * self.hidden_size
        tables = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * layer + self.hidden_size + tables

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Bytes of all weights; dtype None: the checkpoint's own."""
        return self.num_parameters * dtype_bytes(dtype or self.dtype)

    def kv_bytes_per_token(self, dtype: str | None = None) -> int:
        """Bytes of keys and values of one token in all layers; dtype None: the checkpoint's own."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype_bytes(dtype or self.dtype)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number. Raises ValueError for a type that models are not run in."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype!r} is not supported: use {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def read_size(data: Mapping[str, Any], key: str, source: str | PathLike[str]) -> int:
    """data[key] as a whole number of 1 or more. Raises ValueError naming file and key."""
    value = require(data, key, source, int)
    if value < 1:
        raise ValueError(f"{source}: {key} is {value}, expected 1 or more")
    return int(value)


def read_flag(data: Mapping[str, Any], key: str, source: str | PathLike[str], default: bool) -> bool:
    """data[key] as true or false; a missing key and null stand for the default. Raises ValueError naming file and key."""
    return default if data.get(key) is None else bool(require(data, key, source, bool))


def read_eps(data: Mapping[str, Any], key: str, source: str | PathLike[str]) -> float:
    """data[key], which a norm adds to a variance. Raises ValueError naming file and key."""
    value = float(require(data, key, source))
    if not 0 <= value < math.inf:
        raise ValueError(f"{source}: {key} is {value}, expected a finite number from 0")
    return value


def read_dtype(data: Mapping[str, Any], source: str | PathLike[str], default: str) -> str:
    """The type of the stored weights, by either of the key's names. Raises ValueError naming the file."""
    value = data.get("dtype") or data.get("torch_dtype") or default
    if not isinstance(value, str) or value not in DTYPE_BYTES:
        raise ValueError(f"{source}: dtype {value!r} is not supported: use {', '.join(DTYPE_BYTES)}")
    return value


@dataclass(frozen=True)
class GenerationConfig:
    """The sampling defaults of a checkpoint: temperature 0 is greedy, top_k 0 is off;
    eos: ids that end a free reply.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    eos: tuple[int, ...] = ()


_GENERATION_KEYS = (
    "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id", "bos_token_id", "max_length", "max_new_tokens",
    "_from_model_config", "transformers_version", "num_beams",
)  # fmt: skip
# What transformers would apply to each draw, and the values with which it does nothing.
_PROCESSORS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "min_p": (0,), "top_h": (), "typical_p": (1,), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "bad_words_ids": ([],), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (), "sequence_bias": ({}, []),
    "guidance_scale": (1,), "min_length": (0,), "min_new_tokens": (0,), "remove_invalid_values": (False,),
    "watermarking_config": (), "penalty_alpha": (0,), "diversity_penalty": (0,), "num_beam_groups": (1,),
    "stop_strings": ([],), "dola_layers": (), "max_time": (),
}  # fmt: skip


def read_generation_config(directory: str | PathLike[str]) -> GenerationConfig:
    """generation_config.json; eos ids that it lacks come from config.json, other values from
    transformers' defaults (top_k 50).

    Raises FileNotFoundError without a config.json, ValueError for values that cannot be.
    """
    path = Path(directory) / "generation_config.json"
    data = read_json(path) if path.exists() else {}
    note_unknown(data, (*_GENERATION_KEYS, *_PROCESSORS), path)
    if data.get("num_beams", 1) not in (None, 1):
        raise ValueError(
            f"{path}: num_beams is {data['num_beams']!r}, which is not supported; remove it or set it to 1"
        )
    for key, neutral in _PROCESSORS.items():
        if data.get(key) is not None and data[key] not in neutral:
            log.warning(
                "%s: %s %s is not applied: drawing has temperature, top_k and top_p alone",
                path,
                key,
                data[key],
            )
    if data.get("eos_token_id") is not None:
        eos = _ids(data["eos_token_id"], path)
    else:
        model = Path(directory) / "config.json"
        eos = _ids(read_json(model).get("eos_token_id"), model)
    defaults: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    given = {key: default if data.get(key) is None else data[key] for key, default in defaults.items()}
    if "top_k" in data and data["top_k"] is None:
        given["top_k"] = 0
    try:
        made = Sampling(**given)
    except ValueError as error:
        raise ValueError(str(error).replace("Sampling.", f"{path}: ", 1)) from None
    assert made.temperature is not None and made.top_k is not None and made.top_p is not None
    temperature = 0.0 if data.get("do_sample") is False else made.temperature
    return GenerationConfig(temperature, made.top_k, made.top_p, eos)


def _ids(value: Any, path: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i <= MOST_INT32 for i in ids):
        raise ValueError(f"{path}: eos_token_id is {value!r}, expected a token id or a list of them")
    return tuple(ids)
