"""Daemon threads that end before the interpreter does.

The interpreter kills daemon threads while it exits, wherever they are. Inside native code that aborts the
process (`terminate called without an active exception`), and its exit code is lost.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from innervoice.types import OutOfCapacity

_LEAST_STACK = 1 << 20  # bytes that torch and native code may need


@contextmanager
def enough_stack() -> Iterator[None]:
    """Start threads in the block with the system's stack where the program has set one that is too small for torch."""
    chosen = threading.stack_size()
    if not 0 < chosen < _LEAST_STACK:
        yield
        return
    threading.stack_size(0)
    try:
        yield
    finally:
        threading.stack_size(chosen)


@contextmanager
def finished_at_exit(stop: Callable[[], None]) -> Iterator[None]:
    """Make the interpreter's exit call `stop` and wait for the block's native work, where a daemon thread does it."""
    if not threading.current_thread().daemon:
        yield
        return
    done, process_id = threading.Event(), os.getpid()

    def wait() -> None:
        if os.getpid() == process_id:
            stop()
            done.wait()

    atexit.register(wait)
    try:
        yield
    finally:
        done.set()
        atexit.unregister(wait)


class StoppableThread:
    """Runs `run` on a daemon thread; at exit it calls `stop`, after which `run` has to return, and waits.

    Exit handlers run after the threads that are no daemons have ended, so a program's own threads may go on
    with their replies when its main thread is at its end.
    """

    def __init__(self, run: Callable[[], None], stop: Callable[[], None], name: str) -> None:
        self._stop = stop
        self._process_id = os.getpid()
        self._thread = threading.Thread(target=self._main, args=(run,), name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises OutOfCapacity where the process may have no other."""
        atexit.register(self._end)
        try:
            with enough_stack():
                self._thread.start()
        except BaseException as error:
            atexit.unregister(self._end)
            if isinstance(error, RuntimeError):
                raise OutOfCapacity(
                    f"a thread of the engine cannot be started ({error}): raise the process's limits of memory and threads"
                ) from None
            raise

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended, or was never started."""
        return not self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until the thread has ended; on the thread itself, do nothing."""
        if not self.is_current:
            self._thread.join()

    def _main(self, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            atexit.unregister(self._end)

    def _end(self) -> None:
        if os.getpid() == self._process_id:  # a forked process has the handler, but no thread
            self._stop()
            self.join()


def start_pool(pool: ThreadPoolExecutor, num: int) -> None:
    """Start num threads of an idle pool, which else starts each with a call and has that call wait for it."""
    started = threading.Barrier(num)
    with enough_stack():
        calls = [pool.submit(started.wait) for _ in range(num)]
    for call in calls:
        call.result()
