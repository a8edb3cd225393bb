"""The reader's end of a reply: an iterator, sync or async, over events that another thread puts in."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from innervoice.errors import RequestFailed
from innervoice.reply_log import collect_text
from innervoice.types import Audio, AudioChunk, Done, Event, Reply


class Stream(Iterator[Event], AsyncIterator[Event]):
    """Events of one reply, the last of them Done. `for` and `async for` both read it; leaving its `with` block cancels it."""

    def __init__(self, reply_id: str, rate: int, cancel: Callable[[], None]) -> None:
        self.reply_id = reply_id
        self._rate, self._cancel = rate, cancel
        self._unread: deque[Event] = deque()
        self._events: list[Event] = []
        self._ready = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._failure: BaseException | None = None
        self._is_over = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._ready:
            while not self._has_news():
                self._ready.wait()
            event = self._take()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        while True:
            with self._ready:
                if self._has_news():
                    event = self._take()
                    break
                self._waiters.append(waiter)
            await waiter[1].wait()
            waiter[1].clear()
        if event is None:
            raise StopAsyncIteration
        return event

    def cancel(self) -> None:
        """Stop the reply, from any thread, any number of times; Done with reason "cancelled" still comes."""
        self._cancel()

    def reply(self) -> Reply:
        """Block until the end. Events that were read before are in it too. Raises RequestFailed, EngineDead."""
        for _ in self:
            pass
        return self._whole()

    async def areply(self) -> Reply:
        """Wait for the end. Raises RequestFailed, EngineDead."""
        async for _ in self:
            pass
        return self._whole()

    def put(self, event: Event) -> None:
        """For the engine: add an event."""

        def change() -> None:
            self._unread.append(event)
            self._events.append(event)

        self._change(change)

    def fail(self, error: BaseException) -> None:
        """For the engine: no event will follow; readers get the error."""

        def change() -> None:
            self._failure = error

        self._change(change)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def _change(self, change: Callable[[], None]) -> None:
        with self._ready:
            change()
            self._ready.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, event in waiters:
            with suppress(RuntimeError):  # the reader's loop was closed
                loop.call_soon_threadsafe(event.set)

    def _has_news(self) -> bool:
        return bool(self._unread) or self._is_over or self._failure is not None

    def _take(self) -> Event | None:
        """The next event, None at the end. The lock is held."""
        if self._unread:
            event = self._unread.popleft()
            self._is_over |= isinstance(event, Done)
            return event
        if self._failure is not None and not self._is_over:
            raise self._failure
        return None

    def _whole(self) -> Reply:
        done = self._events[-1]
        assert isinstance(done, Done), "a reply ends in Done"
        if done.finish_reason == "error":
            raise RequestFailed(done.error)
        transcript, reflections = collect_text(self._events)
        chunks = [event.pcm for event in self._events if isinstance(event, AudioChunk)]
        samples: Any = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
        return Reply(Audio(samples, self._rate), transcript, reflections, list(self._events), done.finish_reason, done.usage)
