"""A scripted core behind its worker, stepped by the test under a virtual clock, and readers who read, are
slow, or die.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from scripted_core import RATE, Received, World

from innervoice.runtime.core import Core
from innervoice.runtime.event_queue import EventQueue
from innervoice.runtime.stream import Stream
from innervoice.runtime.worker import Worker
from innervoice.schedule import Program
from innervoice.types import Done

T = TypeVar("T")


class _Stepped(Worker):
    """A worker without its thread: a call is carried out at once, after the calls that else wait for
    `Served.step`.
    """

    def call(self, ask: Callable[[Core], T]) -> T:
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        return ask(self._core)

    def _queue_call(self, call: Callable[[], None]) -> None:
        self.check_open()
        self._calls.append(call)


class Reader:
    """A reader that holds a stream.

    reads: everything that is there, whenever it is looked at. queue: the events that it would have got.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream: Stream | None = stream
        self.reads = True
        self.queue: EventQueue = stream.queue

    @property
    def is_dead(self) -> bool:
        """Whether the reader has lost its stream."""
        return self.stream is None

    def read(self, received: Received) -> None:
        """Take what waits."""
        while self.stream is not None and self.reads and self.queue.num_unread:
            received.take(next(self.stream))

    def die(self, how: str, received: Received) -> None:
        """Lose the stream: it is dropped, its thread breaks after an event, or its event
        loop is closed.
        """
        if how == "loop":
            self.reads = True
            self.read(received)  # so that it waits
        stream, self.stream = self.stream, None
        assert stream is not None, "dead already"
        if how == "thread":
            thread = threading.Thread(
                target=_break_after_one, args=(stream, self.queue.num_unread > 0, received)
            )
            del stream
            hook, threading.excepthook = threading.excepthook, lambda _: None
            thread.start()
            thread.join()
            threading.excepthook = hook
        elif how == "loop":
            loop = asyncio.new_event_loop()
            waits = loop.create_task(_wait_for_one(stream))
            loop.run_until_complete(asyncio.sleep(0))
            loop.set_exception_handler(lambda *_: None)
            loop.close()
            del stream, waits

    @property
    def ends(self) -> list[Done]:
        """Every last event that the reply ever had, read or not: one, once it is over."""
        return [event for event in (*self.queue.taken, *self.queue._unread) if isinstance(event, Done)]


class Served(World):
    """`received` is what each reader got. A worker pauses, cancels and ends replies by how they are read."""

    def __init__(self, *args: Any, reader_timeout_s: float | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.worker = _Stepped(self.core, lambda: self.now, reader_timeout_s=reader_timeout_s)
        self.readers: dict[str, Reader] = {}
        forward, speak = self.runner.forward, self.voice.step

        def timed_forward(rows: Sequence[Any], outputs: object = None) -> Any:
            self.now += self._step_s(len(rows), sum(row.num_new for row in rows))
            return forward(rows, outputs)

        def timed_step(keys: Any) -> Any:
            self.now += self._voice_s(len(keys))
            return speak(keys)

        self.runner.forward, self.voice.step = timed_forward, timed_step  # type: ignore[method-assign]

    def submit(
        self, reply_id: str, prompt: Sequence[int], schedule: Program, seed: int = 0, **request: Any
    ) -> None:
        made = self.request(reply_id, prompt, schedule, seed, **request)
        self.readers[reply_id] = Reader(self.worker.submit(made, int(RATE)).bounded(6, 2.0))
        self.requests[reply_id], self.received[reply_id] = made, Received()

    def drain(self) -> None:
        """Let every reader that reads take its events."""
        for name, reader in self.readers.items():
            reader.read(self.received[name])

    @property
    def has_work(self) -> bool:
        return self.core.has_work or bool(self.worker._calls)

    def step(self) -> bool:
        worker = self.worker
        if not self.has_work:
            self.now += 0.001
            return False
        worker._is_resting = False
        worker._run_calls()
        worker._check_readers()
        worker._step()
        self.drain()
        if worker._is_resting:
            self.now = min(max(self.core.wake_s, self.now + 0.001), self.now + 0.5)
        return not worker._is_resting


def _break_after_one(stream: Stream, has_news: bool, received: Received) -> None:
    if has_news:
        received.take(next(stream))
    raise RuntimeError("the reader broke")


async def _wait_for_one(stream: Stream) -> None:
    with suppress(StopAsyncIteration):  # it is over
        await anext(stream)
