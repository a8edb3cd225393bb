"""Where a reply's events wait for their reader: bounded, filled a whole step at a time, read by threads and event loops.

The engine's thread calls `deliver`, `fail_all`, and looks at `is_full`, `is_abandoned` and `neglected_s`; readers call the
rest. An outlet does not know its reader, so that the engine may keep it when the reader has gone.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from innervoice.types import AudioChunk, Done, Event

Waiters = list[asyncio.Future[None]]


@dataclass(frozen=True)
class Bounds:
    """What may wait unread before the reply is to pause: events, and seconds of sound. It goes on once half is read."""

    events: float = 1024
    audio_s: float = 30.0

    def __post_init__(self) -> None:
        if not (self.events >= 1 and self.audio_s > 0):
            raise ValueError(
                f"bounds are {self.events} events and {self.audio_s} s: they must be 1 or more, and above 0"
            )


UNBOUNDED = Bounds(math.inf, math.inf)


class EventQueue:
    """The events of one reply. on_room is called, by a reader and with no lock held, when a full outlet has room again.

    is_full: the reader is behind; more is accepted all the same, so nothing is lost. is_abandoned: nobody will read any more.
    taken: what was read, in order.
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
        """What the engine failed with."""
        return self._failure

    def drop_unread(self) -> None:
        """Forget what the reader has not taken yet."""
        with self._ready:
            self._unread.clear()
            self._unread_s, self.is_full = 0.0, False

    def neglected_s(self, now: float) -> float:
        """For how long this has been full and nothing was taken, as far as was asked: ask once a step, or now and then."""
        if not self.is_full or len(self.taken) != self._num_seen_taken:
            self._full_since_s = math.inf
        self._num_seen_taken = len(self.taken)
        if self.is_full:
            self._full_since_s = min(self._full_since_s, now)
        return max(0.0, now - self._full_since_s) if self.is_full else 0.0

    def set_bounds(self, bounds: Bounds) -> None:
        """Change what may wait, from now on."""
        with self._ready:
            self._bounds = bounds
            made_room = self.is_full and not self._exceeds()
            self.is_full = self._exceeds()
        self._tell_room(made_room)

    def read(self) -> Event | None:
        """The next event, waited for; None after the last. Raises what the engine failed with."""
        with self._ready:
            while not self._has_news():
                self._ready.wait()
            event, made_room = self._take()
        self._tell_room(made_room)
        return event

    async def aread(self) -> Event | None:
        """The same for a task; others run while it waits."""
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
        self._tell_room(made_room)
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

    def _tell_room(self, made_room: bool) -> None:
        if made_room and self._on_room is not None:
            self._on_room()


def deliver(batches: Iterable[tuple[EventQueue, Sequence[Event]]]) -> None:
    """Hand over what a step made: one lock a reply, and one call into each event loop, whatever the number of its readers."""
    _resume([waiter for outlet, events in batches for waiter in outlet._add(events)])


def fail_all(outlets: Iterable[EventQueue], error: BaseException) -> None:
    """No event will follow in any of them: readers get the error once they have read what is there."""
    _resume([waiter for outlet in outlets for waiter in outlet._fail(error)])


def _resume(waiters: Waiters) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, Waiters] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_all, theirs)
        except RuntimeError:
            _let_go(theirs)


def _let_go(waiters: Waiters) -> None:
    """Their loop was closed while they waited: each future and the task behind it hold each other, and the task its stream."""
    for waiter in waiters:
        with suppress(RuntimeError):
            waiter.cancel()


def _set_all(waiters: Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _audio_s(event: Event) -> float:
    return len(event.pcm) / event.rate if isinstance(event, AudioChunk) else 0.0
