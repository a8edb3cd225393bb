"""A recorded reply made again, and the first place where it differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from innervoice.api.engine import Engine
from innervoice.runtime.feed import Feed
from innervoice.runtime.snapshot import PausedReply
from innervoice.runtime.stream import Stream
from innervoice.schedule import Schedule, make_cursor
from innervoice.tools.replay.recording import RecordedReply, Token
from innervoice.types import AudioChunk, Done, Event, Ids, Pcm16, Samples, Sampling, TokenEvent, crc32

CUT = ("cancelled", "interrupted", None)  # ends that came from outside, between any two tokens


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    mismatch: one sentence on the first difference, None: every token and sample is the same.
    """

    num_tokens: int
    num_samples: int
    samples: Samples | Pcm16
    mismatch: str | None


def replay(engine: Engine, recording: RecordedReply) -> Replayed:
    """Make a recorded reply again, with the caps that its reflection came to have, and compare
    every token and chunk of sound.

    Raises ValueError for a recording of another model, RequestFailed, EngineDead.
    """
    if engine.model_id != recording.model:
        raise ValueError(
            f"the log is of the model {recording.model}, and this is {engine.model_id}: load the one that it was made with"
        )
    tokens: list[Token] = []
    chunks: list[Samples | Pcm16] = []
    reason = None
    for event in _events(engine, recording):
        if isinstance(event, TokenEvent):
            tokens += [Token(event.kind, event.segment, i) for i in event.ids]
        elif isinstance(event, AudioChunk):
            chunks.append(event.pcm)
        elif isinstance(event, Done):
            reason = event.finish_reason
    samples: Any = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    mismatch = _compare_tokens(recording, tokens) or _compare_sound(recording, samples)
    if (
        mismatch is None
        and recording.reason in ("stop", "tool_calls", "length")
        and reason != recording.reason
    ):
        mismatch = f"the reply ended with {reason}, recorded is {recording.reason}"
    return Replayed(len(tokens), len(samples), samples, mismatch)


def _events(engine: Engine, recording: RecordedReply) -> Iterator[Event]:
    """The events of the reply, made again until it ends as it did, or has come as far as it did."""
    num_tokens = num_samples = 0
    with _again(engine, recording) as stream:
        for event in stream:
            yield event
            num_tokens += len(event.ids) if isinstance(event, TokenEvent) else 0
            num_samples += len(event.pcm) if isinstance(event, AudioChunk) else 0
            if (
                recording.reason in CUT
                and num_tokens >= len(recording.tokens)
                and num_samples >= recording.num_samples
            ):
                return


@contextmanager
def _again(engine: Engine, recording: RecordedReply) -> Iterator[Stream]:
    """The reply: a single one, a turn after its history, or the rest of a reply that was cut out."""
    sampling, history = recording.sampling, recording.history
    num_before = (
        0 if history is None or history.paused is None or recording.prompt_ids else history.paused.num_tokens
    )
    if recording.reason in ("timeout", "error"):  # these take no more tokens, and voice what they have
        sampling = replace(sampling, max_new_tokens=max(1, num_before + len(recording.tokens)))
    request: dict[str, Any] = {
        "schedule": recording.schedule,
        "sampling": sampling,
        "reflection_caps": recording.reflection_caps,
        "output_rate": recording.output_rate,
        "output_format": recording.output_format,
        "realtime": False,
        "contexts": [Ids(ids) for ids in recording.contexts],
        "fusion": recording.fusion,
        "feeds": {name: _filled(recording, name) for name in recording.schedule.feeds},
    }
    if history is None:
        with engine.stream(Ids(recording.prompt_ids), **request) as stream:
            yield stream
        return
    if history.paused is not None and not recording.prompt_ids:
        history = replace(history, paused=_rest(engine, history.paused, sampling, recording.reflection_caps))
    with engine.open_session(restore=history.to_bytes()) as session:
        yield session.reply(Ids(recording.prompt_ids) if recording.prompt_ids else None, **request)


def _filled(recording: RecordedReply, name: str) -> Feed:
    """A closed feed with the ids that one of this name gave."""
    ids = recording.feeds.get(name, ())
    with Feed(max(1, len(ids))) as feed:
        for token in ids:
            feed.put(token)
    return feed


def _rest(engine: Engine, paused: PausedReply, sampling: Sampling, caps: Sequence[int]) -> PausedReply:
    """A reply that was cut out, whose reflections, an open one too, are to have the
    caps that they came to have.
    """
    program = engine.parts.requests.compile(Schedule.from_dict(paused.schedule))
    cursor = make_cursor(program, state=paused.cursor)
    cursor.caps = list(caps)
    if 0 < cursor.num_reflections <= len(caps):
        cursor.lower_cap(caps[cursor.num_reflections - 1])
    return replace(paused, sampling=sampling, cursor=cursor.state)


def _compare_tokens(recording: RecordedReply, tokens: list[Token]) -> str | None:
    is_cut = recording.reason in CUT
    for number, recorded in enumerate(recording.tokens):
        if number >= len(tokens):
            return f"token {number} is missing: recorded is {_told(recorded)}"
        if tokens[number] != recorded:
            return f"token {number} is {_told(tokens[number])}, recorded is {_told(recorded)}"
    more = len(tokens) - len(recording.tokens)
    return (
        f"{more} more tokens than the {len(recording.tokens)} recorded" if more > 0 and not is_cut else None
    )


def _compare_sound(recording: RecordedReply, samples: Samples) -> str | None:
    for number, chunk in enumerate(recording.chunks):
        end = chunk.start + chunk.samples
        if len(samples) < end:
            return f"chunk {number} of the sound ends at sample {end}, and {len(samples)} were made"
        found = crc32(samples[chunk.start : end])
        if found != chunk.crc32:
            where = f"samples {chunk.start} to {end}, from {chunk.start / chunk.rate:.3f} s on"
            return f"chunk {number} of the sound ({where}) has checksum {found:08x}, recorded is {chunk.crc32:08x}"
    more = len(samples) - recording.num_samples
    return (
        f"{more} more samples than the {recording.num_samples} recorded"
        if more > 0 and recording.reason not in CUT
        else None
    )


def _told(token: Token) -> str:
    return f"{token.id} ({token.kind}, segment {token.segment})"
