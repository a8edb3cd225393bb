"""Feed: the queue from which a reply's fed segments take ids, filled by the caller while the reply is made."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Self

from innervoice.fields import AtLeastOne, Limits, Seconds, checked
from innervoice.runtime.event_queue import Waiters, resume
from innervoice.types import FeedClosed, Ids, Text, TokenEvent

FeedItem = str | Text | Ids | int | Sequence[int] | TokenEvent
"""Text, which is spelled on its own; token ids; one id; or an event of another reply, of another model too: its text, or
the codes of its speech.
"""

_NO_PUT = "the feed is closed: open another reply with a new Feed"
_OVER = "the reply that this feed belongs to is over: it takes nothing more"


@checked
def _read_timeout(timeout_s: Annotated[float, Limits(0, is_finite=False)]) -> float:
    return timeout_s


class Feed:
    """Ids for the fed segments of one reply, in order. Thread-safe; a context manager, sync and async.

    maxsize: ids that may wait unread before `put` waits. timeout_s: how long the reply waits for an id before it
    ends with an error, None: without end. Leaving the `with` block closes the feed; an exception in it, a
    cancellation too, fails it, and the reply ends with an error that names it. A feed belongs to one reply.
    """

    @checked
    def __init__(self, maxsize: AtLeastOne = 1024, *, timeout_s: Seconds | None = 30.0) -> None:
        self.timeout_s = math.inf if timeout_s is None else timeout_s
        self._maxsize = maxsize
        self._changed = threading.Condition()
        self._waiters: Waiters = []
        self._given: deque[FeedItem] = deque()  # before the reply is asked for
        self._unread: deque[int] = deque()
        self._spell: Callable[[FeedItem], Sequence[int]] | None = None
        self._wake: Callable[[], None] | None = None
        self._is_closed = self._is_over = False
        self.failure: str | None = None

    def put(self, item: FeedItem, *, timeout_s: float | None = None) -> None:
        """Add an item; wait for room, at most timeout_s (None: without end).

        Raises FeedClosed once the feed is closed or its reply is over, TimeoutError, and ValueError for what the
        reply cannot take.
        """
        if timeout_s is not None:
            timeout_s = _read_timeout(timeout_s)
        with self._changed:
            has_room = self._changed.wait_for(self._takes, timeout_s)
            if not has_room:
                raise TimeoutError(f"the feed of {self._maxsize} ids has had no room for {timeout_s:g} s")
            self._add(item)
        self._tell()

    async def aput(self, item: FeedItem) -> None:
        """Do the same as `put`, for a task; others run while it waits."""
        while True:
            with self._changed:
                if self._takes():
                    self._add(item)
                    break
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
            try:
                await waiter
            finally:
                with self._changed, suppress(ValueError):
                    self._waiters.remove(waiter)
        self._tell()

    def close(self) -> None:
        """Say that nothing more comes: the reply takes the rest, and goes on without the feed."""
        with self._changed:
            self._is_closed = True
            waiters = self._notify()
        resume(waiters)
        self._tell()

    def fail(self, reason: object) -> None:
        """Say that what should come cannot come: the reply ends with an error that gives the reason."""
        with self._changed:
            self._is_closed = True
            self.failure = self.failure or str(reason) or type(reason).__name__
            waiters = self._notify()
        resume(waiters)
        self._tell()

    @property
    def num_unread(self) -> int:
        """Ids that the reply has not taken yet; before the reply is asked for, items."""
        return len(self._unread) + len(self._given)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be put."""
        return self._is_closed or self._is_over

    # The engine's side.

    def spell_by(self, spell: Callable[[FeedItem], Sequence[int]]) -> None:
        """Turn items into ids so from now on. Raises ValueError for an item that is there and cannot be."""
        with self._changed:
            for item in self._given:
                spell(item)
            self._spell = spell

    def attach(self, wake: Callable[[], None]) -> None:
        """Let a reply take ids; wake: called when there is something new. Raises ValueError for a second reply."""
        with self._changed:
            if self._wake is not None:
                raise ValueError("the feed belongs to another reply already: give each its own Feed")
            assert self._spell is not None, "items cannot be spelled"
            while self._given:
                self._unread.extend(self._spell(self._given.popleft()))
            self._wake = wake

    def take(self, most: int | None) -> list[int]:
        """The next ids, at most so many."""
        with self._changed:
            num = len(self._unread) if most is None else min(most, len(self._unread))
            taken = [self._unread.popleft() for _ in range(num)]
            waiters = self._notify() if taken else []
        resume(waiters)
        return taken

    @property
    def is_spent(self) -> bool:
        """Whether it is closed and everything was taken."""
        with self._changed:
            return self._is_closed and not self._unread

    def end(self) -> None:
        """Take nothing more: the reply is over, or has closed the feed by itself."""
        if self._is_over:
            return
        with self._changed:
            self._is_over = True
            self._unread.clear()
            self._given.clear()
            waiters = self._notify()
        resume(waiters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, FeedClosed):
            self.close()
        else:
            self.fail(error if str(error) else type(error).__name__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _takes(self) -> bool:
        """Whether there is room. The lock is held. Raises FeedClosed where there will be none."""
        if self._is_over:
            raise FeedClosed(_OVER)
        if self._is_closed:
            raise FeedClosed(_NO_PUT)
        return self.num_unread < self._maxsize

    def _add(self, item: FeedItem) -> None:
        if self._wake is None:
            if self._spell is not None:
                self._spell(item)
            self._given.append(item)
        else:
            assert self._spell is not None, "items cannot be spelled"
            self._unread.extend(self._spell(item))

    def _notify(self) -> Waiters:
        """Wake the threads; the waiting futures are the caller's to wake. The lock is held."""
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        return waiters

    def _tell(self) -> None:
        if self._wake is not None:
            self._wake()
