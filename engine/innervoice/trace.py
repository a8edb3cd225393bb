"""Spans and counters of every stage -> Chrome trace JSON, which Perfetto opens. Costs one attribute test when off.

Where there is a GPU, spans are NVTX ranges too, for nsys.
The only module below `engine` that reads a clock.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch


class Tracer:
    """Collects events between start and stop; a tracer belongs to one engine, any thread may record."""

    def __init__(self) -> None:
        self.enabled = self._nvtx = False
        self._events: list[dict[str, Any]] = []
        self._start_ns = time.perf_counter_ns()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Forget what was recorded and record from now on. Raises ValueError while it records already."""
        with self._lock:
            if self.enabled:
                raise ValueError("a trace is being recorded already: end it first")
            self._events, self._start_ns, self.enabled = [], time.perf_counter_ns(), True
            self._nvtx = torch.cuda.is_available()

    def stop(self) -> None:
        """Record no more; what was recorded stays."""
        self.enabled = False

    @contextmanager
    def span(self, name: str, **args: Any) -> Iterator[None]:
        """Record how long the block took; args must be JSON values."""
        if not self.enabled:
            yield
            return
        begin = time.perf_counter_ns()
        if self._nvtx:
            torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if self._nvtx:
                torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
            self._add(
                {"name": name, "ph": "X", "ts": self._us(begin), "dur": (time.perf_counter_ns() - begin) / 1e3, "args": args}
            )

    def device_span(self, name: str, begin_ns: int, device_ms: float, **args: Any) -> None:
        """Record what took device_ms on the device, as its events say, and was queued at begin_ns of `now_ns`.

        What happens inside a captured graph has no span of its own; this says how long the whole took.
        """
        if self.enabled:
            event = {"name": name, "ph": "X", "ts": self._us(begin_ns), "dur": device_ms * 1e3, "cat": "device"}
            self._add(event | {"args": args | {"device_ms": device_ms}})

    def now_ns(self) -> int:
        """The clock of spans."""
        return time.perf_counter_ns()

    def instant(self, name: str, **args: Any) -> None:
        """Record a moment."""
        if self.enabled:
            self._add({"name": name, "ph": "i", "s": "t", "ts": self._us(time.perf_counter_ns()), "args": args})

    def counter(self, name: str, **values: float) -> None:
        """Record values over time, drawn as a graph."""
        if self.enabled:
            self._add({"name": name, "ph": "C", "ts": self._us(time.perf_counter_ns()), "args": values})

    def save(self, path: str | PathLike[str]) -> None:
        """Write what was collected, whole or not at all. Raises OSError."""
        with self._lock:
            document = {"traceEvents": list(self._events), "displayTimeUnit": "ms"}
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(document), encoding="utf-8")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def _us(self, clock_ns: int) -> float:
        return (clock_ns - self._start_ns) / 1e3

    def _add(self, event: dict[str, Any]) -> None:
        event |= {"pid": os.getpid(), "tid": threading.get_ident()}
        with self._lock:
            self._events.append(event)
