"""Spans and counters of every stage -> Chrome trace JSON, which Perfetto opens.

Costs one attribute test when off.

The events of a thread lie on that thread's line. The events of a reply lie below a heading of its own
(`Lines`), and their times are passed in. Where there is a GPU, spans are NVTX ranges too, for nsys. No other
module below `api` reads a clock.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

from innervoice.files import replacing

_FIRST_HEADING, _HEADING = 1 << 22, 8  # above every process id; ids of a heading and of its lines


class Tracer:
    """Collects events between start and stop; a tracer belongs to one engine, any thread may record.

    clock_ns: that of spans, `time.monotonic` in nanoseconds unless a test has its own. number: of recordings
    begun.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.enabled = False
        self._ranges: Any = None
        self.number = 0
        self._clock_ns = clock_ns
        self._events: list[dict[str, Any]] = []
        self._threads: set[int] = set()
        self._num_headings = 0
        self._start_ns = clock_ns()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Drop all recorded events and record from now on. Raises ValueError while it records already."""
        with self._lock:
            if self.enabled:
                raise ValueError("a trace is being recorded already: end it first")
            self._events = []
            self._threads = set()
            self._num_headings = 0
            self._start_ns = self._clock_ns()
            self.number += 1
            self.enabled = True
            self._ranges = _nvtx()

    def stop(self) -> None:
        """Record no more; the recorded events stay."""
        self.enabled = False

    @contextmanager
    def span(self, name: str, **args: Any) -> Iterator[None]:
        """Record how long the block took; args must be JSON values."""
        if not self.enabled:
            yield
            return
        begin = self._clock_ns()
        if self._ranges is not None:
            self._ranges.range_push(name)
        try:
            yield
        finally:
            if self._ranges is not None:
                self._ranges.range_pop()
            self._add(
                {
                    "name": name,
                    "ph": "X",
                    "ts": self._us(begin),
                    "dur": (self._clock_ns() - begin) / 1e3,
                    "args": args,
                }
            )

    def device_span(self, name: str, begin_ns: int, device_ms: float, **args: Any) -> None:
        """Record what took device_ms on the device, as its events say, and was queued at begin_ns of
        `now_ns`.

        What happens inside a captured graph has no span of its own; this says how long the whole took.
        """
        if self.enabled:
            event = {
                "name": name,
                "ph": "X",
                "ts": self._us(begin_ns),
                "dur": device_ms * 1e3,
                "cat": "device",
            }
            self._add(event | {"args": args | {"device_ms": device_ms}})

    def now_ns(self) -> int:
        """The clock of spans."""
        return self._clock_ns()

    def instant(self, name: str, **args: Any) -> None:
        """Record a moment."""
        if self.enabled:
            self._add({"name": name, "ph": "i", "s": "t", "ts": self._us(self._clock_ns()), "args": args})

    def counter(self, name: str, **values: float) -> None:
        """Record values over time, drawn as a graph."""
        if self.enabled:
            self._add({"name": name, "ph": "C", "ts": self._us(self._clock_ns()), "args": values})

    def lines(self, title: str, names: Sequence[str]) -> Lines:
        """A heading with a line for each name below it, at most 7."""
        assert len(names) < _HEADING, "too many lines"
        with self._lock:
            pid, self._num_headings = _FIRST_HEADING + _HEADING * self._num_headings, self._num_headings + 1
        made = Lines(self, pid)
        made._put("M", "process_name", 0, {"name": title})
        made._put("M", "process_sort_index", 0, {"sort_index": pid})
        for line, name in enumerate(names):
            made._put("M", "thread_name", line, {"name": name})
            made._put("M", "thread_sort_index", line, {"sort_index": line})
        return made

    def save(self, path: str | PathLike[str]) -> None:
        """Write all recorded events, whole or not at all. Raises OSError."""
        with self._lock:
            document = {"traceEvents": list(self._events), "displayTimeUnit": "ms"}
        with replacing(path) as part:
            part.write_text(json.dumps(document), encoding="utf-8")

    def _us(self, clock_ns: float) -> float:
        return (clock_ns - self._start_ns) / 1e3

    def _add(self, event: dict[str, Any]) -> None:
        tid, pid = threading.get_native_id(), os.getpid()
        with self._lock:
            if tid not in self._threads:
                self._threads.add(tid)
                name = {"name": threading.current_thread().name}
                self._events.append(
                    {"name": "thread_name", "ph": "M", "ts": 0.0, "pid": pid, "tid": tid, "args": name}
                )
            self._events.append(event | {"pid": pid, "tid": tid})

    def _add_placed(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append(event)


class Lines:
    """Lines below a heading of their own, made by `Tracer.lines`; times are seconds of its clock.

    They record while it does.
    """

    def __init__(self, tracer: Tracer, pid: int) -> None:
        self._tracer, self._pid = tracer, pid

    def begin(self, line: int, what: str, at_s: float, **args: Any) -> None:
        """Something begins; without an `end` it lasts as long as the trace does."""
        self._put("B", what, line, args, at_s)

    def end(self, line: int, at_s: float, **args: Any) -> None:
        """End the event that began last on that line."""
        self._put("E", "", line, args, at_s)

    def span(self, line: int, what: str, begin_s: float, end_s: float, **args: Any) -> None:
        """Something that is over."""
        self._put("X", what, line, args, begin_s, dur=1e6 * (end_s - begin_s))

    def instant(self, line: int, what: str, at_s: float, **args: Any) -> None:
        """Record a moment."""
        self._put("i", what, line, args, at_s, s="t")

    def counter(self, what: str, at_s: float, **values: float) -> None:
        """Values over time."""
        self._put("C", what, 0, values, at_s)

    def _put(
        self, phase: str, what: str, line: int, args: dict[str, Any], at_s: float | None = None, **more: Any
    ) -> None:
        if self._tracer.enabled:
            ts = 0.0 if at_s is None else self._tracer._us(1e9 * at_s)
            event = {
                "name": what,
                "ph": phase,
                "ts": ts,
                "pid": self._pid,
                "tid": self._pid + 1 + line,
                "args": args,
            }
            self._tracer._add_placed(event | more)


def _nvtx() -> Any:
    """torch's NVTX ranges, which profilers of a GPU show; None without a GPU."""
    import torch

    return torch.cuda.nvtx if torch.cuda.is_available() else None
