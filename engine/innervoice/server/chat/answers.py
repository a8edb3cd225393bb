"""ChatAnswer: one answer to a chat request, whole or as server-sent events.

The client may leave at any time, which cancels the reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.types import Receive, Send

from innervoice.api.session import Session
from innervoice.runtime.event_builder import collect_text
from innervoice.runtime.stream import Stream
from innervoice.server.chat.chunks import Envelope, call_of, finish_reason_of, usage_of
from innervoice.server.chat.formats import encode
from innervoice.server.chat.kept import KeptAnswer, KeptAnswers
from innervoice.server.chat.request import ChatRequest
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import as_api_error
from innervoice.types import (
    AudioChunk,
    Done,
    EngineDead,
    Event,
    FinishReason,
    Reflection,
    RequestFailed,
    Tool,
    ToolCall,
    Transcript,
)

MAX_UNREAD = 256  # events of the engine that wait for a slow client
MAX_UNREAD_S = 10.0  # and seconds of sound
PIECE_LEN = 2**17  # bytes of a whole answer that the client must take in a time

SendPart = Callable[[dict[str, Any]], Awaitable[None]]


class ClientGone(Exception):
    """The client has closed its connection, or does not read."""


@dataclass(frozen=True)
class AnswerSound:
    """The id of an answer's sound, and the time until which it is kept (seconds since 1970)."""

    audio_id: str
    expires_at: int


