"""Wire: one connection to a Realtime server, and the reasons for which there is none."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from innervoice.tools.realtime_bench.dialect import BETA_HEADER
from innervoice.tools.realtime_bench.settings import CallSettings

Connect = Callable[..., Awaitable[ClientConnection]]
CLOSE_S = 2.0  # a server that does not answer a close is left
_MOST_DETAIL = 200


class CallFailed(Exception):
    """A call, or a turn of it, went wrong. kind: the words under which failures are counted."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail[:_MOST_DETAIL]


class ReceivedEvent(msgspec.Struct):
    """The fields of the server's events that a caller reads; of any type, as servers differ."""

    type: str = ""
    delta: Any = None
    response: Any = None
    response_id: Any = None
    item_id: Any = None
    content_index: Any = 0
    session: Any = None
    error: Any = None


def part(place: Any, *names: str) -> Any:
    """A value in nested objects; None where it is missing."""
    for name in names:
        place = place.get(name) if isinstance(place, dict) else None
    return place


class Wire:
    """A connection whose server has not spoken yet. Its errors are CallFailed."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._decode = msgspec.json.Decoder(ReceivedEvent).decode
        self.last_error = ""  # the code of the last `error` event, which a close often follows

    @classmethod
    async def open(cls, settings: CallSettings, *, is_beta: bool, connect: Connect = connect) -> Wire:
        """Connect to the server of the settings. Raises CallFailed."""
        headers = dict([BETA_HEADER]) if is_beta else {}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        options: dict[str, Any] = {"ssl": settings.tls()} if settings.url.startswith("wss:") else {}
        try:
            made = await connect(
                settings.url,
                additional_headers=headers,
                compression=None,
                max_size=None,
                open_timeout=settings.timeout_s,
                close_timeout=CLOSE_S,
                ping_timeout=settings.timeout_s,
                **options,
            )
        except (InvalidHandshake, OSError, TimeoutError) as error:
            raise _refusal(error) from error
        return cls(made)

    async def send(self, message: bytes) -> None:
        """Send one message of text."""
        try:
            await self._connection.send(message, text=True)
        except ConnectionClosed as error:
            raise self._closed(error) from error

    async def send_event(self, event: dict[str, Any]) -> None:
        """Send an event."""
        await self.send(msgspec.json.encode(event))

    async def events(self) -> AsyncIterator[ReceivedEvent]:
        """The server's events as they come; it ends with CallFailed."""
        while True:
            try:
                text = await self._connection.recv()
            except ConnectionClosed as error:
                raise self._closed(error) from error
            try:
                event = self._decode(text)
            except msgspec.DecodeError as error:
                raise CallFailed("bad message", str(error)) from error
            if event.type == "error":
                self.last_error = str(part(event.error, "code") or part(event.error, "type") or "unknown")
            yield event

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    def _closed(self, error: ConnectionClosed) -> CallFailed:
        own = "" if error.sent is None or error.rcvd is not None else error.sent.reason
        code = error.rcvd.code if error.rcvd is not None else own or "without a word"
        reason = error.rcvd.reason if error.rcvd is not None else ""
        return CallFailed(f"closed {code} {self.last_error}".strip(), reason)


def _refusal(error: Exception) -> CallFailed:
    """The reason why there is no connection."""
    if isinstance(error, InvalidStatus):
        body = (error.response.body or b"").decode(errors="replace")
        return CallFailed(f"HTTP {error.response.status_code} {_code(body)}".strip(), body)
    if isinstance(error, TimeoutError):
        return CallFailed("timeout: connecting")
    if isinstance(error, ssl.SSLCertVerificationError):
        return CallFailed("certificate refused", error.verify_message)
    if isinstance(error, socket.gaierror):
        return CallFailed("unknown host", str(error))
    if isinstance(error, OSError):
        # Of several addresses asyncio joins the messages.
        is_refused = error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error)
        return CallFailed(
            "connection refused" if is_refused else "no connection", error.strerror or str(error)
        )
    return CallFailed("no WebSocket there", str(error))


def _code(body: str) -> str:
    """The code of an error's body, as OpenAI's has it; empty where there is none."""
    try:
        error = part(json.loads(body), "error")
    except ValueError:
        return ""
    return str(part(error, "code") or part(error, "type") or "")
