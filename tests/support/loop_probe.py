"""How long an event loop lets a task wait, without the time for which the machine had no processor for its thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

BEAT_S = 0.005


class ThreadClock:
    """A clock of one thread that stands still while the thread could run and other processes have the processors.

    What remains is its own work, and its waits for locks and for the interpreter.
    """

    def __init__(self) -> None:
        self._file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def now_s(self) -> float:
        """Seconds; any thread may ask."""
        queued_ns = int(self._file.read_text(encoding="ascii").split()[1])
        return time.perf_counter() - queued_ns / 1e9


class LoopProbe:
    """A task that sleeps for 5 ms again and again. late_s: how late it woke each time, by the thread's clock."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the loop that is probed."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """End, on that loop."""
        assert self._task is not None, "it was started"
        self._task.cancel()

    def late_at_most_s(self, share: float) -> float:
        """Seconds that a share of the wakes are late at most."""
        return float(np.quantile(self.late_s, share))

    async def _run(self) -> None:
        clock = ThreadClock()
        while True:
            begin_s = clock.now_s()
            await asyncio.sleep(BEAT_S)
            self.late_s.append(clock.now_s() - begin_s - BEAT_S)


@asynccontextmanager
async def probed() -> AsyncIterator[LoopProbe]:
    """Probe the running loop while the block runs."""
    probe = LoopProbe()
    probe.start()
    try:
        yield probe
    finally:
        probe.stop()
