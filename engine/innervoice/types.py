"""What goes into and comes out of the engine: prompts, sampling, events, replies, errors. Plain dataclasses that pickle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Pcm16 = npt.NDArray[np.int16]
OutputFormat = Literal["float32", "int16"]
FinishReason = Literal["stop", "length", "cancelled", "interrupted", "timeout", "error"]


@dataclass(frozen=True)
class Text:
    """A typed prompt."""

    text: str


@dataclass(frozen=True)
class Ids:
    """A prompt given as token ids, used as they are (no template is added)."""

    ids: tuple[int, ...]

    def __init__(self, ids: Sequence[int]) -> None:
        object.__setattr__(self, "ids", tuple(int(i) for i in ids))


AudioIn = str | PathLike[str] | bytes | tuple[np.ndarray, int]
Prompt = AudioIn | Text | Ids


@dataclass(frozen=True)
class Vocabulary:
    """Which ids a checkpoint uses for what: text and speech as half-open ranges, None where the checkpoint has no such token."""

    size: int
    text: tuple[int, int]
    speech: tuple[int, int] | None
    end_of_turn: int | None
    open: int | None = None
    close: int | None = None
    done: int | None = None
    eos: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. None: the checkpoint's own value; temperature 0: greedy; seed None: drawn, and echoed in usage."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new_tokens: int = 2000
    max_audio_s: float | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        self._check("temperature", 0, float("inf"), "0 (greedy) or more")
        self._check("top_k", 0, float("inf"), "0 (off) or more")
        self._check("top_p", 1e-9, 1, "above 0 and at most 1")
        self._check("seed", 0, 2**64 - 1, "from 0 to 2**64 - 1")
        self._check("max_new_tokens", 1, float("inf"), "1 or more")
        self._check("max_audio_s", 1e-9, float("inf"), "above 0")

    def _check(self, name: str, low: float, high: float, expected: str) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"Sampling.{name} is {value}: it must be {expected}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened in a reply. index counts from 0; t is in seconds since submission."""

    kind: str
    reply_id: str
    index: int
    t: float


@dataclass(frozen=True, kw_only=True)
class TokenEvent(Event):
    """Ids of one segment, as they are decoded. segment counts the reply's segments from 0; forced: the schedule gave the ids."""

    segment: int
    ids: list[int]
    text: str = ""
    forced: bool = False
    logprobs: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Reflection(TokenEvent):
    """Hidden text. Open, close and done are among ids and not in text."""

    kind: str = field(default="reflection", init=False)


@dataclass(frozen=True, kw_only=True)
class Transcript(TokenEvent):
    """Text of what is said."""

    kind: str = field(default="transcript", init=False)


@dataclass(frozen=True, kw_only=True)
class Speech(TokenEvent):
    """Speech tokens; codes [n] int32 are ids less the first speech id."""

    codes: npt.NDArray[np.int32]
    kind: str = field(default="speech", init=False)


@dataclass(frozen=True, kw_only=True)
class End(TokenEvent):
    """The end-of-turn token."""

    kind: str = field(default="end", init=False)


def to_pcm16(samples: Samples | Pcm16) -> Pcm16:
    """Float samples in [-1, 1] to 16-bit integers, round(x * 32767), clipped; integers as they are."""
    if samples.dtype == np.int16:
        return cast(Pcm16, samples)
    scaled: Samples = np.rint(samples * 32767.0)
    return scaled.clip(-32768, 32767).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class AudioChunk(Event):
    """pcm [n] float32 in [-1, 1], or int16 where that was asked for; rate in Hz; start: its first sample's index in the reply."""

    pcm: Samples | Pcm16
    rate: int
    start: int
    kind: str = field(default="audio", init=False)

    def to_pcm16(self) -> Pcm16:
        """The samples as 16-bit integers."""
        return to_pcm16(self.pcm)


@dataclass(frozen=True)
class Usage:
    """Counts and times of one reply. Definitions: docs/events.md, "Usage"."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    reflection_tokens: int = 0
    transcript_tokens: int = 0
    speech_tokens: int = 0
    total_new_tokens: int = 0
    forced_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    audio_s: float = 0.0
    ttft_ms: float | None = None
    audio_ttfp_ms: float | None = None
    first_chunk_s: float | None = None
    audio_rtf: float | None = None
    e2el_ms: float = 0.0
    hidden_before_audio: int = 0
    reflection_caps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """Last event of a reply, exactly once."""

    finish_reason: FinishReason
    usage: Usage
    error: str | None = None
    kind: str = field(default="done", init=False)


@dataclass(frozen=True)
class Heard:
    """What an interruption left in the history.

    speech_tokens, transcript: of the reply that was interrupted. unheard_text_tokens: transcript tokens among them whose sound,
    by the `proportional` estimate, was not heard: none under cut="transcript". history_tokens: of the whole dialogue.
    """

    speech_tokens: int
    transcript: str
    unheard_text_tokens: int
    history_tokens: int


@dataclass(frozen=True)
class Audio:
    """samples [n] float32 in [-1, 1], or int16 where that was asked for; rate in Hz."""

    samples: Samples | Pcm16
    rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file whole or not at all, as its ending says: .wav, .flac, .ogg. Raises OSError, ValueError."""
        import soundfile

        target = Path(path)
        kind = target.suffix.lstrip(".").upper() or "WAV"
        if kind not in soundfile.available_formats():
            raise ValueError(f"{target}: cannot write audio of type {kind!r}; use .wav, .flac or .ogg")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                soundfile.write(file, to_pcm16(self.samples), self.rate, format=kind)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Reply:
    """A whole reply: audio, transcript, one string a reflection segment, and every event in order."""

    audio: Audio
    transcript: str
    reflections: list[str]
    events: list[Event]
    finish_reason: FinishReason
    usage: Usage

    @property
    def ids(self) -> list[int]:
        """Every generated id, in order."""
        return [i for event in self.events if isinstance(event, TokenEvent) for i in event.ids]


class RequestFailed(RuntimeError):
    """One request ended in an error; the engine lives on."""


class OutOfCapacity(RuntimeError):
    """A request was refused because it does not fit; the message holds the numbers.

    retry_after_s: seconds after which the same request may fit; infinity when it never will.
    """

    def __init__(self, message: str, retry_after_s: float = float("inf")) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class EngineDead(RuntimeError):
    """The core stopped on a failure that belongs to no single request; the cause is chained."""
