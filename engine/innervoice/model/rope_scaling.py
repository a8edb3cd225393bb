"""Rotary frequencies of a model, scaled for longer contexts as its config says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.rope import LinearScaling, Llama3Scaling, YarnScaling


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians a position of each rotated pair [rotary_dim / 2] float32, and what
    cosine and sine are multiplied by.

    Plain: theta^(-2i / rotary_dim). Sources of the scalings: checkpoint/rope.py.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device="cpu") / config.rotary_dim
    plain = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(plain, scaling, config), scaling.attention_factor
    return plain, 1.0


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """share = 0 below low_freq_factor turns within the trained length, 1 above
    high_freq_factor, linear between.
    """
    turns = scaling.original_max_position * plain / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return _blend(plain, share.clamp(0, 1), scaling.factor)


def _yarn(plain: Tensor, scaling: YarnScaling, config: ModelConfig) -> Tensor:
    """share = 1 up to the dimension that makes beta_fast turns, 0 from that of beta_slow on, linear between."""

    def dimension(turns: float) -> float:
        wavelength = scaling.original_max_position / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    ramp = (torch.arange(len(plain), dtype=torch.float32, device="cpu") - low) / ((high - low) or 0.001)
    return _blend(plain, 1 - ramp.clamp(0, 1), scaling.factor)


def _blend(plain: Tensor, share: Tensor, factor: float) -> Tensor:
    """The share of each frequency that stays plain, the rest divided by factor."""
    return plain * share + plain / factor * (1 - share)