class ChatAnswer:
    """A reply on its way to the client. It is a connection of the server that is busy until it is over."""

    def __init__(
        self,
        context: ServerContext,
        request: ChatRequest,
        session: Session,
        kept: KeptAnswers,
        model: str,
    ) -> None:
        self._context = context
        self._request = request
        self._session = session
        self._kept = kept
        self._envelope = Envelope(model)
        self._stream: Stream | None = None
        self._error: ApiError | None = None
        self._over = asyncio.Event()

    @property
    def is_busy(self) -> bool:
        """Whether the answer is not complete."""
        return not self._over.is_set()

    async def end(self, code: int, error: ApiError) -> None:
        """Cut the answer short with an error, and wait until the client has it."""
        self._error = error
        if self._stream is not None:
            self._stream.cancel()
        await self._over.wait()

    async def send(self, receive: Receive, send: Send) -> None:
        """Make the reply and send it. Raises ApiError while nothing was sent."""
        self._context.live.add(self)
        try:
            request = self._request
            stream = await self._session.areply(list(request.messages), **request.options)
            self._stream = stream.bounded(MAX_UNREAD, MAX_UNREAD_S)
            if self._error is not None:  # ended while the recording was encoded
                raise self._error
            gone = asyncio.create_task(_wait_until_gone(receive))
            gone.add_done_callback(lambda _: stream.cancel())
            try:
                send_answer = self._send_events if request.is_streamed else self._send_whole
                await send_answer(stream, partial(self._send, send))
            except ClientGone:
                pass
            finally:
                gone.cancel()
                stream.cancel()
        finally:
            self._over.set()
            self._context.live.discard(self)

    async def _send(self, send: Send, message: Any) -> None:
        """Send a part of the answer. Raises ClientGone when the client does not take it for too long."""
        try:
            async with asyncio.timeout(self._context.options.slow_reader_s):
                await send(message)
        except (TimeoutError, OSError) as error:
            raise ClientGone from error

    async def _send_whole(self, stream: Stream, send: SendPart) -> None:
        events = [event async for event in stream]
        done = events[-1]
        assert isinstance(done, Done), "a reply ends in Done"
        self._check(done, stream)
        sound = None
        if self._request.sound is not None:
            sound = AnswerSound(*self._kept.new_id())
            await self._keep(sound, collect_text(events)[0])
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._context.calls, self._written, events, done, sound)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(body), PIECE_LEN):
            piece = body[start : start + PIECE_LEN]
            is_last = start + PIECE_LEN >= len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": not is_last})

    def _written(self, events: list[Event], done: Done, sound: AnswerSound | None) -> bytes:
        """The JSON of a whole answer; on a thread, since it may hold minutes of sound."""
        transcript, reflections = collect_text(events)
        message: dict[str, Any] = {"role": "assistant", "content": transcript, "refusal": None}
        if reflections:
            message["reasoning_content"] = "\n\n".join(reflections)
        if sound is not None and self._request.sound is not None:
            message["content"] = None
            message["audio"] = {
                "id": sound.audio_id,
                "data": encode(_joined(events), self._request.sound),  # bytes are written as base64
                "expires_at": sound.expires_at,
                "transcript": transcript,
            }
        calls, text = _read_calls(events)
        if calls:
            message["tool_calls"] = [call_of(call) for call in calls]
            message["content"] = message["content"] or None
        if calls and not transcript:
            message.pop("audio", None)
        if text:
            message["content"] = (message["content"] or "") + text
        reason = _reason(done.finish_reason, len(calls))
        usage = usage_of(done.usage, is_spoken=self._request.is_spoken)
        return msgspec.json.encode(self._envelope.completion(message, reason, usage))

    async def _send_events(self, stream: Stream, send: SendPart) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self._chunks(stream):
            data = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _chunks(self, stream: Stream) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a streamed answer; an error in its midst is one too."""
        sound = AnswerSound(*self._kept.new_id()) if self._request.sound is not None else None
        first: dict[str, Any] = {"role": "assistant", "content": "" if sound is None else None}
        if sound is not None:
            first["audio"] = {"id": sound.audio_id, "transcript": ""}
        yield self._envelope.chunk(first)
        try:
            async for chunk in self._pieces(stream, sound):
                yield chunk
        except (ApiError, EngineDead, RequestFailed) as error:
            yield {"error": as_api_error(error).body()}

    async def _pieces(self, stream: Stream, sound: AnswerSound | None) -> AsyncIterator[dict[str, Any]]:
        """The pieces behind the first. Raises ApiError, EngineDead, RequestFailed."""
        transcript = ""
        num_calls = 0
        done: Done | None = None
        async for event in stream:
            if isinstance(event, Done):
                done = event
            if isinstance(event, Tool) and event.call is not None:
                for piece in _call_deltas(event.call, num_calls):
                    yield self._envelope.chunk(piece)
                num_calls += event.call.error is None
            delta = _delta_of(event, is_spoken=sound is not None)
            transcript += event.text if isinstance(event, Transcript) else ""
            if delta is not None:
                yield self._envelope.chunk(delta)
        assert done is not None, "a reply ends in Done"
        self._check(done, stream)
        if sound is not None:
            await self._keep(sound, transcript)
            yield self._envelope.chunk({"audio": {"expires_at": sound.expires_at}})
        yield self._envelope.chunk({}, _reason(done.finish_reason, num_calls))
        if self._request.with_usage:
            yield self._envelope.usage_chunk(usage_of(done.usage, is_spoken=self._request.is_spoken))

    def _check(self, done: Done, stream: Stream) -> None:
        """Raise the reason for which an answer was cut short or failed."""
        if self._error is not None:
            raise self._error
        if done.finish_reason == "error":
            raise stream.queue.failure or RequestFailed(done.error)

    async def _keep(self, sound: AnswerSound, transcript: str) -> None:
        """Keep the answer, so that a later request may go on from it."""
        export = await self._session.aexport()
        self._kept.keep(
            KeptAnswer(sound.audio_id, transcript, self._request.dialogue, export, sound.expires_at)
        )


def _delta_of(event: Event, *, is_spoken: bool) -> dict[str, Any] | None:
    """The piece of an answer that an event makes, None for one that clients do not see."""
    if isinstance(event, Reflection) and event.text:
        return {"reasoning_content": event.text}
    if isinstance(event, Transcript) and event.text:
        return {"audio": {"transcript": event.text}} if is_spoken else {"content": event.text}
    if isinstance(event, AudioChunk) and is_spoken:
        return {"audio": {"data": event.to_pcm16().astype("<i2").tobytes()}}  # written as base64
    return None


def _read_calls(events: list[Event]) -> tuple[list[ToolCall], str]:
    """The calls of an answer, and the text of those that cannot be read."""
    calls = [event.call for event in events if isinstance(event, Tool) and event.call is not None]
    text = "".join(call.text for call in calls if call.error is not None)
    return [call for call in calls if call.error is None], text


def _call_deltas(call: ToolCall, index: int) -> list[dict[str, Any]]:
    """The pieces of a call: its id and name, then its arguments; the text of one that cannot be read."""
    if call.error is not None:
        return [{"content": call.text}]
    whole = call_of(call)
    begun = {**whole, "index": index, "function": {"name": call.name, "arguments": ""}}
    rest = {"index": index, "function": {"arguments": call.arguments}}
    return [{"tool_calls": [begun]}, {"tool_calls": [rest]}]


def _reason(reason: FinishReason, num_calls: int) -> str:
    return "stop" if reason == "tool_calls" and not num_calls else finish_reason_of(reason)


def _joined(events: list[Event]) -> Any:
    chunks = [event.to_pcm16() for event in events if isinstance(event, AudioChunk)]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int16)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
