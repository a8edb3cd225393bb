"""Session: a conversation that keeps its pages, with its calls for event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Self, TypeVar

from innervoice.api.session_calls import AskedReply, SessionCalls
from innervoice.runtime.conversation import Edit, Item, Message
from innervoice.runtime.fork_guard import all_guarded
from innervoice.runtime.interrupt import Behind, Cut
from innervoice.runtime.stoppable_thread import enough_stack
from innervoice.runtime.stream import Stream
from innervoice.types import Heard, Prompt

T = TypeVar("T")


class Lane:
    """Runs calls one after another, in the order in which they came, on threads that others use as well."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_running = False

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call behind those that came before -> its result, or its error.

        A call that has not begun when the task is cancelled is left out.
        """
        made: Future[T] = Future()
        with self._lock:
            self._calls.append((made, call))
            is_first, self._is_running = not self._is_running, True
        if is_first:
            self._begin()
        return await asyncio.wrap_future(made)

    def _begin(self) -> None:
        try:
            with enough_stack():
                self._threads.submit(self._drain)
        except RuntimeError:  # the engine is closed: its calls return at once
            self._drain()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._is_running = False
                    return
                made, call = self._calls.popleft()
            if not made.set_running_or_notify_cancel():
                continue
            try:
                made.set_result(call())
            except BaseException as error:
                made.set_exception(error)


@all_guarded
class Session(SessionCalls):
    """Turns that share one history. Made by `Engine.open_session`.

    Thread-safe; one reply at a time; a context manager. `push_audio`, `commit_audio`, `clear_audio`, `append`
    of typed messages and `inject` never wait for the engine, so an event loop may call them. Each of the other
    calls has a coroutine of its name with an `a` before it, which does the same and raises the same. Coroutines
    run on threads of the engine's, in the order in which they were called; `areply` waits for committed audio
    to be encoded without holding up those behind it.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._lane = Lane(self._threads)

    async def areply(self, prompt: Prompt | list[Message] | None = None, **request: Any) -> Stream:
        """Do the same as `reply`; the stream is read with `async for`."""
        asked: AskedReply = await self._lane.run(partial(self._ask, prompt, request))
        for audio in self._pending.audio_of(asked.pending):
            done, _ = await asyncio.wait([asyncio.wrap_future(audio.done)])
            for one in done:
                one.exception()  # `_answer` raises it
        return await self._lane.run(partial(self._answer, asked))

    async def ainterrupt(
        self,
        played_ms: float | None = None,
        *,
        cut: Cut = "speech",
        reflection: Behind = "drop",
        reply_id: str | None = None,
    ) -> Heard:
        """Do the same as `interrupt`."""
        return await self._lane.run(
            partial(self.interrupt, played_ms, cut=cut, reflection=reflection, reply_id=reply_id)
        )

    async def aedit(self, *edits: Edit) -> None:
        """Do the same as `edit`."""
        await self._lane.run(partial(self.edit, *edits))

    async def aappend(self, messages: Message | list[Message]) -> list[str]:
        """Do the same as `append`, for messages with recordings, which take time to encode."""
        return await self._lane.run(partial(self.append, messages))

    async def aitems(self) -> list[Item]:
        """Do the same as `items`."""
        return await self._lane.run(self.items)

    async def aheard(self) -> Heard:
        """Do the same as `heard`."""
        return await self._lane.run(self.heard)

    async def aack_playback(self, played_ms: float, *, reply_id: str | None = None) -> None:
        """Do the same as `ack_playback`."""
        await self._lane.run(partial(self.ack_playback, played_ms, reply_id=reply_id))

    async def afork(self) -> Self:
        """Do the same as `fork`."""
        return await self._lane.run(self.fork)

    async def aexport(self) -> bytes:
        """Do the same as `export`."""
        return await self._lane.run(self.export)

    async def aclose(self) -> None:
        """Do the same as `close`."""
        await self._lane.run(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self.guard.is_at_home:
            await self.aclose()
