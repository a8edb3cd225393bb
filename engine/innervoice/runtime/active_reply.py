"""A reply in progress: its sequence, its cursor, its events, its counts. Reads no clock."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from innervoice.codec.audio import Resampler
from innervoice.model.runner import HostPages
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.runtime.event_builder import EventBuilder
from innervoice.runtime.fused_contexts import FusedContexts
from innervoice.runtime.playback import Playback
from innervoice.runtime.request import Request
from innervoice.runtime.snapshot import PausedReply
from innervoice.schedule import UNLIMITED, Cursor, Emission, FreeCursor, TokenKind
from innervoice.types import FinishReason, Pcm16, Samples, to_pcm16
from innervoice_kernels.sampling.sample import Draw

_ROLES = {kind: TokenRole.of(kind) for kind in TokenKind}
# Looked up once: an enum's attribute costs as much as the rest of a token.
_HIDDEN = TokenRole.HIDDEN
_SPEECH = TokenKind.SPEECH
_TOOL_MARK = TokenKind.TOOL_MARK


@dataclass(eq=False)
class ActiveReply:
    """State of one reply.

    number: of the reply within its sequence. table_index: its row of the scheduler's table. num_samples: made
    by the codec, before any resampling; skip_samples: the next ones that a paused reply had delivered before.
    playback: the listener's clock. host_pages: keys and values that wait on the host while the reply has no
    pages. device_row: the row of the device's batch whose cursor draws for this reply, None: the host draws;
    by_host: the device cannot hold this reply. fused: its contexts beside the prompt, None: it has none. is_plain: it has
    none, and takes no ids from outside. in_flight: queued device steps of this reply, whose tokens the host does not know
    yet.
    """

    request: Request
    sequence: Sequence
    cursor: Cursor | FreeCursor
    events: EventBuilder
    number: int
    table_index: int
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
    fused: FusedContexts | None = None
    in_flight: int = 0

    def __post_init__(self) -> None:
        self._own_caps = list(self.cursor.caps)
        self.reply_id = self.request.reply_id
        self.by_host |= self.fused is not None and self.fused.combine is not None
        self.is_plain = self.fused is None and not self.request.program.takes_ids

    @property
    def num_rows(self) -> int:
        """Rows of a step that it takes: one for each of its contexts."""
        return 1 if self.fused is None else self.fused.size

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences of the prompt and of all other contexts."""
        return [self.sequence, *(() if self.fused is None else self.fused.sequences)]

    def number_in(self, sequence: Sequence) -> int:
        """The number of the reply within the sequence of one of its contexts."""
        return self.number if self.fused is None else self.fused.number_in(sequence, self.number)

    def own_cap(self, number: int) -> int:
        """The caller's cap of a reflection, counted from 0."""
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
        """Take the scheduler's cap for the open reflection, which it can only lower, or for the next one.

        An open one keeps at least one token: a cap of 0 leaves a whole reflection out, and this one has
        begun.
        """
        cursor = self.cursor
        if cursor.is_reflecting:
            if cap < cursor.limit:
                cursor.lower_cap(max(cap, 1))
        else:
            cursor.cap_next(min(cap, self.own_cap(cursor.num_reflections)))

    def draw(self, d: int) -> Draw:
        """The parameters of the next token's draw; d: 1 after a discarded draw."""
        sampling = self.request.sampling
        temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
        own = self.cursor.sampling
        if own is not None:
            temperature = temperature if own.temperature is None else own.temperature
            top_k = top_k if own.top_k is None else own.top_k
            top_p = top_p if own.top_p is None else own.top_p
        assert (
            temperature is not None and top_k is not None and top_p is not None and sampling.seed is not None
        )
        mask = self.cursor.mask
        return Draw(
            mask.ranges,
            mask.extras,
            temperature,
            top_k,
            top_p,
            sampling.seed,
            n=self.num_tokens,
            d=d,
            bits=mask.bits,
        )

    def append(self, emission: Emission) -> None:
        """Add an emitted token to the sequence and the counts."""
        role = _ROLES[emission.kind]
        self.sequence.append(emission.token, role, self.number)
        if self.fused is not None:
            self.fused.append(emission.token, role)
        self.num_tokens += 1
        self.num_hidden += role is _HIDDEN
        self.num_speech += emission.kind is _SPEECH

    def finish_if_over(self, max_model_len: int, codes_per_s: float, codes_per_frame: int) -> None:
        """Set `finish` when the last token was the reply's last. max_audio_s counts whole frames of codes."""
        sampling, ids = self.request.sampling, self.sequence.ids
        longest = len(ids) if self.fused is None else max(len(one.ids) for one in self.sequences)
        if self.cursor.is_done or (self.num_tokens and ids[-1] in sampling.stop_token_ids):
            self.finish = "tool_calls" if self.cursor.kind is _TOOL_MARK else "stop"
        elif (
            self.num_tokens >= sampling.max_new_tokens
            or longest >= max_model_len
            or (
                sampling.max_audio_s is not None
                and self.num_speech - self.num_speech % codes_per_frame >= sampling.max_audio_s * codes_per_s
            )
        ):
            self.finish = "length"

    def sound(self, pcm: Samples, is_last: bool) -> Samples | Pcm16:
        """The codec's samples as the caller asked for them, without those that were delivered before."""
        self.num_samples += len(pcm)
        skipped = min(self.skip_samples, len(pcm))
        self.skip_samples -= skipped
        pcm = pcm[skipped:]
        resampled = pcm if self.resampler is None else self.resampler.push(pcm, is_last)
        return to_pcm16(resampled) if self.request.output_format == "int16" else resampled

    def pause(self) -> PausedReply:
        """The state that continues this reply elsewhere."""
        schedule = self.request.program.schedule.to_dict()
        state = replace(self.cursor.state, caps=tuple(self._own_caps))
        return PausedReply(
            schedule, self.request.sampling, state, self.num_tokens, self.num_samples, self.finish
        )

    def resume(self, paused: PausedReply) -> Iterator[tuple[TokenKind, int]]:
        """Catch up with a paused reply whose tokens are in the sequence already -> (kind, id) of each, as the
        codec needs it.
        """
        self.num_tokens = paused.num_tokens
        self.skip_samples = paused.num_samples
        self.finish = paused.finish
        sequence = self.sequence
        for role, token, number in zip(sequence.roles, sequence.ids, sequence.replies, strict=True):
            if number != self.number:
                continue
            self.events.catch_up(role, token)
            is_speech = role is TokenRole.SPOKEN and self._is_speech(token)
            self.num_speech += is_speech
            self.num_hidden += role is TokenRole.HIDDEN
            yield TokenKind.SPEECH if is_speech else TokenKind.TRANSCRIPT, token

    def _is_speech(self, token: int) -> bool:
        speech = self.request.program.vocabulary.speech
        return speech is not None and speech[0] <= token < speech[1]
