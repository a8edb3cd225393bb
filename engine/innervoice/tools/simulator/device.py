"""Durations of a step and a codec call: from the limits of a machine, or from measurements on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from innervoice.checkpoint.speech_decoder import FlowConfig
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.files import parse_json, read_text
from innervoice.runtime.scheduler import LearnedCosts

_CALIBRATED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class SimulatedDevice(Protocol):
    """A machine that the simulated engine runs on."""

    def step_s(self, rows: int, context: int, prefill: int = 0, prefill_context: int = 0) -> float:
        """A step: a token drawn for each of `rows`, which have `context` tokens in all, and
        `prefill` prompt tokens fed.
        """

    def voice_s(self, chunks: int, sound_s: float) -> float:
        """A codec call: chunks with so many seconds of sound in all."""


@dataclass(frozen=True)
class Roofline:
    """A machine at its limits.

    max(W / BW, 2 (P B + (P - P_head) p) / F) + max(kv bytes / BW, attention FLOPs / F), B rows and
    p prompt tokens in one pass.

    bandwidth in B/s, flops in 1/s; weight_bytes W and weights P are those that a token reads,
    head_weights those that only a row that draws needs; kv_bytes and attention_flops: of one query and
    one token of its context, in all layers. voice_share: seconds of the codec for a second of sound,
    voice_call_s for each call besides.
    """

    bandwidth: float = 4.3e12
    flops: float = 790e12
    weight_bytes: float = 17.70e9
    weights: float = 8.850e9
    head_weights: float = 4096 * 168_960
    kv_bytes: float = 40_960
    attention_flops: float = 4 * 32 * 128 * 40
    voice_share: float = 0.543e-3
    voice_call_s: float = 0.0

    def step_s(self, rows: int, context: int, prefill: int = 0, prefill_context: int = 0) -> float:
        """prefill_context: of the prompts that are fed, in all; each is read once."""
        products = 2 * (self.weights * rows + (self.weights - self.head_weights) * prefill) / self.flops
        scores = self.attention_flops * (context + prefill * prefill_context) / self.flops
        return max(self.weight_bytes / self.bandwidth, products) + max(
            (context + prefill_context) * self.kv_bytes / self.bandwidth, scores
        )

    def voice_s(self, chunks: int, sound_s: float) -> float:
        """The codec's arithmetic and its launches."""
        return self.voice_call_s + self.voice_share * sound_s if chunks else 0.0

    def first_audio_s(self, prompt: int, spoken: int, sound_s: float) -> float:
        """First sound of a reply that is alone: its prompt fed, `spoken` tokens drawn, the
        first of them in the same pass.
        """
        fed = self.step_s(1, prompt, prompt, 0)
        return fed + (spoken - 1) * self.step_s(1, prompt) + self.voice_s(1, sound_s)


H200_BF16 = Roofline()
"""GLM-4-Voice-9B in bfloat16: copy bandwidth and matrix rate as measured on an H200."""

H200_FP8 = Roofline(flops=1580e12, weight_bytes=8.85e9, kv_bytes=20_480)
"""The same with weights and cache in 8 bits."""


@dataclass(frozen=True)
class Measured:
    """A machine of which step times are known by rows and codec times by chunks.

    Between sizes straight lines; beyond the last two, their slope. A step that feeds prompts is
    prefill_token_s longer a token. Contexts are those of the measurement.
    """

    decode: Mapping[int, float]
    voice: Mapping[int, float]
    prefill_token_s: float

    def step_s(self, rows: int, context: int, prefill: int = 0, prefill_context: int = 0) -> float:
        """By rows and prompt tokens alone."""
        return _along(self.decode, rows) + prefill * self.prefill_token_s

    def voice_s(self, chunks: int, sound_s: float) -> float:
        """By chunks alone."""
        return _along(self.voice, chunks)


def calibrate(device: SimulatedDevice, context: int = 1024) -> LearnedCosts:
    """Teach the scheduler as a calibration run does: rows with so many tokens each, chunks of the length that
    steady streaming has, a prompt of 512.
    """
    chunk_s = SteadySettings.chunk / FlowConfig.token_rate
    decode = {rows: device.step_s(rows, rows * context) for rows in _CALIBRATED}
    voice = {chunks: device.voice_s(chunks, chunks * chunk_s) for chunks in _CALIBRATED}
    prefill_token_s = (device.step_s(1, 512, 512, 512) - device.step_s(1, 512)) / 512
    return LearnedCosts(decode, voice, max(prefill_token_s, 0.0))


def read_profile(path: Path) -> Measured:
    """A profile file: {"decode": {rows: seconds}, "voice": {chunks: seconds}, "prefill_token_s": seconds}.

    Raises FileNotFoundError, and ValueError that names the field.
    """
    remedy = "give a JSON file of step times"
    values = parse_json(read_text(path, remedy, "profile"), str(path), remedy)
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds a {type(values).__name__}: a profile is an object with decode, voice, prefill_token_s"
        )
    prefill = values.get("prefill_token_s")
    if not isinstance(prefill, int | float) or isinstance(prefill, bool) or not 0 <= prefill < 1e3:
        raise ValueError(f"{path}: prefill_token_s is {prefill!r}: it must be seconds, 0 or more")
    return Measured(_times(path, values, "decode"), _times(path, values, "voice"), float(prefill))


def _times(path: Path, values: Mapping[str, Any], name: str) -> dict[int, float]:
    given = values.get(name)
    if not isinstance(given, dict) or not given:
        raise ValueError(
            f"{path}: {name} is {given!r}: it must map sizes to seconds, as in {{{chr(34)}1{chr(34)}: 0.004}}"
        )
    made: dict[int, float] = {}
    for size, seconds in given.items():
        if (
            not str(size).isdigit()
            or int(size) < 1
            or not isinstance(seconds, int | float)
            or not 0 < seconds < 1e3
        ):
            raise ValueError(
                f"{path}: {name} has {size!r}: {seconds!r}: expected a size of 1 or more, and seconds above 0"
            )
        made[int(size)] = float(seconds)
    return dict(sorted(made.items()))


def _along(points: Mapping[int, float], size: float) -> float:
    if size <= 0:
        return 0.0
    sizes, seconds = list(points), list(points.values())
    if size <= sizes[-1] or len(sizes) == 1:
        return float(np.interp(size, sizes, seconds))
    slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
    return seconds[-1] + slope * (size - sizes[-1])
