"""A reply's events as JSON lines: a first one for the request, one a segment, one an audio chunk, a last one for the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.runtime.record import crc32
from innervoice.types import AudioChunk, Done, Event, TokenEvent

Line = dict[str, Any]


class EventLog:
    """Gathers events into lines while they come; the request's line (`Stream.record`) is the writer's to put before them.

    A segment's line is complete when the next token belongs to another segment, or at the end; audio lines are complete
    at once. So every generated id stands in exactly one line, in order, and no segment is split. `forced` in a line:
    the schedule gave every one of its ids.
    """

    def __init__(self) -> None:
        self._open: Line | None = None

    @property
    def open(self) -> Line | None:
        """The line of the segment that is still growing, if any."""
        return self._open

    def feed(self, event: Event) -> list[Line]:
        """The lines that this event completes, in order."""
        if isinstance(event, TokenEvent):
            return self._grow(event)
        if isinstance(event, AudioChunk):
            line = {
                "kind": event.kind,
                "t": event.t,
                "start": event.start,
                "samples": len(event.pcm),
                "rate": event.rate,
            }
            return [line | {"crc32": crc32(event.pcm)}]
        if isinstance(event, Done):
            usage = _plain(asdict(event.usage))
            return [
                *self.finish(),
                {
                    "kind": event.kind,
                    "reason": event.finish_reason,
                    "usage": usage,
                    "error": event.error,
                    "t": event.t,
                },
            ]
        raise TypeError(f"an event of type {type(event).__name__} has no line")

    def finish(self) -> list[Line]:
        """The line that is still growing, when the events stop without a done."""
        last, self._open = self._open, None
        return [] if last is None else [last]

    def _grow(self, event: TokenEvent) -> list[Line]:
        line, complete = self._open, []
        if line is None or (line["kind"], line["segment"]) != (event.kind, event.segment):
            complete = self.finish()
            line = {"kind": event.kind, "segment": event.segment, "ids": [], "text": ""}
            line |= {"t": event.t, "t_end": event.t, "forced": True}
            self._open = line
        line["ids"].extend(event.ids)
        line["text"] += event.text
        line["t_end"] = event.t
        line["forced"] = line["forced"] and event.forced
        return complete


def write_events(path: str | PathLike[str], lines: Iterable[Line]) -> None:
    """Write lines as UTF-8 JSON lines, whole or not at all. Raises OSError."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(to_json(line) + "\n" for line in lines), encoding="utf-8", newline="\n")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def to_json(line: Line) -> str:
    """One line of JSON. What Unicode calls a line break is escaped too, so that any reader's lines are ours."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _plain(value: Any) -> Any:
    """The value as JSON would give it back: tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
