"""An event loop under a virtual clock: its time jumps to the next timer whenever no socket has anything to read.

Sockets must be local (AF_UNIX, where a message is there once it was sent), so that times are exact.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Waits for no time: the loop's clock moves instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        assert timeout is not None, "every task waits for something that no timer and no socket brings"
        self.loop.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """now_s: the time, which a test may move on, as if the process had been held up."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now_s = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        """Return the virtual time."""
        return self.now_s


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine under a virtual clock -> its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
