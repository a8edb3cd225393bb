"""The reader's end of a reply: an iterator, sync or async, over the events that the engine's thread puts into
its queue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np

from innervoice.runtime.event_builder import collect_text
from innervoice.runtime.event_queue import UNBOUNDED, Bounds, EventQueue
from innervoice.runtime.fork_guard import ForkGuard, guarded, refuse_pickling
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.types import Audio, AudioChunk, Done, Event, Reply, RequestFailed


class Stream(Iterator[Event], AsyncIterator[Event]):
    """Events of one reply, the last of them Done.

    `for` and `async for` both read it; leaving its `with` block cancels it. A slow reader slows its own reply
    alone: see `bounded`. A stream without a reference left is abandoned, and its reply is cancelled.
    """

    def __init__(
        self,
        reply_id: str,
        rate: int,
        cancel: Callable[[], None],
        on_room: Callable[[], None] | None = None,
        check_caller: Callable[[], None] = lambda: None,
    ) -> None:
        self.reply_id = reply_id
        self.dropped_items: tuple[str, ...] = ()  # of its session's history, to make room for it
        self.queue = EventQueue(on_room)
        self.guard = ForkGuard()
        self.lease: object = None  # keeps the engine running while the stream is held
        self.make_record: Callable[[], dict[str, Any]] | None = None
        self.history: SessionSnapshot | None = None  # of its session, as the reply found it
        self._rate, self._cancel = rate, cancel
        self._check_caller = check_caller  # raises where a read would wait for itself

    def __iter__(self) -> Iterator[Event]:
        return self

    @guarded
    def __next__(self) -> Event:
        self._check_caller()
        event = self.queue.read()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    @guarded
    async def __anext__(self) -> Event:
        self._check_caller()
        event = await self.queue.aread()
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        # Nothing but a flag: this may run in any thread, whatever locks it holds.
        queue = getattr(self, "queue", None)
        if queue is not None:
            queue.is_abandoned = True

    @property
    def is_full(self) -> bool:
        """Whether so many events wait unread that the reply is paused."""
        return self.queue.is_full

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """The request, as an event log begins with, a turn's with the history before it; made when it is
        first asked for.
        """
        return None if self.make_record is None else self.make_record()

    @guarded
    def bounded(self, events: float = Bounds.events, audio_s: float = Bounds.audio_s) -> Stream:
        """Pause the reply while so many events, or seconds of sound, wait unread; math.inf: never.

        Returns the stream.

        Raises ValueError for less than one event, or no sound at all.
        """
        self.queue.set_bounds(Bounds(events, audio_s))
        return self

    @guarded
    def cancel(self) -> None:
        """Stop the reply, from any thread, any number of times; Done with reason "cancelled" still comes."""
        self._cancel()

    @guarded
    def reply(self) -> Reply:
        """Block until the end.

        Events that were read before are in it too. Raises RequestFailed, EngineDead.
        """
        self.queue.set_bounds(UNBOUNDED)
        for _ in self:
            pass
        return self._whole()

    @guarded
    async def areply(self) -> Reply:
        """Wait for the end. Raises RequestFailed, EngineDead."""
        self.queue.set_bounds(UNBOUNDED)
        async for _ in self:
            pass
        return self._whole()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.guard.is_at_home:
            self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.guard.is_at_home:
            self.cancel()

    __reduce__ = refuse_pickling

    def _whole(self) -> Reply:
        events = list(self.queue.taken)
        done = events[-1]
        assert isinstance(done, Done), "a reply ends in Done"
        if done.finish_reason == "error":
            raise self.queue.failure or RequestFailed(done.error)
        transcript, reflections = collect_text(events)
        chunks = [event.pcm for event in events if isinstance(event, AudioChunk)]
        samples: Any = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
        return Reply(
            Audio(samples, self._rate), transcript, reflections, events, done.finish_reason, done.usage
        )
