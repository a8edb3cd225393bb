"""Regression heads of a model that rates replies: heads.json with heads.safetensors, or a sequence classifier's score.

heads.json      {"names": ["need_support", ...], "pool": "last" | "mean_audio" | {"token": 151670}, "layer": -1,
                "scale": [1, 5], "map": "clamp" | "sigmoid" | "none", "prompt": "...{question}...{reply}...",
                "describe_prompt": "..."}; all but names may be left out
heads.safetensors  heads.weight [N, D], heads.bias [N]; or heads.0.* and heads.2.* with GELU between them
score.weight    [N, D] among the model's own tensors, as transformers' sequence classifiers are saved; the names are
                then id2label's, and the numbers are those of the scale
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.files import read_json, refuse_unknown, require
from innervoice.checkpoint.safetensors import TensorDir, TensorFile

JSON, TENSORS = "heads.json", "heads.safetensors"
Pool = Literal["last", "mean_audio"] | int
Map = Literal["clamp", "sigmoid", "none"]
QUESTION, REPLY = "{question}", "{reply}"
_KEYS = ("names", "pool", "layer", "scale", "map", "prompt", "describe_prompt")
_SCORES = ("score", "thinker.score", "model.score", "thinker.model.score")
_REGRESSION = (None, "regression")


@dataclass(frozen=True)
class HeadsConfig:
    """The hidden states that heads read, and the meaning of their numbers.

    pool: the hidden states that are read, those of the last token, the mean over all rows of recordings, or those of
    the last token of an id. layer: -1: after the final norm; k: behind the first k layers, as transformers counts
    hidden states. scale: the lowest and the highest score, to which `map` brings a head's number. prompt: the user's
    turn, or the whole prompt where tokens of a turn are in it. describe_prompt: the prompt of a description, or a
    text that asks for one behind the other; None: the same prompt.
    """

    names: tuple[str, ...]
    pool: Pool = "last"
    layer: int = -1
    scale: tuple[float, float] = (1.0, 5.0)
    map: Map = "clamp"
    prompt: str = QUESTION + REPLY
    describe_prompt: str | None = None


@dataclass(frozen=True)
class Heads:
    """Heads with their weights: one product, or two with GELU between."""

    config: HeadsConfig
    layers: tuple[tuple[Tensor, Tensor], ...]

    def scores(self, states: Tensor) -> Tensor:
        """Pooled hidden states [B, D] -> scores [B, N] float32, on the scale."""
        x = states.float()
        for number, (weight, bias) in enumerate(self.layers):
            x = F.linear(F.gelu(x) if number else x, weight, bias)
        low, high = self.config.scale
        if self.config.map == "sigmoid":
            return low + (high - low) * x.sigmoid()
        return x.clamp(low, high) if self.config.map == "clamp" else x


def read_heads(directory: Path, hidden_size: int, num_layers: int, vocab_size: int) -> Heads:
    """The heads of a checkpoint directory.

    Raises FileNotFoundError where there are none, ValueError for damaged ones and ones of another model.
    """
    path = directory / JSON
    tensors = TensorDir(directory)
    own = directory / TENSORS
    score = next((name for name in _SCORES if f"{name}.weight" in tensors), None)
    if not own.exists() and score is None:
        missing = (
            f"{TENSORS} beside its {JSON}" if path.exists() else f"heads, neither {JSON} nor a score.weight"
        )
        raise FileNotFoundError(
            f"{directory} has no {missing}: give a checkpoint that was trained to rate, or judge with ZeroShotJudge (--zero-shot)"
        )
    if own.exists() and not path.exists():
        raise FileNotFoundError(
            f"{directory} has {TENSORS} and no {JSON}: add it, with the names of the scores"
        )

    # The config: the file's, or what a classifier's config.json says.
    if path.exists():
        config = _read_config(read_json(path), path)
    else:
        config = _classifier_config(read_json(directory / "config.json"), directory / "config.json")
    if not -num_layers - 1 <= config.layer <= num_layers:
        raise ValueError(
            f"{path}: layer is {config.layer}, expected {-num_layers - 1} to {num_layers}, of a model of {num_layers} layers"
        )
    if isinstance(config.pool, int) and not 0 <= config.pool < vocab_size:
        raise ValueError(f"{path}: pool names token {config.pool}, outside the vocabulary of {vocab_size}")

    # The weights, whose rows are the names'.
    source: TensorFile | TensorDir = TensorFile(own) if own.exists() else tensors
    layers = _read_layers(source, hidden_size, "heads" if own.exists() else str(score))
    if len(layers[-1][0]) != len(config.names):
        where = path if path.exists() else directory / "config.json"
        raise ValueError(
            f"{where} has {len(config.names)} names ({', '.join(config.names)}), and the heads have "
            f"{len(layers[-1][0])} rows: give each row its name"
        )
    return Heads(config, layers)


def _read_config(data: Mapping[str, Any], path: Path) -> HeadsConfig:
    refuse_unknown(data, _KEYS, path)
    names = require(data, "names", path, list)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: names is {names!r}, expected a list of different texts, at least one")
    scale = data.get("scale", [1, 5])
    is_pair = isinstance(scale, list) and len(scale) == 2 and all(type(one) in (int, float) for one in scale)
    if not is_pair or not -1e6 <= scale[0] < scale[1] <= 1e6:
        raise ValueError(f"{path}: scale is {scale!r}, expected the lowest and the highest score")
    mapping = data.get("map", "clamp")
    if mapping not in get_args(Map):
        raise ValueError(f"{path}: map is {mapping!r}, expected {', '.join(get_args(Map))}")
    layer = require({"layer": -1, **data}, "layer", path, int)
    prompt = require({"prompt": QUESTION + REPLY, **data}, "prompt", path, str)
    _check_places(prompt, f"{path}: prompt")
    describe = data.get("describe_prompt")
    if describe is not None:
        describe = require(data, "describe_prompt", path, str)
        if QUESTION in describe or REPLY in describe:
            _check_places(describe, f"{path}: describe_prompt")
        elif not describe.strip():
            raise ValueError(f"{path}: describe_prompt is empty: leave it out, or ask for a description")
    return HeadsConfig(
        names=tuple(names),
        pool=_read_pool(data.get("pool", "last"), path),
        layer=layer,
        scale=(float(scale[0]), float(scale[1])),
        map=cast(Map, mapping),
        prompt=prompt,
        describe_prompt=describe,
    )


def _read_pool(given: Any, path: Path) -> Pool:
    if given in ("last", "mean_audio"):
        return cast(Pool, given)
    token = given.get("token") if isinstance(given, dict) and set(given) == {"token"} else None
    if type(token) is not int:
        raise ValueError(f'{path}: pool is {given!r}, expected "last", "mean_audio" or {{"token": ID}}')
    return token


def _check_places(prompt: str, where: str) -> None:
    for place in (QUESTION, REPLY):
        if prompt.count(place) != 1:
            raise ValueError(f"{where} has {place} {prompt.count(place)} times, expected once")


def _classifier_config(data: Mapping[str, Any], path: Path) -> HeadsConfig:
    """The config of transformers' sequence classifier: its labels are the scores' names."""
    problem = data.get("problem_type")
    if problem not in _REGRESSION:
        raise ValueError(f"{path}: problem_type is {problem!r}, and scores need heads of 'regression'")
    labels = data.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # which transformers does not write out
    if not isinstance(labels, dict) or not all(str(key).isdigit() for key in labels):
        raise ValueError(f"{path}: id2label is {str(labels)[:80]}, expected a name for each row")
    return HeadsConfig(names=tuple(str(labels[key]) for key in sorted(labels, key=int)), map="none")


def _read_layers(
    tensors: TensorFile | TensorDir, hidden_size: int, name: str
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Weight and bias of one product or of two."""
    parts = [f"{name}.0", f"{name}.2"] if f"{name}.0.weight" in tensors else [name]
    layers, width = [], hidden_size
    for part in parts:
        if f"{part}.weight" not in tensors:
            raise ValueError(
                f"{tensors.path}: tensor {part}.weight is missing: are these the heads of {JSON}?"
            )
        shape = tensors.shape(f"{part}.weight")
        if len(shape) != 2 or shape[1] != width or not shape[0]:
            raise ValueError(
                f"{tensors.path}: tensor {part}.weight has shape {list(shape)}, expected [N, {width}]: "
                "these are the heads of a model of another width"
            )
        weight = tensors.get(f"{part}.weight", dtype=torch.float32)
        bias = torch.zeros(shape[0], dtype=torch.float32, device="cpu")
        if f"{part}.bias" in tensors:
            bias = tensors.get(f"{part}.bias", (shape[0],), dtype=torch.float32)
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(
                f"{tensors.path}: {part} holds NaN or infinity: the heads are damaged, take them anew"
            )
        layers.append((weight, bias))
        width = shape[0]
    return tuple(layers)
