"""The thread that steps the core, and what others may ask of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from innervoice.core import Core, Request
from innervoice.errors import EngineDead
from innervoice.stream import Stream
from innervoice.types import Done

log = logging.getLogger("innervoice")


class Worker:
    """Steps a core whenever it has work. Every method may be called from any thread."""

    def __init__(self, core: Core, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._core = core
        self._changed = threading.Condition()
        self._orders: list[Callable[[], None]] = []
        self._streams: dict[str, Stream] = {}
        self._is_closing = False
        self._death: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, request: Request, stream: Stream) -> None:
        """Start a reply whose events go to the stream. Raises EngineDead, or RuntimeError on a closed engine."""
        with self._changed:
            self.check_health()
            if self._is_closing:
                raise RuntimeError("the engine is closed: make a new one with Engine.from_pretrained")
            self._streams[request.reply_id] = stream
            self._orders.append(lambda: self._core.submit(request))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="innervoice-core", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, reply_id: str) -> None:
        """End a reply; one that is over already is left alone."""
        with self._changed:
            if reply_id in self._streams:
                self._orders.append(lambda: self._core.cancel(reply_id))
                self._changed.notify_all()

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped on a failure."""
        if self._death is not None:
            raise EngineDead(f"the engine stopped: {self._death}") from self._death

    def close(self, drain_s: float) -> None:
        """Take no more requests, give those that run drain_s seconds, cancel the rest, and stop."""
        with self._changed:
            self._is_closing = True
            if drain_s > 0:
                self._changed.wait_for(lambda: not self._streams, timeout=drain_s)
            for reply_id in list(self._streams):
                self._orders.append(lambda key=reply_id: self._core.cancel(key))  # type: ignore[misc]
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._core.step_tokens(self.clock())
                self._deliver()
                self._core.step_voice()
                self._deliver()
        except BaseException as error:
            log.debug("the engine stopped", exc_info=error)  # readers get the error itself
            with self._changed:
                self._death = error
                streams = list(self._streams.values())
                self._streams.clear()
                self._changed.notify_all()
            for stream in streams:
                failure = EngineDead(f"the engine stopped: {error}")
                failure.__cause__ = error
                stream.fail(failure)

    def _take_orders(self) -> bool:
        """Wait for something to do and carry out what was asked; False: closed, with nothing left."""
        with self._changed:
            while not self._orders and not self._core.has_work:
                if self._is_closing:
                    return False
                self._changed.wait()
            orders, self._orders = self._orders, []
        for order in orders:
            order()
        return True

    def _deliver(self) -> None:
        for event in self._core.drain(self.clock()):
            stream = self._streams[event.reply_id]
            stream.put(event)
            if isinstance(event, Done):
                with self._changed:
                    del self._streams[event.reply_id]
                    self._changed.notify_all()
