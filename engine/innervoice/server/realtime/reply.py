"""RunningReply: one reply on its way from the engine's stream to the client."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from innervoice.runtime.playback import Playback
from innervoice.runtime.request import PromptTooLong
from innervoice.runtime.stream import Stream
from innervoice.server.realtime import usage
from innervoice.server.realtime.extensions import ReplyExtensions
from innervoice.server.realtime.history import SpokenItem
from innervoice.server.realtime.items import ConversationItem
from innervoice.server.realtime.protocol.response_events import ReplyEnding
from innervoice.server.realtime.reply_output import Delta, ReplyOutput
from innervoice.server.realtime.writer import Writer
from innervoice.types import Done, EngineDead, OutOfCapacity, RequestFailed, ToolCall, Transcript

log = logging.getLogger(__name__)
HOLD_TEXT_S = 0.05
CLOSE_S = 0.25
MAX_EVENTS = 256
MAX_UNREAD_S = 10.0
Begin = Callable[[], Awaitable[Stream]]


class RunningReply:
    """A reply from its request to `response.done`. All methods run on the event loop.

    previous: the item before the reply's own. on_calls: lists calls of tools -> the item before each. on_end:
    called once, when `response.done` is queued.
    finished, drained: whether that has happened, and whether the engine is done with the reply.
    """

    def __init__(
        self,
        output: ReplyOutput,
        writer: Writer,
        previous: str | None,
        is_spoken_turn: bool,
        extensions: ReplyExtensions,
        clock: Callable[[], float],
        on_calls: Callable[[RunningReply, list[ConversationItem]], list[str | None]],
        on_end: Callable[[RunningReply], None],
    ) -> None:
        self.output = output
        self.spoken = SpokenItem(output.item, output.spoken)
        self.playback = Playback()
        self.ending: ReplyEnding | None = None
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.drained = asyncio.Event()
        self._writer = writer
        self._previous = previous
        self._is_spoken_turn = is_spoken_turn
        self._extensions = extensions
        self._clock = clock
        self._on_calls = on_calls
        self._on_end = on_end
        self._stream: Stream | None = None
        self._done: Done | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The response's id."""
        return self.output.head.id

    @property
    def is_cancelled(self) -> bool:
        """Whether it ends before its time; nothing more of it is sent but the closing events."""
        return self.ending is not None

    def heard_s(self) -> float:
        """Seconds of sound that the client has played by now, as far as the server can know."""
        return self.playback.heard_s(self._clock())

    def dry_s(self) -> float:
        """The time at which all that was sent is played; -inf before the first sound."""
        return self.playback.dry_s

    def open(self) -> None:
        """Announce the message and its part, unless the reply may turn out to say nothing."""
        if not self.output.may_call:
            self.reveal()

    def reveal(self) -> None:
        """Announce the message and its part, if that has not happened."""
        if not self.output.is_open and not self.finished.is_set():
            for event in self.output.begin(self._previous):
                self._writer.put(event)

    async def begin(self, begin: Begin) -> None:
        """Get the stream, and read it in a task of its own."""
        if self.is_cancelled:
            self.drained.set()
            self._finish()
            return
        try:
            stream = await begin()
        except Exception as error:
            self.drained.set()
            self._fail(error)
            self._finish()
            return
        self._stream = stream.bounded(events=MAX_EVENTS, audio_s=MAX_UNREAD_S)
        if self.is_cancelled:
            stream.cancel()
        self._task = asyncio.create_task(self._read(stream))

    def cancel(self, reason: str) -> None:
        """Stop it; deltas that have not been sent are taken back."""
        if self.is_cancelled or self.finished.is_set():
            return
        self.ending = ReplyEnding("cancelled", reason)
        self.output.take_back(self._writer.take_back(self.id))
        self._stop_timer()
        if self._stream is not None:
            self._stream.cancel()
        asyncio.get_running_loop().call_later(CLOSE_S, self._finish)

    def abandon(self) -> None:
        """Stop it without a word: the client is gone."""
        self.ending = self.ending or ReplyEnding("cancelled", "client_cancelled")
        if self._stream is not None:
            self._stream.cancel()
        self._stop_timer()
        self.finished.set()
        self.drained.set()

    async def _read(self, stream: Stream) -> None:
        try:
            async for event in stream:
                if isinstance(event, Done):
                    self._done = event
                    continue
                if not self.is_cancelled:
                    self._extensions.take(event)
                    if self.output.says(event):
                        self.reveal()
                    for delta in self.output.take(event):
                        await self._put(delta)
                    self._hold(isinstance(event, Transcript))
            if not self.is_cancelled:
                self.ending = self._natural_ending(stream)
                for delta in self.output.flush():
                    await self._put(delta, is_last=True)
        except Exception as error:
            self._fail(error)
            stream.cancel()
        self.drained.set()
        self._finish()

    async def _put(self, delta: Delta, is_last: bool = False) -> None:
        await self._writer.room()
        if is_last or not self.is_cancelled:
            self._writer.put(delta.event, reply=self.id, audio_s=delta.audio_s)

    def _hold(self, is_text: bool) -> None:
        """Send held text soon, unless something else takes it along first."""
        if not self.output.has_held:
            self._stop_timer()
        elif is_text and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_TEXT_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if not self.is_cancelled:
            for delta in self.output.flush():
                self._writer.put(delta.event, reply=self.id)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _natural_ending(self, stream: Stream) -> ReplyEnding:
        done = self._done
        if done is None or done.finish_reason in ("error", "timeout"):
            failure = stream.queue.failure or RequestFailed(done.error if done else "the engine has stopped")
            self.failure = failure
            return failed(failure)
        if done.finish_reason == "length":
            return ReplyEnding("incomplete", "max_output_tokens")
        if done.finish_reason == "tool_calls" and all(call.error for call in self.output.calls):
            return _unreadable(self.output.calls[-1])
        is_whole = done.finish_reason in ("stop", "tool_calls")
        return ReplyEnding("completed") if is_whole else ReplyEnding("cancelled", "client_cancelled")

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, OutOfCapacity | ValueError | RequestFailed | EngineDead):
            log.error("reply %s failed", self.id, exc_info=error)
        self.failure = error
        self.output.take_back(self._writer.take_back(self.id))
        self.ending = failed(error)

    def _finish(self) -> None:
        """Send the closing events, once."""
        if self.finished.is_set():
            return
        calls = self._listed_calls()
        if not calls:
            self.reveal()
        self.finished.set()
        self._stop_timer()
        assert self.ending is not None, "a reply ends for a reason"
        counted = None
        self._extensions.end(None if self._done is None else self._done.usage)
        if self._done is not None:
            counted = usage.to_json(self._done.usage, self._is_spoken_turn)
        for event in self.output.end(self.ending, counted, self._previous, calls):
            self._writer.put(event)
        self._on_end(self)

    def _listed_calls(self) -> list[tuple[ConversationItem, str | None]]:
        """The calls of a reply that ended with them, each with the item before it."""
        if self._done is None or self._done.finish_reason != "tool_calls":
            return []
        items = self.output.call_items()
        return list(zip(items, self._on_calls(self, items), strict=True))


def _unreadable(call: ToolCall) -> ReplyEnding:
    message = f"the model wrote a call that cannot be read, because {call.error}: {call.text.strip()[:200]}"
    return ReplyEnding(
        "failed", error={"type": "server_error", "code": "invalid_tool_call", "message": message}
    )


def failed(error: BaseException) -> ReplyEnding:
    """The ending of a reply that an error ended."""
    kind, code, message = "server_error", "server_error", f"{error}"
    if isinstance(error, OutOfCapacity):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
        if math.isfinite(error.retry_after_s):
            message = f"{error}; try again in {error.retry_after_s:.0f} s"
    elif isinstance(error, PromptTooLong):
        kind, code = "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, ValueError):
        kind, code = "invalid_request_error", "invalid_value"
    elif not isinstance(error, RequestFailed | EngineDead):
        message = "the server failed to make this reply: see its log"
    return ReplyEnding("failed", error={"type": kind, "code": code, "message": message})
