"""WireTap: every event of the Realtime protocol between a server and its clients, recorded as it passes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WAIT_S = 30.0


@dataclass(frozen=True)
class Passed:
    """One event. side: who sent it. time_s: on the monotonic clock."""

    side: Literal["client", "server"]
    event: dict[str, Any]
    time_s: float

    @property
    def type(self) -> str:
        """The event's type."""
        return str(self.event["type"])


@dataclass
class Wire:
    """One connection. headers: of the client's upgrade, in lower case. close_code: that the server closed with."""

    query: str
    headers: dict[str, str]
    subprotocols: list[str]
    log: list[Passed] = field(default_factory=list)
    close_code: int | None = None
    is_over: bool = False

    def of(self, side: str, *types: str) -> list[dict[str, Any]]:
        """Events of one side, of these types or of all."""
        return [one.event for one in self.log if one.side == side and (not types or one.type in types)]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """Events of the server."""
        return self.of("server")

    @property
    def transcripts(self) -> list[str]:
        """The text of each reply that has any; a model may speak without words, and clients leave such replies out."""
        done = self.of("server", "response.output_audio_transcript.done")
        return [str(event["transcript"]) for event in done if event["transcript"].strip()]

    def types(self, side: str = "server") -> list[str]:
        """Types of one side's events."""
        return [str(event["type"]) for event in self.of(side)]


class WireTap:
    """Wraps an ASGI application and changes nothing that passes."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self._closers: dict[int, Callable[[int], None]] = {}
        self._changed = threading.Condition()

    def around(self, app: ASGIApp) -> ASGIApp:
        """Wrap the application."""

        async def tapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await self._connection(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return tapped

    async def _connection(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        wire = Wire(scope["query_string"].decode(), headers, list(scope["subprotocols"]))
        self.wires.append(wire)
        loop = asyncio.get_running_loop()

        def close(code: int) -> None:
            asyncio.run_coroutine_threadsafe(send({"type": "websocket.close", "code": code}), loop).result(
                WAIT_S
            )

        self._closers[id(wire)] = close

        async def received() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                self._note(wire, "client", message.get("text") or message.get("bytes") or "")
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "websocket.send":
                self._note(wire, "server", message["text"])
            elif message["type"] == "websocket.close":
                wire.close_code = message.get("code", 1000)
            await send(message)

        try:
            await app(scope, received, sending)
        finally:
            wire.is_over = True
            with self._changed:
                self._changed.notify_all()

    def _note(self, wire: Wire, side: Literal["client", "server"], text: str | bytes) -> None:
        wire.log.append(Passed(side, json.loads(text), time.monotonic()))
        with self._changed:
            self._changed.notify_all()

    def close(self, wire: Wire, code: int) -> None:
        """Close a connection from the server's side with a code, as a proxy or a restart would."""
        self._closers[id(wire)](code)

    def wait(self, holds: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        """Wait until a condition on what passed holds. Raises AssertionError when it does not in time."""
        with self._changed:
            assert self._changed.wait_for(holds, timeout_s), (
                "the clients and the server did not get there in time"
            )
