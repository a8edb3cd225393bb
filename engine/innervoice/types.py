"""The engine's inputs and outputs: prompts, sampling, events, replies, errors. Plain dataclasses that pickle.

The fields of the event classes are one table: a field's metadata says how it is written to an event log, and
the log and its reader go by that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import add, and_
from os import PathLike
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from innervoice.fields import (
    MOST_INT32,
    MOST_INT64,
    Count,
    Encodable,
    FieldType,
    Length,
    Limits,
    checked,
    read_fields,
)
from innervoice.files import write_sound

Samples = npt.NDArray[np.float32]
Pcm16 = npt.NDArray[np.int16]
OutputFormat = Literal["float32", "int16"]
FinishReason = Literal["stop", "tool_calls", "length", "cancelled", "interrupted", "timeout", "error"]


@dataclass(frozen=True)
class Text:
    """A typed prompt. Raises ValueError for what is no Unicode text."""

    text: Annotated[str, Encodable()]

    def __post_init__(self) -> None:
        read_fields(self, "Text.")


TokenIds = tuple[Count, ...]


@dataclass(frozen=True)
class Ids:
    """A prompt given as token ids, used as they are (no template is added).

    ids: any iterable of integers, kept as a tuple. Raises ValueError for anything else.
    """

    ids: TokenIds

    def __init__(self, ids: Iterable[int]) -> None:
        object.__setattr__(self, "ids", FieldType.of(TokenIds).read(ids, "Ids.ids"))


AudioIn = str | PathLike[str] | bytes | tuple[np.ndarray, int]
Prompt = AudioIn | Text | Ids


TOOL_BEGIN = '\n{"name": "{name}", "arguments":'


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a checkpoint by their use: text and speech as half-open ranges, None where it has no such
    token. eos: all ids that end a reply. words: half-open ranges of text beside `text`, which were added to
    the tokenizer. tool_open and tool_close: what a tool call stands between; tool_between: what may stand
    between two calls. tool_begin: what a call begins with, up to its arguments, {name} its function's. heard: of a model
    that hears by embedding rows, the ids before and behind a recording's rows, and between them the id that stands
    for each row. unseen: ids that stand for images and videos, which are not taken.
    """

    size: int
    text: tuple[int, int]
    speech: tuple[int, int] | None
    end_of_turn: int | None
    open: int | None = None
    close: int | None = None
    done: int | None = None
    eos: tuple[int, ...] = ()
    words: tuple[tuple[int, int], ...] = ()
    tool_open: int | None = None
    tool_close: int | None = None
    tool_between: int | None = None
    tool_begin: str = TOOL_BEGIN
    heard: tuple[int, int, int] | None = None
    unseen: tuple[int, ...] = ()


_COLDEST = 1e-30  # below it, quotients of logits leave float32


@dataclass(frozen=True)
class Sampling:
    """The way tokens are drawn, and when a reply ends.

    temperature 0: greedy, as any below 1e-30 is; top_k 0: off. None for these and top_p: the checkpoint's own
    value. seed None: drawn, and echoed in usage. max_new_tokens: of the whole reply, hidden and forced ones
    among them, 2000 unless given. max_audio_s: seconds of sound after which the reply ends, None: no limit.
    stop_token_ids: the first of them that is emitted ends the reply. ignore_eos: the model's own end does not.
    logprobs: token events carry the natural logarithm of each drawn id's probability. numpy's numbers are
    taken as Python's. Raises ValueError, which names the field, for a value of another type or out of range.
    """

    temperature: Annotated[float | None, Limits(0, 1e38)] = None
    top_k: Annotated[int | None, Limits(0, MOST_INT64)] = None
    top_p: Annotated[float | None, Limits(above=0, most=1)] = None
    seed: Annotated[int | None, Limits(0, 2**64 - 1)] = None
    max_new_tokens: Annotated[int, Limits(1, MOST_INT64)] = 2000
    max_audio_s: Annotated[float | None, Limits(above=0, is_finite=False)] = None
    stop_token_ids: Annotated[tuple[Count, ...], Length(1024)] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        read_fields(self, "Sampling.")
        if self.temperature is not None and self.temperature < _COLDEST:
            object.__setattr__(self, "temperature", 0.0)


def crc32(pcm: Samples | Pcm16) -> int:
    """The checksum of samples as little-endian float32 or int16."""
    return zlib.crc32(np.ascontiguousarray(pcm, pcm.dtype.newbyteorder("<")).tobytes())


def to_plain(value: Any) -> Any:
    """A value as JSON would give it back: dataclasses become objects, tuples become lists."""
    if hasattr(value, "__dataclass_fields__"):
        return to_plain(asdict(value))
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _last(before: Any, after: Any) -> Any:
    return before if after is None else after


