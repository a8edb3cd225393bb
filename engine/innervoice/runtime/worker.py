"""The thread that steps the core, and what others may ask of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from innervoice.runtime.core import Core
from innervoice.runtime.event_queue import EventQueue, deliver, fail_all
from innervoice.runtime.request import Request
from innervoice.runtime.stream import Stream
from innervoice.telemetry.stats import Telemetry
from innervoice.types import Done, EngineDead, Event, Heard, OutOfCapacity

log = logging.getLogger("innervoice")
T = TypeVar("T")

_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.001, 0.05  # while replies run and none can go on


class Worker:
    """Steps a core whenever it has work. Every method may be called from any thread.

    A reply whose reader is behind pauses; after reader_timeout_s of that it ends with an error. One whose reader is gone is
    cancelled. begin: what the thread does first.
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
        self._orders: list[Callable[[], None]] = []
        self._answers: set[Future[Any]] = set()
        self._outlets: dict[str, EventQueue] = {}
        self._num_coming = 0  # single replies whose submission is not carried out yet
        self._is_closing = False
        self._is_resting = False  # the last step found nothing to do
        self._death: BaseException | None = None
        self._thread: threading.Thread | None = None

    def call(self, ask: Callable[[Core], T]) -> T:
        """Run `ask` between two steps and return, or raise, what it does. Raises EngineDead, or ValueError on a closed engine."""
        answer: Future[T] = Future()

        def order() -> None:
            self._answers.discard(answer)
            try:
                answer.set_result(ask(self._core))
            except Exception as error:
                answer.set_exception(error)

        with self._changed:
            self._order(order)
            self._answers.add(answer)
        return answer.result()

    def submit(self, request: Request, rate: int) -> Stream:
        """Start a reply, whose audio has that rate. A turn of a dialogue waits for the step that runs, a single reply does not.

        Raises what `Core.submit` does, EngineDead, ValueError on a closed engine.
        """
        reply_id = request.reply_id
        stream = Stream(reply_id, rate, lambda: self.cancel(reply_id), self._wake)
        try:
            with self._changed:
                self._check_open()
                if request.session_id is None:
                    self._core.replies.check_room(self._num_coming)
                    self._num_coming += 1
                    self._order(lambda: self._begin(request))
                self._outlets[reply_id] = stream.outlet
            if request.session_id is not None:
                stream.history = self.call(lambda core: core.submit(request, self.clock()))
        except BaseException as error:
            with self._changed:
                self._outlets.pop(reply_id, None)
                self._changed.notify_all()
            if isinstance(error, OutOfCapacity):
                self.telemetry.count("refused")
            raise
        return stream

    def _begin(self, request: Request) -> None:
        """On the core's thread. What could not be foreseen when it was submitted ends the reply with an error."""
        with self._changed:
            self._num_coming -= 1
        try:
            self._core.submit(request, self.clock())
        except Exception as error:
            self._core.replies.refuse(request, str(error))

    def interrupt(self, ask: Callable[[Core], Heard]) -> Heard:
        """Like `call`; the streams that it ends drop what was not read, and have their last event when it returns."""

        def order(core: Core) -> Heard:
            self._deliver()
            heard = ask(core)
            self._deliver(drop_unread=True)
            return heard

        return self.call(order)

    def cancel(self, reply_id: str) -> None:
        """End a reply; one that is over already is left alone."""
        with self._changed:
            if reply_id in self._outlets and self._death is None:
                self._orders.append(lambda: self._core.cancel(reply_id))
                self._changed.notify_all()

    def close_session(self, session_id: str) -> None:
        """End a dialogue; one that is gone already, or an engine that is, is left alone."""
        with suppress(ValueError, EngineDead):
            self.call(lambda core: core.dialogues.close(session_id))

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped on a failure."""
        if self._death is not None:
            raise EngineDead(f"the engine stopped: {self._death}") from self._death

    def close(self, drain_s: float) -> None:
        """Take no more requests, give those that run drain_s seconds, cancel the rest, and stop."""
        with self._changed:
            self._is_closing = True
            if drain_s > 0:
                self._changed.wait_for(lambda: not self._outlets or self._death is not None, timeout=drain_s)
            self._orders += [lambda key=reply_id: self._core.cancel(key) for reply_id in self._outlets]  # type: ignore[misc]
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _check_open(self) -> None:
        self.check_health()
        if self._is_closing:
            raise ValueError("the engine is closed: make a new one with Engine.from_pretrained")

    def _order(self, order: Callable[[], None]) -> None:
        """Queue work for the core's thread. The lock is held."""
        self._check_open()
        self._orders.append(order)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="innervoice-core", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            if self._begin_thread is not None:
                self._begin_thread()
            while self._take_orders():
                self._step()
        except BaseException as error:
            self._die(error)

    def _step(self) -> None:
        """A step of tokens and one of sound, each told to the scheduler with what it took, the handing over of events with it."""
        core, costs = self._core, self._core.costs
        begin = self.clock()
        tokens = core.step_tokens(begin)
        did_step = bool(tokens.rows or tokens.prompt_tokens)
        if did_step:
            self.telemetry.step(self.clock() - begin if tokens.step_s is None else tokens.step_s, tokens.rows)
        self._deliver()
        end = self.clock()
        if did_step:
            costs.observe_step(
                tokens.rows, tokens.prompt_tokens, end - begin if tokens.step_s is None else tokens.step_s
            )
        sound = core.step_voice(end)
        if sound.chunks:
            self.telemetry.codec(self.clock() - end)
        self._deliver()
        if sound.chunks:
            costs.observe_voice(sound.chunks, self.clock() - end)
        self._is_resting = tokens.is_nothing and sound.is_nothing
        self.telemetry.occupy(core.occupancy())
        for what, number in core.incidents().items():
            self.telemetry.count(what, number)

    def _die(self, error: BaseException) -> None:
        log.debug("the engine stopped", exc_info=error)  # readers get the error itself
        with self._changed:
            self._death = error
            outlets, self._outlets = self._outlets, {}
            answers, self._answers = self._answers, set()
            self._changed.notify_all()
        failure = EngineDead(f"the engine stopped: {error}")
        failure.__cause__ = error
        last = self._last_words(str(failure))
        deliver([(outlet, [last[reply_id]]) for reply_id, outlet in outlets.items() if reply_id in last])
        fail_all(outlets.values(), failure)
        for answer in answers:
            answer.set_exception(failure)

    def _last_words(self, error: str) -> dict[str, Done]:
        """The last event of every reply, as far as the broken core can still tell."""
        with suppress(Exception):
            events = self._core.replies.last_words(self.clock(), error)
            return {event.reply_id: event for event in events if isinstance(event, Done)}
        return {}

    def _take_orders(self) -> bool:
        """Wait for something to do and carry out what was asked; False: closed, with nothing left."""
        with self._changed:
            while not self._orders and (not self._core.has_work or self._is_resting):
                if self._is_closing and not self._core.has_work:
                    return False
                self._is_resting = False
                self._changed.wait(self._nap_s() if self._core.has_work else None)
            orders, self._orders = self._orders, []
        for order in orders:
            order()
        self._look_at_readers()
        return True

    def _wake(self) -> None:
        with self._changed:
            self._is_resting = False
            self._changed.notify_all()

    def _look_at_readers(self) -> None:
        """Pause the replies whose readers are behind, end those whose readers are gone."""
        now, replies = self.clock(), self._core.replies
        for reply_id, outlet in list(self._outlets.items()):
            if outlet.is_abandoned:
                self.telemetry.count("abandoned")
                replies.cancel(reply_id)
            elif outlet.neglected_s(now) > self._reader_timeout_s:
                replies.cancel(
                    reply_id,
                    "error",
                    f"nobody read this reply for {self._reader_timeout_s:g} s, with its queue full",
                )
            else:
                replies.set_blocked(reply_id, outlet.is_full)

    def _nap_s(self) -> float:
        return min(max(self._core.wake_s - self.clock(), _SHORTEST_NAP_S), _LONGEST_NAP_S)

    def _deliver(self, *, drop_unread: bool = False) -> None:
        """Hand over what was made: one lock a reply, one call an event loop."""
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
            self._outlets[reply_id].drop_unread()
            batches[reply_id] = batches[reply_id][-1:]
        deliver([(self._outlets[reply_id], events) for reply_id, events in batches.items()])
        if over:
            with self._changed:
                for reply_id in over:
                    del self._outlets[reply_id]
                self._changed.notify_all()
