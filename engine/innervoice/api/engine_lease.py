"""EngineLease: an engine runs for as long as its user can reach it, and no longer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from innervoice.runtime.fork_guard import ForkGuard


class EngineLease:
    """Belongs to an engine, its sessions and its streams together, and to none of its threads.

    stop: called when the last of them is garbage-collected, which may be on any thread, with any locks held:
    each must return without waiting for a thread.
    """

    def __init__(self, stop: Sequence[Callable[[], None]]) -> None:
        self._finalizer = weakref.finalize(self, _stop_all, ForkGuard(), stop)
        self._finalizer.atexit = False  # at exit threads stop themselves

    def end(self) -> None:
        """Do nothing at garbage collection: the engine was closed."""
        self._finalizer.detach()


def _stop_all(guard: ForkGuard, stop: Sequence[Callable[[], None]]) -> None:
    if guard.is_at_home:  # in a forked process the engine is not this one's to stop
        for call in stop:
            call()