def in_log(
    join: Callable[[Any, Any], Any] | None = None, *, omits_none: bool = False, **keys: Callable[[Any], Any]
) -> dict[str, dict[str, Any]]:
    """Metadata of an event's field: how a line of an event log holds it.

    A field without it is written as it is.

    join: makes one value of those of a segment's events; None: the first one stays. keys: the line's keys,
    each with the function that makes its value of the field's; none: the field's own name and value. omits_none:
    the line has no key while the value is None.
    """
    return {"log": {"join": join, "keys": keys, "omits_none": omits_none}}


NOT_IN_LOG: Mapping[str, Any] = {"log": None}


class _NoFields(Mapping[str, Any]):
    """An empty mapping that all events share, so that an event without a caller's fields costs no dictionary."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "{}"

    def __reduce__(self) -> str:
        return "NO_FIELDS"


NO_FIELDS = _NoFields()


@dataclass(frozen=True, kw_only=True)
class Event:
    """A thing that happened in a reply.

    index counts from 0; t is in seconds since submission; extra: see `EventField`.
    """

    kind: str
    reply_id: str = field(metadata=NOT_IN_LOG)
    index: int = field(metadata=NOT_IN_LOG)
    t: float
    extra: Mapping[str, Any] = field(default=NO_FIELDS, metadata=NOT_IN_LOG)


class ReflectionBudget(NamedTuple):
    """The hidden tokens that a reflection may have and has had, and the unplayed audio that pays for them.

    cap: the most that it may have, None: no limit; the scheduler may lower it while the reflection is open.
    spent: those that it has had. reserve_s: seconds of audio that were sent and not played yet. num_skipped:
    reflections before this token that a cap of 0 left out.
    """

    cap: int | None
    spent: int
    reserve_s: float
    num_skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenEvent(Event):
    """Ids of one segment, as they are decoded.

    segment counts the reply's segments from 0; forced: the schedule gave the ids. name: of the segment, where the
    schedule names it. feed: the name of the feed that gave the ids. choice: of the event that completes a choice, the
    text that was chosen. budget: of tokens of a reflection that can be capped, and of the token behind a reflection
    that was left out.
    """

    segment: int
    ids: list[int] = field(metadata=in_log(add))
    text: str = field(default="", metadata=in_log(add))
    forced: bool = field(default=False, metadata=in_log(and_))
    name: str | None = field(default=None, metadata=in_log(omits_none=True))
    feed: str | None = field(default=None, metadata=in_log(omits_none=True))
    choice: str | None = field(default=None, metadata=in_log(_last, omits_none=True))
    logprobs: list[float] | None = field(default=None, metadata=NOT_IN_LOG)
    budget: ReflectionBudget | None = field(default=None, metadata=NOT_IN_LOG)


@dataclass(frozen=True, kw_only=True)
class Reflection(TokenEvent):
    """Hidden text of a reply. Open, close and done are among ids and not in text."""

    kind: str = field(default="reflection", init=False)


@dataclass(frozen=True, kw_only=True)
class Transcript(TokenEvent):
    """Text of the spoken reply."""

    kind: str = field(default="transcript", init=False)


@dataclass(frozen=True, kw_only=True)
class Speech(TokenEvent):
    """Speech tokens; codes [n] int32 are ids less the first speech id."""

    codes: npt.NDArray[np.int32] = field(metadata=NOT_IN_LOG)
    kind: str = field(default="speech", init=False)


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as a model made it, or as a part of an assistant's `Message`.

    arguments: JSON text of an object. text: what the model wrote. error: the reason why no name and arguments
    could be read from it, which are empty then.
    """

    name: Annotated[str, Encodable()]
    arguments: Annotated[str, Encodable()] = "{}"
    text: Annotated[str, Encodable()] = ""
    error: str | None = None

    def __post_init__(self) -> None:
        read_fields(self, "ToolCall.")


@dataclass(frozen=True, kw_only=True)
class Tool(TokenEvent):
    """Text of a tool call, which is neither heard nor part of the transcript.

    The tokens that open and close it are among ids and not in text. call: of the event that closes it, None
    before.
    """

    call: ToolCall | None = field(default=None, metadata=in_log(_last, call=to_plain))
    kind: str = field(default="tool", init=False)


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
    """pcm [n] float32 in [-1, 1], or int16 where that was asked for; rate in Hz; start: its first sample's
    index in the reply.
    """

    pcm: Samples | Pcm16 = field(metadata=in_log(samples=len, crc32=crc32))
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
    tool_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """Last event of a reply, exactly once."""

    finish_reason: FinishReason = field(metadata=in_log(reason=str))
    usage: Usage = field(metadata=in_log(usage=to_plain))
    error: str | None = None
    kind: str = field(default="done", init=False)


