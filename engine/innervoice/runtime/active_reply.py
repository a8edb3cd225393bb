"""A reply in progress: its row, its cursor, its log, and what it does with an emitted token. Reads no clock."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from innervoice.codec.audio import Resampler
from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.runner import HostPages
from innervoice.model.sequence import Sequence, TokenRole
from innervoice.runtime.event_builder import EventBuilder
from innervoice.runtime.playback import Playback
from innervoice.runtime.request import Request
from innervoice.runtime.snapshot import PausedReply
from innervoice.schedule import UNLIMITED, Cursor, Emission, FreeCursor, TokenKind
from innervoice.types import Event, FinishReason, Pcm16, Samples, to_pcm16
from innervoice_kernels.sampling.sample import Draw

_ROLES = {
    kind: TokenRole.HIDDEN if kind.is_hidden else TokenRole.SPOKEN if kind.is_spoken else TokenRole.NEUTRAL
    for kind in TokenKind
}
_HIDDEN, _SPEECH, _END = (
    TokenRole.HIDDEN,
    TokenKind.SPEECH,
    TokenKind.END,
)  # looked up once: it costs as much as the rest of a token


@dataclass
class ActiveReply:
    """State of one reply. number: of the reply within its row; num_samples: made by the voice, before any resampling.

    skip_samples: how many of the next ones a paused reply had delivered before. place: in the scheduler's table. playback: the
    listener's clock. host_pages: keys and values that wait on the host while the reply has no pages. device_row: where the device
    draws for it, None: the host does, or nobody yet; by_host: because the device cannot. in_flight: steps of it that are queued,
    whose tokens the host does not know.
    """

    request: Request
    row: Sequence
    cursor: Cursor | FreeCursor
    log: EventBuilder
    number: int
    place: int
    resampler: Resampler | None = None
    playback: Playback = field(default_factory=Playback)
    host_pages: HostPages | None = None
    num_hidden: int = 0
    num_tokens: int = 0
    num_speech: int = 0
    num_samples: int = 0
    skip_samples: int = 0
    finish: FinishReason | None = None
    error: str | None = None
    device_row: int | None = None
    by_host: bool = False
    in_flight: int = 0

    def __post_init__(self) -> None:
        self._own_caps = list(self.cursor.caps)

    def own_cap(self, number: int) -> int:
        """What the caller caps a reflection to, counted from 0."""
        return self._own_caps[number] if number < len(self._own_caps) else UNLIMITED

    @property
    def own_caps(self) -> abc.Sequence[int]:
        """The caller's caps."""
        return self._own_caps

    @property
    def granted(self) -> tuple[int, ...]:
        """The caps that the reflections have had so far: given as `reflection_caps` they make the same reply."""
        return tuple(self.cursor.granted)

    def grant(self, cap: int) -> None:
        """The scheduler's cap for the open reflection, which it can only lower, or for the next one.

        An open one keeps at least one token: closed empty, it would not be what a cap of 0 makes of it, nothing at all.
        """
        cursor = self.cursor
        if cursor.is_reflecting:
            if cap < cursor.limit:
                cursor.lower_cap(max(cap, 1))
        else:
            cursor.cap_next(min(cap, self.own_cap(cursor.num_reflections)))

    def draw(self, d: int) -> Draw:
        """How the next token is drawn; d: 1 after a discarded draw."""
        sampling, own, mask = self.request.sampling, self.cursor.sampling, self.cursor.mask
        temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
        if own is not None:
            temperature = temperature if own.temperature is None else own.temperature
            top_k = top_k if own.top_k is None else own.top_k
            top_p = top_p if own.top_p is None else own.top_p
        assert (
            temperature is not None and top_k is not None and top_p is not None and sampling.seed is not None
        )
        return Draw(
            mask.ranges, mask.extras, temperature, top_k, top_p, sampling.seed, n=self.num_tokens, d=d
        )

    def take(
        self, emission: Emission, logprob: float | None, voice: SpeechOutput | None
    ) -> Callable[[float], Event]:
        """Add an emitted token to the row and the voice -> its event, once it is given the time."""
        kind, token = emission.kind, emission.token
        role = _ROLES[kind]
        self.row.append(token, role, self.number)
        self.num_tokens += 1
        self.num_hidden += role is _HIDDEN
        self.num_speech += kind is _SPEECH
        if voice is not None:
            self._speak(kind, token, voice)
        return self.stamped(
            partial(self.log.token, emission, logprob if self.request.sampling.logprobs else None)
        )

    def finish_if_over(self, max_model_len: int, codes_per_s: float) -> None:
        """Set `finish` when the last token was the reply's last."""
        sampling = self.request.sampling
        if self.cursor.is_done or (self.num_tokens and self.row.ids[-1] in sampling.stop_token_ids):
            self.finish = "stop"
        elif (
            self.num_tokens >= sampling.max_new_tokens
            or len(self.row.ids) >= max_model_len
            or (sampling.max_audio_s is not None and self.num_speech >= sampling.max_audio_s * codes_per_s)
        ):
            self.finish = "length"

    def sound(self, pcm: Samples, is_last: bool) -> Samples | Pcm16:
        """The voice's samples as the caller asked for them, without those that were delivered before."""
        self.num_samples += len(pcm)
        skipped = min(self.skip_samples, len(pcm))
        self.skip_samples -= skipped
        pcm = pcm[skipped:]
        heard = pcm if self.resampler is None else self.resampler.push(pcm, is_last)
        return to_pcm16(heard) if self.request.output_format == "int16" else heard

    def stamped(self, make: Callable[..., Event]) -> Callable[[float], Event]:
        """An event that waits for the time it is ready."""
        submitted_s = self.request.submitted_s

        def at(now: float) -> Event:
            return make(t=now - submitted_s)

        return at

    def pause(self) -> PausedReply:
        """What continues this reply elsewhere."""
        schedule = self.request.program.schedule.to_dict()
        state = replace(self.cursor.state, caps=tuple(self._own_caps))
        return PausedReply(
            schedule, self.request.sampling, state, self.num_tokens, self.num_samples, self.finish
        )

    def resume(self, paused: PausedReply, voice: SpeechOutput | None) -> None:
        """Catch up with a paused reply whose tokens are in the row already: say its codes again, in silence."""
        self.num_tokens, self.skip_samples, self.finish = paused.num_tokens, paused.num_samples, paused.finish
        for role, token in self._own_tokens():
            self.log.catch_up(role is TokenRole.HIDDEN, token)
            kind = (
                TokenKind.SPEECH
                if role is TokenRole.SPOKEN and self._is_speech(token)
                else TokenKind.TRANSCRIPT
            )
            self.num_speech += kind is TokenKind.SPEECH
            self.num_hidden += role is TokenRole.HIDDEN
            if voice is not None:
                self._speak(kind, token, voice)

    def _own_tokens(self) -> Iterator[tuple[TokenRole, int]]:
        row = self.row
        return ((r, i) for r, i, n in zip(row.roles, row.ids, row.replies, strict=True) if n == self.number)

    def _is_speech(self, token: int) -> bool:
        speech = self.request.program.vocabulary.speech
        return speech is not None and speech[0] <= token < speech[1]

    def _speak(self, kind: TokenKind, token: int, voice: SpeechOutput) -> None:
        reply_id = self.request.reply_id
        if kind is _SPEECH:
            voice.push(reply_id, [token - (self.request.program.vocabulary.speech or (0, 0))[0]])
        elif kind is not _END:
            voice.tick(reply_id)
