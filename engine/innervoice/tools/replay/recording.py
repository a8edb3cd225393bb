"""RecordedReply: an event log that its reply is made again from: request, tokens, checksums of sound, end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Annotated, Any

from innervoice.codec.audio import SampleRate
from innervoice.fields import MOST_INT64, Count, Limits, read_fields
from innervoice.files import parse_json, read_text
from innervoice.model.rows import with_rows_read
from innervoice.runtime.fusion import Fusion
from innervoice.runtime.record import Line
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.schedule import Schedule
from innervoice.types import LOG_KEYS, OutputFormat, Sampling, TokenIds

NumSamples = Annotated[int, Limits(0, MOST_INT64)]

_REMEDY = "name the file that --events wrote"


@dataclass(frozen=True)
class Token:
    """A recorded id, and where it stands."""

    kind: str
    segment: Count
    id: Count

    def __post_init__(self) -> None:
        read_fields(self, "the log's ")


@dataclass(frozen=True)
class Chunk:
    """A recorded piece of sound, of which the checksum is kept."""

    start: NumSamples
    samples: NumSamples
    rate: SampleRate
    crc32: Annotated[int, Limits(0, 2**32 - 1)]

    def __post_init__(self) -> None:
        read_fields(self, "the log's ")


@dataclass(frozen=True)
class RecordedReply:
    """An event log that can be made again.

    reflection_caps: as they came to be, from the usage; without a usage those of the request. engine: how the
    engine was loaded. reason: None when the log breaks off. history: of the session that the reply is a turn
    of, as it was before, None for a single reply. extra: the caller's own fields of each line behind the
    request's (`EventField`); a replay does not compare them. feeds: by name, the ids that a feed gave.
    contexts, fusion: of a reply that was drawn from several.
    """

    prompt_ids: TokenIds
    schedule: Schedule
    sampling: Sampling
    reflection_caps: tuple[Count, ...]
    output_rate: SampleRate | None
    output_format: OutputFormat
    model: str
    tokens: tuple[Token, ...]
    chunks: tuple[Chunk, ...]
    reason: str | None
    engine: Mapping[str, Any] = field(default_factory=dict)
    history: SessionSnapshot | None = None
    extra: tuple[Mapping[str, Any], ...] = ()
    feeds: Mapping[str, TokenIds] = field(default_factory=dict)
    contexts: tuple[TokenIds, ...] = ()
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        read_fields(self, "the log's ")

    @property
    def num_samples(self) -> int:
        """Samples of the recorded sound."""
        return sum(chunk.samples for chunk in self.chunks)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RecordedReply:
        """Read an event log.

        Raises FileNotFoundError, and ValueError, which names the line, for a log that no reply can be made again from.
        """
        content = read_text(path, _REMEDY, "event log")
        lines = [_parsed(path, number, text) for number, text in enumerate(content.split("\n"), 1) if text]
        if not lines or lines[0].get("kind") != "request":
            raise ValueError(
                f"{path} does not begin with a request: it was written by an older version, "
                "or cut at its beginning"
            )
        try:
            head = lines[0]
            if head["is_turn"] and head.get("history") is None:
                raise ValueError(
                    f"{path} is a turn of a session, whose history is not in it: it was written by an "
                    "older version"
                )
            return cls._of(head, lines[1:])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no event log of this version: {error}") from error

    @classmethod
    def _of(cls, head: Line, lines: Sequence[Line]) -> RecordedReply:
        """The recording of a request's line and the lines behind it. Raises KeyError, TypeError, ValueError."""
        done = next((line for line in reversed(lines) if line["kind"] == "done"), None)
        caps = (done["usage"]["reflection_caps"] if done else ()) or head["reflection_caps"]
        tokens = (
            Token(line["kind"], line["segment"], token)
            for line in lines
            if "segment" in line
            for token in line["ids"]
        )
        chunks = (
            Chunk(**{field.name: line[field.name] for field in fields(Chunk)})
            for line in lines
            if line["kind"] == "audio"
        )
        extra = ({key: value for key, value in line.items() if key not in LOG_KEYS} for line in lines)
        return cls(
            prompt_ids=with_rows_read(head)["prompt_ids"],
            schedule=Schedule.from_dict(head["schedule"]),
            sampling=Sampling(**head["sampling"]),
            reflection_caps=caps,
            output_rate=head["output_rate"],
            output_format=head["output_format"],
            model=head["model"],
            tokens=tuple(tokens),
            chunks=tuple(chunks),
            reason=None if done is None else done["reason"],
            engine=head.get("engine", {}),
            history=SessionSnapshot.from_dict(head["history"]) if head["is_turn"] else None,
            extra=tuple(extra),
            feeds=_feeds(lines),
            contexts=head.get("contexts", ()),
            fusion=_fusion(head.get("fusion")),
        )


def _fusion(values: Any) -> Fusion | None:
    """A recorded fusion. Raises ValueError for a function, which is in no log."""
    if values is None:
        return None
    if values["kind"] == "function":
        raise ValueError("the log is of a reply whose contexts a function combined: it cannot be made again")
    return Fusion(values["kind"], values["alpha"], values["beta"], tuple(values["prior"]))


def _feeds(lines: Sequence[Line]) -> dict[str, tuple[int, ...]]:
    """By name, the ids that each feed gave, in order."""
    found: dict[str, tuple[int, ...]] = {}
    for line in lines:
        if name := line.get("feed"):
            found[name] = (*found.get(name, ()), *line["ids"])
    return found


def _parsed(path: str | PathLike[str], number: int, text: str) -> Line:
    line = parse_json(text, f"{path}, line {number}", _REMEDY)
    if not isinstance(line, dict) or "kind" not in line:
        raise ValueError(f"{path}, line {number}: no line of an event log, which is an object with a kind")
    return line