EVENTS: Mapping[str, type[Event]] = {
    "reflection": Reflection,
    "transcript": Transcript,
    "speech": Speech,
    "tool": Tool,
    "end": End,
    "audio": AudioChunk,
    "done": Done,
}


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class LoggedField:
    """A built-in field of events as it is written to an event log; see `in_log`."""

    name: str
    join: Callable[[Any, Any], Any] | None
    keys: Mapping[str, Callable[[Any], Any]]
    omits_none: bool = False


def logged_fields(kind: type[Event]) -> list[LoggedField]:
    """The fields of an event class that an event log has, in order."""
    made = []
    for one in sorted(fields(kind), key=lambda one: one.name != "kind"):
        rule = one.metadata.get("log", {})
        if rule is not None:
            keys = rule.get("keys") or {one.name: _as_it_is}
            omits_none = rule.get("omits_none", False)
            made.append(LoggedField(one.name, rule.get("join"), keys, omits_none))
    return made


LOG_KEYS = frozenset(
    {"t_end"} | {key for kind in EVENTS.values() for one in logged_fields(kind) for key in one.keys}
)
"""Every key that a line of an event log has without a caller's own fields; but for the request's line."""

_TAKEN = LOG_KEYS | {one.name for kind in EVENTS.values() for one in fields(kind)}


@dataclass(frozen=True)
class EventField:
    """A field that a caller adds to events: an engine with `event_fields` puts it into `Event.extra` and into
    event logs.

    kinds: one kind of event or several, of `EVENTS`. compute: the event, and the reply's usage with that
    event counted, to a JSON value; a numpy number becomes a plain one. It runs on the engine's thread, so it
    must be quick and cannot wait for the engine; when it fails, the value is None, and the first failure in a
    reply is logged. Raises ValueError for a name that is taken or no identifier, for an unknown kind, and for a
    compute that cannot be called.
    """

    name: str
    kinds: str | tuple[str, ...]
    compute: Callable[[Any, Usage], Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"an event field cannot be called {self.name!r}: use a string")
        if not self.name.isidentifier() or self.name in _TAKEN:
            reason = "the name of a built-in field" if self.name in _TAKEN else "no identifier"
            raise ValueError(
                f"an event field cannot be called {self.name!r}, which is {reason}: use another name"
            )
        kinds = tuple(self.kinds) if isinstance(self.kinds, list | tuple | set | frozenset) else (self.kinds,)
        unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in EVENTS]
        if unknown or not kinds:
            wrong = repr(unknown[0]) if unknown else "no kind"
            raise ValueError(f"event field {self.name} is for {wrong}: use {', '.join(EVENTS)}")
        if not callable(self.compute):
            raise ValueError(
                f"event field {self.name} is computed by {self.compute!r}: use a function of an event and a usage"
            )
        object.__setattr__(self, "kinds", kinds)


def check_event_fields(given: Sequence[EventField]) -> None:
    """Raise ValueError when two fields of one kind of event have one name."""
    seen: set[tuple[str, str]] = set()
    for one in given:
        for kind in one.kinds:
            if (kind, one.name) in seen:
                raise ValueError(f"{kind} events have two fields {one.name}: give each a name of its own")
            seen.add((kind, one.name))


@dataclass(frozen=True)
class Heard:
    """The part of a reply that was heard, which an interruption leaves in the history.

    speech_tokens, transcript: of the reply that was interrupted. unheard_text_tokens: transcript tokens among
    them whose sound, by the `proportional` estimate, was not heard: none under cut="transcript".
    history_tokens: of the whole session. heard_ms: of the reply's sound.
    """

    speech_tokens: int
    transcript: str
    unheard_text_tokens: int
    history_tokens: int
    heard_ms: float = 0.0


@dataclass(frozen=True)
class Audio:
    """samples [n] float32 in [-1, 1], or int16 where that was asked for; rate in Hz."""

    samples: Samples | Pcm16
    rate: Annotated[int, Limits(1, MOST_INT32, unit="Hz")]

    def __post_init__(self) -> None:
        read_fields(self, "Audio.")

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @checked
    def save(self, path: str | PathLike[str]) -> None:
        """Write the file whole or not at all, as its ending says: .wav, .flac, .ogg, or another of libsndfile's.

        Raises OSError, and ValueError for no samples, for some that are no finite numbers, and for an ending or a
        rate that cannot be written.
        """
        write_sound(path, self.samples, self.rate, to_pcm16)


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

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that the reply ends with, in order; those that could not be read have an error."""
        calls = [event.call for event in self.events if isinstance(event, Tool)]
        return [call for call in calls if call is not None]


class RequestFailed(RuntimeError):
    """One request ended in an error; the engine lives on."""


class FeedClosed(RuntimeError):
    """A feed takes nothing more: it was closed, or the reply that it belongs to is over."""


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
