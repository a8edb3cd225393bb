"""The thread that steps the core, and the calls that other threads make into it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from innervoice.runtime.core import Core
from innervoice.runtime.event_queue import EventQueue, deliver, fail_all
from innervoice.runtime.request import Request, attach_feeds, end_feeds
from innervoice.runtime.sessions import Sessions
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.runtime.stoppable_thread import StoppableThread
from innervoice.runtime.stream import Stream
from innervoice.telemetry.stats import Telemetry
from innervoice.types import Done, EngineDead, Event, Heard, OutOfCapacity

log = logging.getLogger("innervoice")
T = TypeVar("T")

_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.001, 0.05  # while replies run and none can go on


class Worker:
    """Steps a core whenever it has work. Every method may be called from any thread.

    A reply whose reader is behind pauses; after reader_timeout_s of that it ends with an error. One whose
    reader is gone is cancelled. begin: called by the thread before its first step.
    """

    def __init__(
        self,
        core: Core,
        clock: Callable[[], float] = time.monotonic,
        *,
        reader_timeout_s: float | None = None,
        telemetry: Telemetry | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self.clock = clock
        self._begin_thread = begin
        self.telemetry = telemetry or Telemetry()
        self._reader_timeout_s = math.inf if reader_timeout_s is None else reader_timeout_s
        self._core = core
        self._changed = threading.Condition()
        self._calls: list[Callable[[], None]] = []  # for the thread, before its next step
        self._answers: set[Future[Any]] = set()
        self._queues: dict[str, EventQueue] = {}  # by reply
        self._encoding: dict[str, bool] = {}  # replies whose prompt is still encoded -> are they cancelled?
        self._forgotten: deque[tuple[str, Callable[[], None]]] = deque()  # sessions that nobody refers to
        self._unclosed: list[tuple[str, Callable[[], None]]] = []  # those of them that still reply
        self._num_coming = 0  # single replies whose submission is not carried out yet
        self._is_closing = False
        self._is_resting = False  # the last step found nothing to do
        self._death: BaseException | None = None
        self._thread: StoppableThread | None = None
        self.find_lease: Callable[[], object] = lambda: None  # what streams hold to keep the engine running

    def call(self, ask: Callable[[Core], T]) -> T:
        """Run `ask` between two steps -> its result, or its error.

        A caller that is interrupted while it waits takes a call back that has not begun. Raises EngineDead,
        ValueError on a closed engine, and RuntimeError on the core's own thread.
        """
        self.check_caller()
        answer: Future[T] = Future()

        def call() -> None:
            self._answers.discard(answer)
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(ask(self._core))
            except BaseException as error:
                answer.set_exception(error)

        with self._changed:
            self._queue_call(call)
            self._answers.add(answer)
        try:
            return answer.result()
        finally:
            answer.cancel()

    def call_sessions(self, ask: Callable[[Sessions], T]) -> T:
        """The same, with the sessions of the core."""
        return self.call(lambda core: ask(core.sessions))

    def submit(self, request: Request, rate: int) -> Stream:
        """Start a reply, with audio of `rate` Hz.

        A session's turn waits for the step in progress, a single reply does not.

        Raises ValueError for a turn that its session does not take and on a closed engine, OutOfCapacity,
        EngineDead, and RuntimeError on the core's own thread.
        """
        self.check_caller()
        stream = self._stream(request.reply_id, rate)
        attach_feeds(request, self._wake)
        try:
            if request.session_id is None:
                with self._changed:
                    self.check_open()
                    self._core.check_room(self._num_coming)
                    self._queue_call(lambda: self._begin(request))
                    self._num_coming += 1
                    self._queues[request.reply_id] = stream.queue
            else:
                queue = stream.queue
                stream.history = self.call(lambda core: self._begin_turn(request, queue))
        except BaseException as error:
            end_feeds(request)
            self.telemetry.count("refused", int(isinstance(error, OutOfCapacity)))
            raise
        stream.lease = self.find_lease()
        return stream

    def _stream(self, reply_id: str, rate: int) -> Stream:
        """The reader's end of a reply."""
        return Stream(reply_id, rate, lambda: self.cancel(reply_id), self._wake, self.check_caller)

    def submit_later(self, reply_id: str, rate: int, encode: Callable[[], Request]) -> Stream:
        """Start a reply whose prompt takes long to encode: `encode` runs on a thread of its own.

        What it raises, and what `submit` raises of its request, the readers of the stream get.

        Raises ValueError on a closed engine, EngineDead.
        """
        stream = self._stream(reply_id, rate)
        with self._changed:
            self.check_open()
            self._encoding[reply_id] = False
        stream.lease = self.find_lease()
        run = partial(self._encode, stream.queue, reply_id, encode)
        try:
            StoppableThread(run, self.stop, "innervoice-encoder").start()
        except BaseException:
            with self._changed:
                del self._encoding[reply_id]
            raise
        return stream

    def _encode(self, queue: EventQueue, reply_id: str, encode: Callable[[], Request]) -> None:
        """Encode the prompt of a reply and submit it, with the queue of its stream."""
        try:
            request = encode()
            attach_feeds(request, self._wake)
            with self._changed:
                self.check_open()
                self._core.check_room(self._num_coming)
                is_cancelled = self._encoding.pop(reply_id)
                self._queue_call(lambda: self._begin(request))
                self._num_coming += 1
                self._queues[reply_id] = queue
                if is_cancelled:
                    self._queue_call(lambda: self._core.cancel(reply_id))
        except BaseException as error:
            with self._changed:
                self._encoding.pop(reply_id, None)
            self.telemetry.count("refused", int(isinstance(error, OutOfCapacity)))
            fail_all([queue], error)

    def _begin(self, request: Request) -> None:
        """Submit a single reply, on the core's thread.

        A refusal that could not be foreseen ends the reply with an error.
        """
        with self._changed:
            self._num_coming -= 1
        try:
            self._core.submit(request, self.clock())
        except Exception as error:
            self._core.refuse(request, str(error))

    def _begin_turn(self, request: Request, queue: EventQueue) -> SessionSnapshot | None:
        """Submit a session's turn, on the core's thread -> the history that it finds.

        The queue is there before the reply and as long as it, whatever becomes of the caller.
        """
        with self._changed:
            if self._is_closing:
                self.check_open()
            self._queues[request.reply_id] = queue
        try:
            return self._core.submit(request, self.clock())
        except BaseException:
            with self._changed:
                del self._queues[request.reply_id]
                self._changed.notify_all()
            raise

    def interrupt(self, ask: Callable[[Sessions], Heard]) -> Heard:
        """Like `call_sessions`; streams that it ends drop their unread events, and have their last one when
        it returns.
        """

        def interrupt(core: Core) -> Heard:
            self._deliver()
            heard = ask(core.sessions)
            self._deliver(drop_unread=True)
            return heard

        return self.call(interrupt)

    def cancel(self, reply_id: str) -> None:
        """End a reply; one that is over already is left alone."""
        with self._changed:
            if reply_id in self._encoding:
                self._encoding[reply_id] = True
            elif reply_id in self._queues and self._death is None:
                self._calls.append(lambda: self._core.cancel(reply_id))
                self._changed.notify_all()

    def close_session(self, session_id: str) -> None:
        """Close a session; one that is closed already, or a dead engine, is left alone.

        On the core's own thread it is closed before the next step.
        """

        def close(core: Core) -> None:
            with suppress(ValueError):
                core.sessions.close(session_id)

        with suppress(ValueError, EngineDead):
            if not self._is_own_thread:
                self.call(close)
                return
            with self._changed:
                self._queue_call(lambda: close(self._core))

    def forget(self, session_id: str, release: Callable[[], None]) -> None:
        """Close a session that nothing refers to, and call `release`, once its reply is over.

        Garbage collection calls it, on any thread and with any locks held, so it waits for none.
        """
        self._forgotten.append((session_id, release))
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    def check_caller(self) -> None:
        """Raise RuntimeError on the core's own thread, which would wait for itself."""
        if self._is_own_thread:
            raise RuntimeError(
                "the engine's own thread, which computes event fields and runs policies, would wait for itself: "
                "call the engine from another thread"
            )

    @property
    def _is_own_thread(self) -> bool:
        return self._thread is not None and self._thread.is_current

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped on a failure."""
        if self._death is not None:
            raise EngineDead(f"the engine stopped: {self._death}") from self._death

    def close(self, drain_s: float) -> None:
        """Take no more requests, give those in progress drain_s seconds, cancel the rest, and stop."""
        with self._changed:
            self._is_closing = True
            if drain_s > 0 and not self._is_own_thread:
                self._changed.wait_for(
                    lambda: not self._queues or self._death is not None,
                    timeout=min(drain_s, threading.TIMEOUT_MAX),
                )
        self.stop()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            if self._thread is None or self._thread.is_over:
                self._free()

    def stop(self) -> None:
        """Take no more requests and cancel those in progress; the thread ends after that."""
        with self._changed:
            self._is_closing = True
            self._calls += [partial(self._core.cancel, reply_id) for reply_id in self._queues]
            self._changed.notify_all()

    def check_open(self) -> None:
        """Raise EngineDead, or ValueError when it is closed."""
        self.check_health()
        if self._is_closing:
            raise ValueError("the engine is closed: make a new one with Engine.from_pretrained")

    def _queue_call(self, call: Callable[[], None]) -> None:
        """Queue a call for the core's thread. The lock is held."""
        self.check_open()
        if self._thread is None:
            thread = StoppableThread(self._run, self.stop, "innervoice-core")
            thread.start()
            self._thread = thread
        self._calls.append(call)
        self._changed.notify_all()

    def _free(self) -> None:
        """Drop the core, with the weights and the cache: nothing reaches it after the end. The lock is held."""
        self._calls.clear()
        if hasattr(self, "_core"):
            del self._core

    def _run(self) -> None:
        try:
            if self._begin_thread is not None:
                self._begin_thread()
            while self._wait_for_work():
                self._run_calls()
                self._check_readers()
                self._close_forgotten()
                self._step()
        except BaseException as error:
            self._die(error)
        finally:
            with self._changed:
                if self._is_closing:
                    self._free()

    def _step(self) -> None:
        """A step of tokens and one of sound, with calls between the two.

        The scheduler learns what each took, with the handing over of its events.
        """
        core, costs = self._core, self._core.costs

        # Tokens. A device step took its own time, any other as long as the call.
        begin = self.clock()
        tokens = core.step_tokens(begin)
        did_step = bool(tokens.rows or tokens.prompt_tokens)
        if did_step:
            self.telemetry.step(self.clock() - begin if tokens.step_s is None else tokens.step_s, tokens.rows)
        self._deliver()
        if did_step:
            step_s = self.clock() - begin if tokens.step_s is None else tokens.step_s
            costs.observe_step(tokens.rows, tokens.prompt_tokens, step_s)

        # Sound, which may take long on a CPU: calls need not wait for it too.
        had_calls = self._run_calls()
        end = self.clock()
        sound = core.step_speech(end)
        if sound.chunks:
            self.telemetry.codec(self.clock() - end if sound.step_s is None else sound.step_s)
        self._deliver()
        if sound.chunks:
            costs.observe_voice(sound.chunks, self.clock() - end if sound.step_s is None else sound.step_s)

        # Counts.
        self._is_resting = tokens.is_nothing and sound.is_nothing and not had_calls
        self.telemetry.occupy(core.occupancy())
        for name, number in core.incidents().items():
            self.telemetry.count(name, number)

    def _die(self, error: BaseException) -> None:
        log.debug("the engine stopped", exc_info=error)  # readers get the error itself
        with self._changed:
            self._death = error
            queues, self._queues = self._queues, {}
            answers, self._answers = self._answers, set()
            self._changed.notify_all()
        failure = EngineDead(f"the engine stopped: {error}")
        failure.__cause__ = error
        last = self._last_events(str(failure))
        deliver([(queue, [last[reply_id]]) for reply_id, queue in queues.items() if reply_id in last])
        fail_all(queues.values(), failure)
        for answer in answers:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(failure)

    def _last_events(self, error: str) -> dict[str, Done]:
        """The last event of every reply, as far as the broken core can still make it."""
        with suppress(Exception):
            events = self._core.last_events(self.clock(), error)
            return {event.reply_id: event for event in events if isinstance(event, Done)}
        return {}

    def _wait_for_work(self) -> bool:
        """Wait for work; False: closed, with none left."""
        with self._changed:
            while not (self._calls or self._forgotten) and (not self._core.has_work or self._is_resting):
                if self._is_closing and not self._core.has_work:
                    return False
                self._is_resting = False
                self._changed.wait(self._nap_s() if self._core.has_work else None)
            return True

    def _run_calls(self) -> bool:
        """Run the calls that are queued -> whether there were any. A reply that one of them ends has its last
        event now, not after the next step.
        """
        with self._changed:
            calls, self._calls = self._calls, []
        for call in calls:
            call()
        if calls:
            self._deliver()
        return bool(calls)

    def _close_forgotten(self) -> None:
        """Close the sessions that nothing refers to, but for those that still reply."""
        while self._forgotten:
            self._unclosed.append(self._forgotten.popleft())
        sessions = self._core.sessions
        for one in [one for one in self._unclosed if not sessions.is_busy(one[0])]:
            session_id, release = one
            self._unclosed.remove(one)
            release()
            with suppress(ValueError):
                sessions.close(session_id)

    def _wake(self) -> None:
        with self._changed:
            self._is_resting = False
            self._changed.notify_all()

    def _check_readers(self) -> None:
        """Pause the replies whose readers are behind, end those whose readers are gone."""
        now, core = self.clock(), self._core
        # Copied at once: while pairs are listed one by one, the collector may run, and callers add replies meanwhile.
        for reply_id, queue in self._queues.copy().items():
            if queue.is_abandoned:
                self.telemetry.count("abandoned")
                core.cancel(reply_id)
            elif queue.neglected_s(now) > self._reader_timeout_s:
                error = f"this reply was not read for {self._reader_timeout_s:g} s, with its queue full"
                core.cancel(reply_id, "error", error)
            else:
                core.set_blocked(reply_id, queue.is_full)

    def _nap_s(self) -> float:
        return min(max(self._core.wake_s - self.clock(), _SHORTEST_NAP_S), _LONGEST_NAP_S)

    def _deliver(self, *, drop_unread: bool = False) -> None:
        """Hand over the events that are ready: one lock a reply, one call an event loop."""
        batches: dict[str, list[Event]] = {}
        now = self.clock()
        events = self._core.drain(now)
        self.telemetry.events(events, now)
        for event in events:
            batches.setdefault(event.reply_id, []).append(event)
        if not batches:
            return
        over = [reply_id for reply_id, events in batches.items() if isinstance(events[-1], Done)]
        for reply_id in over if drop_unread else ():
            self._queues[reply_id].drop_unread()
            batches[reply_id] = batches[reply_id][-1:]
        deliver([(self._queues[reply_id], events) for reply_id, events in batches.items()])
        if over:
            with self._changed:
                for reply_id in over:
                    del self._queues[reply_id]
                self._changed.notify_all()
