"""Rotary positions as Hugging Face's config.json describes them: base, rotated share of a head,
scaling for longer contexts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from innervoice.checkpoint.files import require

log = logging.getLogger("innervoice")

DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by factor. kaiokendev, 2023; Chen et al., "Extending context window", 2023."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Low frequencies divided by factor, high ones left, a ramp between. Llama 3.1's model code."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class YarnScaling:
    """A ramp over the dimensions between divided and plain frequencies; cosine and
    sine times attention_factor.

    beta_fast and beta_slow: turns within original_max_position where the ramp begins and ends; truncate: to
    whole dimensions. Peng et al., "YaRN", 2023.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class Rope:
    """theta: base of the frequencies; partial: the share of a head that is rotated;
    scaling None: plain frequencies.
    """

    theta: float
    partial: float
    scaling: RopeScaling | None


def read_rope(
    data: Mapping[str, Any],
    source: str | PathLike[str],
    *,
    max_position: int,
    default_partial: float | None = None,
) -> Rope:
    """rope_scaling of config.json, or rope_parameters where there is none, with rope_theta and
    partial_rotary_factor from beside it where it lacks them, as transformers 5 reads them.

    default_partial: of a family that rotates a share of each head; None: it rotates whole heads, whatever
    partial_rotary_factor says. Raises ValueError naming the type of a scaling that is not run here, the key
    that is missing or cannot be, and a key that rope_parameters alone has beside a rope_scaling.
    """
    name = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    given = data.get(name) or {}
    where = f"{source}, {name}"
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(f"{where} is {given!r}, expected one object for all layers")
    if name == "rope_scaling":
        _compare(data, given, source, default_partial)
    # What stands in the object goes before what stands beside it, the trained length excepted.
    values = {
        key: value for key, value in data.items() if key in ("rope_theta", "partial_rotary_factor")
    } | dict(given)
    values["original_max_position_embeddings"] = (
        data.get("original_max_position_embeddings")
        or given.get("original_max_position_embeddings")
        or max_position
    )
    values = {key: value for key, value in values.items() if value is not None}
    kind = values.get("rope_type", values.get("type", "default"))
    if kind != "default" and not (isinstance(kind, str) and kind in _READERS):
        raise ValueError(
            f"{where}: scaling of type {kind!r} is not supported: supported are {', '.join(_READERS)}"
        )
    partial = _positive(values, "partial_rotary_factor", where, default_partial or 1.0)
    if default_partial is None and partial != 1:
        if kind != "default":
            raise ValueError(
                f"{where}: partial_rotary_factor is {partial}, but this family rotates whole heads: remove it"
            )
        log.warning(
            "%s: partial_rotary_factor %s is not applied: this family rotates whole heads", source, partial
        )
        partial = 1.0
    return Rope(
        theta=_positive(values, "rope_theta", where, DEFAULT_THETA),
        partial=partial,
        scaling=None if kind == "default" else _READERS[kind](values, where),
    )


def _compare(
    data: Mapping[str, Any],
    scaling: Mapping[str, Any],
    source: str | PathLike[str],
    default_partial: float | None,
) -> None:
    """Say that rope_scaling goes before another rope_parameters; refuse where that loses a base or a share."""
    beside = data.get("rope_parameters")
    if not isinstance(beside, Mapping) or dict(beside) == dict(scaling):
        return
    for key, default in (("rope_theta", DEFAULT_THETA), ("partial_rotary_factor", default_partial)):
        lost = beside.get(key)
        if (
            default is not None
            and lost not in (None, default)
            and scaling.get(key) is None
            and data.get(key) is None
        ):
            raise ValueError(
                f"{source}: rope_parameters has {key} {lost!r}, and rope_scaling, which goes before it, has none: "
                f"write it into rope_scaling, or remove one of the two"
            )
    log.warning("%s: rope_scaling goes before rope_parameters, which says something else", source)


def _linear(values: Mapping[str, Any], where: str) -> LinearScaling:
    return LinearScaling(_positive(values, "factor", where))


def _llama3(values: Mapping[str, Any], where: str) -> Llama3Scaling:
    low, high = _positive(values, "low_freq_factor", where), _positive(values, "high_freq_factor", where)
    if low >= high:
        raise ValueError(
            f"{where}: low_freq_factor is {low} and high_freq_factor {high}, expected a lower and a higher one"
        )
    length = int(_positive(values, "original_max_position_embeddings", where))
    return Llama3Scaling(_positive(values, "factor", where), low, high, length)


def _yarn(values: Mapping[str, Any], where: str) -> YarnScaling:
    factor = _positive(values, "factor", where)
    mscale, all_dim = (
        require(values, key, where) if values.get(key) else None for key in ("mscale", "mscale_all_dim")
    )
    attention = (
        _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1.0)
    )
    return YarnScaling(
        factor=factor,
        original_max_position=int(_positive(values, "original_max_position_embeddings", where)),
        beta_fast=_positive(values, "beta_fast", where, 32.0),
        beta_slow=_positive(values, "beta_slow", where, 1.0),
        truncate=bool(values.get("truncate", True)),
        attention_factor=_positive(values, "attention_factor", where, attention),
    )


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


_READERS: dict[str, Callable[[Mapping[str, Any], str], RopeScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _positive(values: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = default if default is not None and key not in values else require(values, key, where)
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: {key} is {value}, expected a number above 0")
    return float(value)
