"""A reply's events as JSON lines: a first one for the request, one a segment, one an audio chunk, a last one
for the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike

from innervoice.files import replacing
from innervoice.runtime.record import Line
from innervoice.types import EVENTS, Done, Event, TokenEvent, logged_fields

_FIELDS = {kind: logged_fields(kind) for kind in EVENTS.values()}


class EventLog:
    """Gathers events into lines while they come; the request's line (`Stream.record`) is the writer's to put
    before them.

    A segment's line is complete when the next token belongs to another segment, or at the end; audio lines
    are complete at once. So every generated id stands in exactly one line, in order, and no segment is split.
    `forced` in a line: the schedule gave every one of its ids. The keys are the events' fields, as `types.py`
    has them, and a caller's own fields (`Event.extra`) follow them: in a segment's line as a list, a value an
    event.
    """

    def __init__(self) -> None:
        self._open: Line | None = None

    @property
    def open(self) -> Line | None:
        """The line of the segment that is still growing, if any."""
        return self._open

    def feed(self, event: Event) -> list[Line]:
        """The lines that this event completes, in order. Raises TypeError for an event of no kind."""
        if isinstance(event, TokenEvent):
            return self._grow(event)
        if type(event) not in _FIELDS:
            raise TypeError(f"an event of type {type(event).__name__} has no line")
        line = _values(event) | dict(event.extra)
        return [*self.finish(), line] if isinstance(event, Done) else [line]

    def finish(self) -> list[Line]:
        """The line that is still growing, when the events stop without a done."""
        last, self._open = self._open, None
        return [] if last is None else [last]

    def _grow(self, event: TokenEvent) -> list[Line]:
        """Add a token's event to the line of its segment, which it may begin."""
        extra = {name: [value] for name, value in event.extra.items()}
        line = self._open
        if line is None or (line["kind"], line["segment"]) != (event.kind, event.segment):
            complete = self.finish()
            self._open = _values(event) | {"t_end": event.t} | extra
            return complete
        for field in _FIELDS[type(event)]:
            if field.join is not None:
                for key, make in field.keys.items():
                    value = field.join(line.get(key), make(getattr(event, field.name)))
                    if value is not None or not field.omits_none:
                        line[key] = value
        for name, values in extra.items():
            line[name] = [*line.get(name, ()), *values]
        line["t_end"] = event.t
        return []


def write_events(path: str | PathLike[str], lines: Iterable[Line]) -> None:
    """Write lines as UTF-8 JSON lines, whole or not at all. Raises OSError.

    Half of a surrogate pair, as names of files have in a locale without UTF-8, is written as JSON's escape.
    """
    text = "".join(to_json(line) + "\n" for line in lines)
    with replacing(path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def to_json(line: Line) -> str:
    """One line of JSON. All line breaks of Unicode are escaped, so that any reader splits lines as we do."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _values(event: Event) -> Line:
    """The built-in fields of an event under the keys of its line."""
    return {
        key: make(value)
        for field in _FIELDS[type(event)]
        if (value := getattr(event, field.name)) is not None or not field.omits_none
        for key, make in field.keys.items()
    }
