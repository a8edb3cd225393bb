"""The queue in which a reply's events wait for their reader: bounded, filled a step at a time, read by
threads and loops.

The engine's thread calls `deliver`, `fail_all`, and looks at `is_full`, `is_abandoned` and `neglected_s`;
readers call the rest. A queue holds no reference to its reader, so that the engine may keep it when the
reader has gone.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from innervoice.fields import Limits, Seconds, read_fields
from innervoice.types import AudioChunk, Done, Event

Waiters = list[asyncio.Future[None]]


@dataclass(frozen=True)
class Bounds:
    """Events, and seconds of sound, that may wait unread before the reply pauses.

    It goes on at half of that.
    """

    events: Annotated[float, Limits(1, is_finite=False)] = 1024
    audio_s: Seconds = 30.0

    def __post_init__(self) -> None:
        read_fields(self)


UNBOUNDED = Bounds(math.inf, math.inf)


class EventQueue:
    """The events of one reply.

    on_room is called, by a reader and with no lock held, when a full queue has room again. is_full: the
    reader is behind; more is accepted all the same, so no event is lost. is_abandoned: no reader is left.
    taken: the events that were read, in order.
    """

    def __init__(self, on_room: Callable[[], None] | None = None, bounds: Bounds | None = None) -> None:
        self.is_full = False
        self.is_abandoned = False
        self.taken: list[Event] = []
        self._on_room = on_room
        self._bounds = Bounds() if bounds is None else bounds
        self._ready = threading.Condition()
        self._unread: deque[Event] = deque()
        self._unread_s = 0.0
        self._waiters: Waiters = []
        self._failure: BaseException | None = None
        self._is_over = False
        self._num_seen_taken = 0
        self._full_since_s = math.inf

    @property
    def num_unread(self) -> int:
        """Events that wait."""
        return len(self._unread)

    @property
    def unread_s(self) -> float:
        """Seconds of sound that wait."""
        return self._unread_s

    @property
    def failure(self) -> BaseException | None:
        """The error with which the engine stopped."""
        return self._failure

    def drop_unread(self) -> None:
        """Forget the events that wait."""
        with self._ready:
            self._unread.clear()
            self._unread_s, self.is_full = 0.0, False

    def neglected_s(self, now: float) -> float:
        """Seconds for which the queue has been full without a read, from the first call that saw it so: call
        it once a step.
        """
        if not self.is_full or len(self.taken) != self._num_seen_taken:
            self._full_since_s = math.inf
        self._num_seen_taken = len(self.taken)
        if self.is_full:
            self._full_since_s = min(self._full_since_s, now)
        return max(0.0, now - self._full_since_s) if self.is_full else 0.0

    def set_bounds(self, bounds: Bounds) -> None:
        """Change the bounds from now on."""
        with self._ready:
            self._bounds = bounds
            made_room = self.is_full and not self._exceeds()
            self.is_full = self._exceeds()
        self._notify_room(made_room)

    def read(self) -> Event | None:
        """Wait for the next event; None after the last. Raises the error with which the engine stopped."""
        with self._ready:
            while not self._has_news():
                self._ready.wait()
            event, made_room = self._take()
        self._notify_room(made_room)
        return event

    async def aread(self) -> Event | None:
        """Like `read`, for a task; others run while it waits."""
        while True:
            with self._ready:
                if self._has_news():
                    event, made_room = self._take()
                    break
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if not waiter.done() or waiter.cancelled():
                    self._forget(waiter)
        self._notify_room(made_room)
        return event

    def _add(self, events: Sequence[Event]) -> Waiters:
        with self._ready:
            self._unread.extend(events)
            self._unread_s += sum(_audio_s(event) for event in events)
            self.is_full = self.is_full or self._exceeds()
            return self._wake()

    def _fail(self, error: BaseException) -> Waiters:
        with self._ready:
            self._failure = error
            return self._wake()

    def _wake(self) -> Waiters:
        """Wake the threads; the waiting futures are the caller's to wake. The lock is held."""
        self._ready.notify_all()
        waiters, self._waiters = self._waiters, []
        return waiters

    def _forget(self, waiter: asyncio.Future[None]) -> None:
        with self._ready, suppress(ValueError):
            self._waiters.remove(waiter)

    def _has_news(self) -> bool:
        return bool(self._unread) or self._is_over or self._failure is not None

    def _take(self) -> tuple[Event | None, bool]:
        """The next event, None at the end, and whether there is room again. The lock is held."""
        if self._unread:
            event = self._unread.popleft()
            self.taken.append(event)
            self._unread_s = self._unread_s - _audio_s(event) if self._unread else 0.0
            self._is_over |= isinstance(event, Done)
            made_room = self.is_full and self._is_half_empty()
            self.is_full = self.is_full and not made_room
            return event, made_room
        if self._failure is not None and not self._is_over:
            raise self._failure
        return None, False

    def _exceeds(self) -> bool:
        return len(self._unread) >= self._bounds.events or self._unread_s >= self._bounds.audio_s

    def _is_half_empty(self) -> bool:
        return len(self._unread) <= self._bounds.events / 2 and self._unread_s <= self._bounds.audio_s / 2

    def _notify_room(self, made_room: bool) -> None:
        if made_room and self._on_room is not None:
            self._on_room()


def deliver(batches: Iterable[tuple[EventQueue, Sequence[Event]]]) -> None:
    """Hand over the events of a step: one lock a reply, and one call into each event loop, whatever the
    number of its readers.
    """
    resume([waiter for queue, events in batches for waiter in queue._add(events)])


def fail_all(queues: Iterable[EventQueue], error: BaseException) -> None:
    """Let readers get the error once they have read the events that are there: no other will follow."""
    resume([waiter for queue in queues for waiter in queue._fail(error)])


def resume(waiters: Waiters) -> None:
    """Let tasks go on that wait for these futures: one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, Waiters] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_all, theirs)
        except RuntimeError:
            _let_go(theirs)


def _let_go(waiters: Waiters) -> None:
    """Cancel futures whose loop was closed: each and the task behind it hold each other, and the task holds
    its stream.
    """
    for waiter in waiters:
        with suppress(RuntimeError):
            waiter.cancel()


def _set_all(waiters: Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _audio_s(event: Event) -> float:
    return len(event.pcm) / event.rate if isinstance(event, AudioChunk) else 0.0
