"""What one reply has emitted so far -> its events, numbered and timed, and its usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from innervoice.schedule import Emission, Kind
from innervoice.text import TextStream, TextTokenizer
from innervoice.types import (
    AudioChunk,
    Done,
    End,
    Event,
    FinishReason,
    Pcm16,
    Reflection,
    Samples,
    Sampling,
    Speech,
    TokenEvent,
    Transcript,
    Usage,
)

HIDDEN = (Kind.REFLECTION, Kind.OPEN, Kind.CLOSE, Kind.DONE)


class ReplyLog:
    """Makes the events of a reply in order. speech_start: the first speech id; rate: of the audio, in Hz."""

    def __init__(
        self,
        reply_id: str,
        tokenizer: TextTokenizer,
        *,
        num_prompt: int,
        num_cached: int,
        sampling: Sampling,
        speech_start: int,
        rate: int,
    ) -> None:
        self.reply_id = reply_id
        self._speech_start, self.rate = speech_start, rate
        self._hidden_text, self._spoken_text = TextStream(tokenizer), TextStream(tokenizer)
        self._usage = Usage(prompt_tokens=num_prompt, cached_tokens=num_cached, sampling=sampling)
        self._num_events = self._num_samples = 0
        self._first_audio_at: float | None = None
        self._last_audio_at = 0.0

    def token(self, emission: Emission, logprob: float | None, *, t: float) -> TokenEvent:
        """One emitted token."""
        self._count(emission, t)
        kind, token = emission.kind, emission.token
        common: dict[str, Any] = {
            **self._next(t),
            "segment": emission.segment,
            "ids": [token],
            "forced": emission.forced and kind not in (Kind.OPEN, Kind.CLOSE),
            "logprobs": None if logprob is None else [logprob],
        }
        if kind is Kind.SPEECH:
            return Speech(**common, codes=np.array([token - self._speech_start], dtype=np.int32))
        if kind is Kind.END:
            return End(**common)
        if kind is Kind.TRANSCRIPT:
            return Transcript(**common, text=self._spoken_text.feed([token]))
        return Reflection(**common, text=self._hidden_text.feed([token]) if kind is Kind.REFLECTION else "")

    def catch_up(self, is_hidden: bool, token: int) -> None:
        """A token that an earlier log has told: only its bytes count, which may begin a character."""
        (self._hidden_text if is_hidden else self._spoken_text).feed([token])

    def audio(self, pcm: Samples | Pcm16, *, t: float) -> AudioChunk:
        """A chunk of sound."""
        if self._first_audio_at is None:
            self._first_audio_at = t
            self._usage = replace(self._usage, audio_ttfp_ms=1e3 * t, first_chunk_s=len(pcm) / self.rate)
        self._last_audio_at = t
        start, self._num_samples = self._num_samples, self._num_samples + len(pcm)
        return AudioChunk(**self._next(t), pcm=pcm, rate=self.rate, start=start)

    def done(self, reason: FinishReason, error: str | None, caps: tuple[int, ...] = (), *, t: float) -> Done:
        """The last event. caps: those that the reflections had, in order."""
        audio_s = self._num_samples / self.rate if self._num_samples else 0.0
        usage = replace(
            self._usage,
            audio_s=audio_s,
            e2el_ms=1e3 * t,
            audio_rtf=self._last_audio_at / audio_s if audio_s else None,
            reflection_caps=caps,
        )
        return Done(**self._next(t), finish_reason=reason, usage=usage, error=error)

    def _next(self, t: float) -> dict[str, Any]:
        index, self._num_events = self._num_events, self._num_events + 1
        return {"reply_id": self.reply_id, "index": index, "t": t}

    def _count(self, emission: Emission, t: float) -> None:
        kind, usage = emission.kind, self._usage
        hidden = kind in HIDDEN
        self._usage = replace(
            usage,
            total_new_tokens=usage.total_new_tokens + 1,
            reflection_tokens=usage.reflection_tokens + hidden,
            transcript_tokens=usage.transcript_tokens + (kind is Kind.TRANSCRIPT),
            speech_tokens=usage.speech_tokens + (kind is Kind.SPEECH),
            forced_tokens=usage.forced_tokens + emission.forced,
            ttft_ms=1e3 * t if usage.ttft_ms is None else usage.ttft_ms,
            hidden_before_audio=usage.hidden_before_audio + (hidden and self._first_audio_at is None),
        )


def collect_text(events: Sequence[Event]) -> tuple[str, list[str]]:
    """The transcript, and one string a reflection segment."""
    transcript = "".join(event.text for event in events if isinstance(event, Transcript))
    reflections: dict[int, str] = {}
    for event in events:
        if isinstance(event, Reflection):
            reflections[event.segment] = reflections.get(event.segment, "") + event.text
    return transcript, list(reflections.values())
