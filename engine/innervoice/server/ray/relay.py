"""Relay: a request that another replica answers, from the first message to the last, though that replica may die."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope, Send

from innervoice.server.errors import ApiError

HANG_UP_S = 2.0  # that an application has to notice that its client is gone
EVENT_STREAM = b"text/event-stream"
log = logging.getLogger("innervoice")


class ReplicaLost(Exception):
    """The replica that was to answer died or went."""


class Relay:
    """Sends the answer of another replica to a client. The status goes out with the first part of the body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._has_begun = False

    async def pass_on(self, messages: AsyncIterator[Message]) -> bool:
        """Send the messages as they come -> False: the replica was lost, and the client has heard nothing yet.

        A stream of events that breaks off ends with an error. Raises ReplicaLost when another answer breaks off.
        """
        try:
            async for message in messages:
                await self._take(message)
        except ReplicaLost as error:
            log.warning("a replica was lost while it answered: %s", error)
            if not self._has_begun:
                return False
            if not self._is_event_stream:
                raise
            data = json.dumps({"error": lost().body()})
            await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode()})
        return True

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if not self._has_begun and self._start is not None:
            self._has_begun = True
            await self._send(self._start)
        await self._send(message)

    @property
    def _is_event_stream(self) -> bool:
        headers = () if self._start is None else self._start.get("headers", ())
        return any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers)


def lost() -> ApiError:
    """The error of an answer that broke off."""
    return ApiError(
        "replica_lost",
        "the replica that answered is gone: send the request again",
        type="server_error",
        status=503,
    )


async def answer_here(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """Run an application for a request whose body is known -> its messages as they come.

    When the reader stops, the application's client is gone.
    """
    queue: asyncio.Queue[Message | None] = asyncio.Queue()
    is_over = asyncio.Event()
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if first:
            return first.pop()
        await is_over.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, queue.put)
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await queue.get()) is not None:
            yield message
        await task
    finally:
        is_over.set()
        if not task.done():
            await asyncio.wait({task}, timeout=HANG_UP_S)
            task.cancel()
