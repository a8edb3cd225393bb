"""Arrivals of questions: listeners that are always there, listeners that arrive at random, or those of a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from innervoice.checkpoint.speech_decoder import FlowConfig
from innervoice.files import parse_json, read_text

SPEECH_RATE = FlowConfig.token_rate  # GLM-4-Voice's speech tokens a second of sound
_REMEDY = "give a file with an arrival a line, as JSON"
_TEMPLATE = 25  # tokens of a prompt besides the user's speech


@dataclass(frozen=True)
class Turn:
    """A question and the length of its answer.

    heard_s: how much of it the listener hears before he speaks himself; inf: all.
    """

    prompt_tokens: int
    speech_tokens: int
    heard_s: float = math.inf


@dataclass(frozen=True)
class Workload:
    """starts_s: when each listener asks first. turn(listener, k): his k-th
    question, once he has heard the last.
    """

    starts_s: Sequence[float]
    turn: Callable[[int, int], Turn | None]


def draw_turn(random: np.random.Generator, barge_in_s: float) -> Turn:
    """A question of 1 to 60 s, a reply of 10 to 60 s, interrupted on average once in
    barge_in_s of listening (0: never).
    """
    prompt = round(random.uniform(1, 60) * SPEECH_RATE) + _TEMPLATE
    speech = round(random.uniform(10, 60) * SPEECH_RATE)
    heard_s = random.exponential(barge_in_s) if barge_in_s > 0 else math.inf
    return Turn(prompt, speech, heard_s)


def constant(listeners: int, *, seed: int, ramp_s: float = 35.0, barge_in_s: float = 60.0) -> Workload:
    """A constant number of listeners: each asks again as soon as its reply was heard.

    They come one by one, in ramp_s seconds.
    """

    def turn(listener: int, k: int) -> Turn:
        return draw_turn(np.random.default_rng((seed, listener, k)), barge_in_s)

    starts = np.random.default_rng((seed,)).uniform(0, ramp_s, listeners)
    return Workload(sorted(starts.tolist()), turn)


def poisson(listeners: float, *, seed: int, duration_s: float, barge_in_s: float = 60.0) -> Workload:
    """Arrivals without memory, one question each, so many that `listeners` hear a reply at a time on average."""
    random = np.random.default_rng((seed,))
    length_s = np.mean(
        [
            min(t.speech_tokens / SPEECH_RATE, t.heard_s)
            for t in (draw_turn(random, barge_in_s) for _ in range(2000))
        ]
    )
    gaps = random.exponential(length_s / listeners, int(2 * duration_s * listeners / length_s) + 100)
    starts = np.cumsum(gaps)

    def turn(listener: int, k: int) -> Turn | None:
        return draw_turn(np.random.default_rng((seed, listener)), barge_in_s) if k == 0 else None

    return Workload(starts[starts < duration_s].tolist(), turn)


def from_file(path: Path) -> Workload:
    """Lines of {"arrival_s", "prompt_tokens", "reply_s"} and, if he interrupts, "heard_s"; one question each.

    Raises FileNotFoundError, and ValueError with the line.
    """
    arrivals = []
    for number, line in enumerate(read_text(path, _REMEDY, "file of arrivals").splitlines(), 1):
        if line.strip():
            arrivals.append(_arrival(line, f"{path}, line {number}"))
    if not arrivals:
        raise ValueError(f"{path} has no arrivals")
    arrivals.sort(key=lambda pair: pair[0])
    turns = [turn for _, turn in arrivals]
    return Workload([start for start, _ in arrivals], lambda listener, k: turns[listener] if k == 0 else None)


def _arrival(line: str, where: str) -> tuple[float, Turn]:
    values = parse_json(line, f"{where}: this", _REMEDY)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object with arrival_s, prompt_tokens and reply_s")
    least = {"arrival_s": 0.0, "prompt_tokens": 1, "reply_s": 1 / SPEECH_RATE}
    for name, low in least.items():
        value = values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < 1e7:
            raise ValueError(f"{where}: {name} is {value!r}: it must be a number from {low:g} on")
    heard_s = values.get("heard_s", math.inf)
    if not isinstance(heard_s, int | float) or not heard_s > 0:
        raise ValueError(f"{where}: heard_s is {heard_s!r}: it must be seconds above 0, or left out")
    speech = max(1, round(values["reply_s"] * SPEECH_RATE))
    return float(values["arrival_s"]), Turn(int(values["prompt_tokens"]), speech, float(heard_s))
