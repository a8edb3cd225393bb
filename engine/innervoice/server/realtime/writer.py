"""Writer: the queue of events to one client, and the task that sends them.

Deltas wait for room, so that a slow client slows its own reply. All other events are taken at once. The deltas
of a reply can be taken back as long as they have not been sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.server_events import ServerEvent

Send = Callable[[str], Awaitable[None]]
Translate = Callable[[ServerEvent], ServerEvent | None]
MAX_DELTA_BYTES = 2 * 2**20
MAX_CONTROL_BYTES = 4 * 2**20
MAX_AUDIO_S = 20.0
MAX_HISTORY_BYTES = 4 * 2**20


class SlowReader(Exception):
    """The client has taken nothing for too long."""


@dataclass
class Queued:
    """An event that waits to be sent; reply: the response whose delta it is; audio_s: of its sound."""

    event: ServerEvent
    size: int
    queued_s: float
    reply: str | None = None
    audio_s: float = 0.0


@dataclass(frozen=True)
class WriterLimits:
    """Bytes and seconds of sound that may wait, and the seconds that one message may take to be sent."""

    delta_bytes: int = MAX_DELTA_BYTES
    control_bytes: int = MAX_CONTROL_BYTES
    audio_s: float = MAX_AUDIO_S
    stall_s: float = 30.0
    history_bytes: int = MAX_HISTORY_BYTES


@dataclass(frozen=True)
class Sent:
    """A message that left: its type, bytes, seconds of sound, seconds in the queue and in the socket.

    reply: the response whose delta it was.
    """

    type: str
    reply: str | None
    size: int
    audio_s: float
    queued_s: float
    stall_s: float


class Writer:
    """Events to one client, in order. All methods run on the event loop.

    translate: into the client's dialect. on_sent: called after each message. number: of the last event sent. While
    numbering is on, events carry `event_seq`, and those sent last are kept for a client that comes back.
    """

    def __init__(
        self,
        translate: Translate | None = None,
        limits: WriterLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_numbering = False
        self._translate = translate or (lambda event: event)
        self._limits = limits or WriterLimits()
        self.on_sent: Callable[[Sent], None] = lambda sent: None
        self._clock = clock
        self._queue: deque[Queued] = deque()
        self._changed = asyncio.Event()
        self._is_closing = False
        self.number = 0
        self._delta_bytes = 0
        self._control_bytes = 0
        self._audio_s = 0.0
        self._history: deque[tuple[int, str]] = deque()
        self._history_bytes = 0

    @property
    def has_delta_room(self) -> bool:
        """Whether another delta may be put."""
        limits = self._limits
        return self._delta_bytes < limits.delta_bytes and self._audio_s < limits.audio_s

    @property
    def has_control_room(self) -> bool:
        """Whether the client may be asked for more events, which cause answers."""
        return self._control_bytes < self._limits.control_bytes

    @property
    def num_waiting(self) -> int:
        """Events that have not been sent."""
        return len(self._queue)

    def put(self, event: ServerEvent, reply: str | None = None, audio_s: float = 0.0) -> None:
        """Queue an event; reply: the response whose delta it is."""
        if self._is_closing:
            return
        size = _size(event)
        self._queue.append(Queued(event, size, self._clock(), reply, audio_s))
        self._count(size, reply, audio_s)
        self._changed.set()

    async def room(self) -> None:
        """Wait until a delta may be put, or the writer closes."""
        while not (self.has_delta_room or self._is_closing):
            await self._wait()

    async def control_room(self) -> None:
        """Wait until the answers that wait are few enough to cause more, or the writer closes."""
        while not (self.has_control_room or self._is_closing):
            await self._wait()

    async def drained(self) -> None:
        """Wait until everything has been sent, or the writer closes."""
        while self._queue and not self._is_closing:
            await self._wait()

    def take_back(self, reply: str) -> list[ServerEvent]:
        """Remove the deltas of a response that have not been sent -> those deltas."""
        taken = [queued for queued in self._queue if queued.reply == reply]
        if taken:
            self._queue = deque(queued for queued in self._queue if queued.reply != reply)
            for queued in taken:
                self._count(-queued.size, queued.reply, -queued.audio_s)
            self._changed.set()
        return [queued.event for queued in taken]

    def close(self) -> None:
        """Send what waits, then end `run`; later events are dropped."""
        self._is_closing = True
        self._changed.set()

    async def run(self, send: Send, after: int | None = None, greeting: ServerEvent | None = None) -> None:
        """Send events until the writer is closed and empty.

        after: the number of the last event that a client, which comes back, has received: what was sent
        since is sent again, behind the greeting, which has no number. Raises SlowReader, and what `send`
        raises; the event at hand is then sent first by the next run.
        """
        if greeting is not None:
            await self._send(
                send, _to_text({"event_id": new_id("event")} | (self._translate(greeting) or greeting))
            )
        for number, text in list(self._history):
            if after is not None and number > after:
                await self._send(send, text)
        while self._queue or not self._is_closing:
            if not self._queue:
                await self._wait()
                continue
            queued = self._queue.popleft()
            try:
                await self._send_one(send, queued)
            except BaseException:
                if not self.is_numbering:
                    self._queue.appendleft(queued)
                    self._count(queued.size, queued.reply, queued.audio_s)
                raise

    def missed_after(self, number: int) -> int:
        """Return how many events after that number are no longer kept for sending again."""
        first = self._history[0][0] if self._history else self.number + 1
        return max(0, first - number - 1)

    async def _send_one(self, send: Send, queued: Queued) -> None:
        self._count(-queued.size, queued.reply, -queued.audio_s)
        translated = self._translate(queued.event)
        if translated is None:
            return
        begun_s = self._clock()
        text = self._encode(translated)
        await self._send(send, text)
        sent_s = self._clock()
        self._changed.set()
        self.on_sent(
            Sent(
                type=queued.event["type"],
                reply=queued.reply,
                size=len(text),
                audio_s=queued.audio_s,
                queued_s=begun_s - queued.queued_s,
                stall_s=sent_s - begun_s,
            )
        )

    def _encode(self, event: ServerEvent) -> str:
        self.number += 1
        head: ServerEvent = {"type": event["type"], "event_id": f"event_{self.number}"}
        if not self.is_numbering:
            return _to_text(head | event)
        text = _to_text(head | event | {"event_seq": self.number})
        self._history.append((self.number, text))
        self._history_bytes += len(text)
        while self._history_bytes > self._limits.history_bytes:
            self._history_bytes -= len(self._history.popleft()[1])
        return text

    async def _send(self, send: Send, text: str) -> None:
        try:
            async with asyncio.timeout(
                self._limits.stall_s
            ):  # wait_for would lose a cancellation that comes now
                await send(text)
        except TimeoutError:
            raise SlowReader(f"the client took nothing for {self._limits.stall_s:g} s") from None

    def _count(self, size: int, reply: str | None, audio_s: float) -> None:
        if reply is None:
            self._control_bytes += size
        else:
            self._delta_bytes += size
            self._audio_s += audio_s

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _to_text(event: ServerEvent) -> str:
    return msgspec.json.encode(event).decode()


def _size(event: ServerEvent) -> int:
    """Return about the bytes of an event; a delta's are its text or sound."""
    delta = event.get("delta")
    if delta is not None:
        return 256 + (len(delta) * 4 // 3 if isinstance(delta, bytes) else len(delta))
    item = event.get("item") or event.get("session") or event.get("response")
    return 256 + _length(item)


def _length(value: Any) -> int:
    """Return about the bytes of a part of an event as JSON, without writing it: it may have minutes of sound."""
    if isinstance(value, str | bytes):
        return len(value) + 2
    if isinstance(value, Mapping):
        return 2 + sum(len(name) + 4 + _length(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return 2 + sum(1 + _length(one) for one in value)
    return 8
