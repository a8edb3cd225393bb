"""Makes the events of one reply, numbered and timed, and its usage, from its tokens and samples so far."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from innervoice.model.text import TextStream, TextTokenizer, read_call
from innervoice.model.token_role import TokenRole
from innervoice.schedule import UNLIMITED, Emission, TokenKind
from innervoice.types import (
    AudioChunk,
    Done,
    End,
    Event,
    EventField,
    FinishReason,
    Pcm16,
    Reflection,
    ReflectionBudget,
    Samples,
    Sampling,
    Speech,
    TokenEvent,
    Tool,
    Transcript,
    Usage,
)

log = logging.getLogger("innervoice")
E = TypeVar("E", bound=Event)

# Looked up once: an enum's attribute costs as much as the rest of an event.
_REFLECTION, _TRANSCRIPT, _SPEECH, _OPEN, _CLOSE, _END, _TOOL, _TOOL_MARK = (
    TokenKind.REFLECTION, TokenKind.TRANSCRIPT, TokenKind.SPEECH, TokenKind.OPEN, TokenKind.CLOSE, TokenKind.END,
    TokenKind.TOOL, TokenKind.TOOL_MARK,
)  # fmt: skip
_MARKS = (_OPEN, _CLOSE, _TOOL_MARK)
_INT32 = np.dtype(np.int32)


class EventBuilder:
    """Makes the events of a reply in order. speech_start: the first speech id; rate: of the audio, in Hz.

    tool_marks: the ids that open and close a tool call. fields: fields that the caller adds to events.
    """

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
        tool_marks: tuple[int | None, int | None] = (None, None),
        fields: Sequence[EventField] = (),
    ) -> None:
        self.reply_id = reply_id
        self.rate = rate
        self._speech_start = speech_start
        self._hidden_text = TextStream(tokenizer)
        self._spoken_text = TextStream(tokenizer)
        self._call_text = TextStream(tokenizer)
        self._held: list[int] = []  # hidden ids that may be the beginning of a close
        self._call = ""  # what the call that is open says so far
        self._tool_open, self._tool_close = tool_marks
        self._usage = Usage(prompt_tokens=num_prompt, cached_tokens=num_cached, sampling=sampling)
        self._counts = [0] * len(TokenKind)  # tokens by kind
        self._num_forced = self._hidden_before_audio = 0
        self._first_token_at: float | None = None
        self._num_events = self._num_samples = 0
        self._first_audio_at: float | None = None
        self._last_audio_at = 0.0
        self._fields = fields
        self._failed_fields: set[str] = set()

    def token(
        self, emission: Emission, logprob: float | None, *, t: float, reserve_s: float = 0.0
    ) -> TokenEvent:
        """The event of an emitted token. reserve_s: seconds of audio that were sent and not played yet."""
        kind, token = emission.kind, emission.token
        index, self._num_events = self._num_events, self._num_events + 1
        self._counts[kind] += 1
        self._num_forced += emission.forced
        if self._first_token_at is None:
            self._first_token_at = t
        common: dict[str, Any] = {
            "reply_id": self.reply_id,
            "index": index,
            "t": t,
            "segment": emission.segment,
            "ids": [token],
            "forced": emission.forced and kind not in _MARKS,
            "logprobs": None if logprob is None else [logprob],
            "name": emission.name,
            "choice": emission.choice,
            "feed": emission.feed,
        }
        if emission.cap is not None or emission.num_skipped:
            common["budget"] = _budget(emission, reserve_s)
        if kind is _SPEECH:
            codes = np.array([token - self._speech_start], _INT32)
            return self._extended(Speech(**common, codes=codes))
        if kind is _TRANSCRIPT:
            return self._extended(Transcript(**common, text=self._spoken_text.feed([token])))
        if kind is _END:
            return self._extended(End(**common))
        if kind is _TOOL:
            return self._extended(Tool(**common, text=self._feed_call(token)))
        if kind is _TOOL_MARK:
            call = read_call(self._call) if token == self._tool_close else None
            self._begin_call()
            return self._extended(Tool(**common, call=call))
        if self._first_audio_at is None:
            self._hidden_before_audio += 1
        if self._held or emission.matched:
            return self._extended(Reflection(**common, text=self._feed_hidden(emission)))
        text = self._hidden_text.feed([token]) if kind is _REFLECTION else ""
        return self._extended(Reflection(**common, text=text))

    def _feed_hidden(self, emission: Emission) -> str:
        """The hidden text that a token makes certain: what may be the beginning of a close of several ids waits."""
        if emission.kind is _REFLECTION:
            self._held.append(emission.token)
            num_kept = emission.matched
        else:
            num_kept = len(self._held) if emission.forced else emission.matched
        certain = self._held[: len(self._held) - num_kept]
        self._held = self._held[len(certain) :] if emission.kind is _REFLECTION else []
        return self._hidden_text.feed(certain) if certain else ""

    def catch_up(self, role: TokenRole, token: int) -> None:
        """Take a token in that has had its event elsewhere: its bytes may begin a character."""
        if role is not TokenRole.CALL:
            (self._hidden_text if role is TokenRole.HIDDEN else self._spoken_text).feed([token])
        elif token in (self._tool_open, self._tool_close):
            self._begin_call()
        else:
            self._feed_call(token)

    def _begin_call(self) -> None:
        self._call_text.flush()
        self._call = ""

    def _feed_call(self, token: int) -> str:
        text = self._call_text.feed([token])
        self._call += text
        return text

    def audio(self, pcm: Samples | Pcm16, *, t: float) -> AudioChunk:
        """The event of a chunk of sound."""
        if self._first_audio_at is None:
            self._first_audio_at = t
            self._usage = replace(self._usage, audio_ttfp_ms=1e3 * t, first_chunk_s=len(pcm) / self.rate)
        self._last_audio_at = t
        start, self._num_samples = self._num_samples, self._num_samples + len(pcm)
        return self._extended(AudioChunk(**self._next(t), pcm=pcm, rate=self.rate, start=start))

    def done(self, reason: FinishReason, error: str | None, caps: tuple[int, ...] = (), *, t: float) -> Done:
        """The reply's last event. caps: those that its reflections had, in order."""
        usage = self.usage(t, caps)
        return self._extended(Done(**self._next(t), finish_reason=reason, usage=usage, error=error))

    def usage(self, t: float, caps: tuple[int, ...] = ()) -> Usage:
        """The counts and times of the reply up to now."""
        audio_s = self._num_samples / self.rate if self._num_samples else 0.0
        return replace(
            self._usage,
            total_new_tokens=sum(self._counts),
            reflection_tokens=sum(self._counts[kind] for kind in TokenKind if kind.is_hidden),
            transcript_tokens=self._counts[TokenKind.TRANSCRIPT],
            speech_tokens=self._counts[TokenKind.SPEECH],
            tool_tokens=sum(self._counts[kind] for kind in TokenKind if kind.is_call),
            forced_tokens=self._num_forced,
            hidden_before_audio=self._hidden_before_audio,
            ttft_ms=None if self._first_token_at is None else 1e3 * self._first_token_at,
            audio_s=audio_s,
            e2el_ms=1e3 * t,
            audio_rtf=self._last_audio_at / audio_s if audio_s else None,
            reflection_caps=caps,
        )

    def _extended(self, event: E) -> E:
        """The event with the fields that the caller adds to its kind."""
        if not self._fields:
            return event
        wanted = [field for field in self._fields if event.kind in field.kinds]
        if not wanted:
            return event
        usage = event.usage if isinstance(event, Done) else self.usage(event.t)
        return replace(event, extra={field.name: self._computed(field, event, usage) for field in wanted})

    def _computed(self, field: EventField, event: Event, usage: Usage) -> Any:
        """The value of a caller's field; None when it cannot be computed or is no JSON value.

        Only the first failure of a field is logged.
        """
        try:
            value = field.compute(event, usage)
            if isinstance(value, np.generic):
                value = value.item()
            json.dumps(value, allow_nan=False)
        except BaseException:  # a caller's function ends nothing but its own value
            if field.name not in self._failed_fields:
                self._failed_fields.add(field.name)
                log.warning("event field %s failed for the kind %s", field.name, event.kind, exc_info=True)
            return None
        return value

    def _next(self, t: float) -> dict[str, Any]:
        index, self._num_events = self._num_events, self._num_events + 1
        return {"reply_id": self.reply_id, "index": index, "t": t}


def _budget(emission: Emission, reserve_s: float) -> ReflectionBudget:
    cap = 0 if emission.cap is None else emission.cap
    return ReflectionBudget(
        None if cap >= UNLIMITED else cap, emission.spent, reserve_s, emission.num_skipped
    )


def collect_text(events: Sequence[Event]) -> tuple[str, list[str]]:
    """The transcript, and one string a reflection segment."""
    transcript = "".join(event.text for event in events if isinstance(event, Transcript))
    reflections: dict[int, str] = {}
    for event in events:
        if isinstance(event, Reflection):
            reflections[event.segment] = reflections.get(event.segment, "") + event.text
    return transcript, list(reflections.values())
