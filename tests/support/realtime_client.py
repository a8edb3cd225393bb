"""A client of the Realtime protocol on an in-memory socket, which records and checks every event."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from openai.types.beta.realtime import RealtimeServerEvent as BetaServerEvent
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.websockets import WebSocketState

from innervoice import Engine
from innervoice.server.admission import Admission, Slot
from innervoice.server.context import Opening, ServerContext
from innervoice.server.metrics import ServerMetrics
from innervoice.server.options import ServerOptions
from innervoice.server.realtime.connection import serve_connection
from innervoice.server.signer import Signer
from innervoice.server.vad.energy import EnergyNetwork
from innervoice.server.vad.listener import SpeechListener

GA: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
BETA: TypeAdapter[Any] = TypeAdapter(BetaServerEvent)
PATIENCE_S = 60.0


class MemorySocket:
    """The part of a starlette WebSocket that a connection uses. room: messages that it takes unread."""

    def __init__(self) -> None:
        self.client_state = self.application_state = WebSocketState.CONNECTED
        self.to_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.clock: Callable[[], float] = time.monotonic
        self.times_s: list[float] = []  # of `received`
        self.close_code: int | None = None
        self.may_send = asyncio.Event()
        self.may_send.set()

    async def receive(self) -> dict[str, Any]:
        message = await self.to_server.get()
        if message["type"] == "websocket.disconnect":
            self.client_state = WebSocketState.DISCONNECTED
        return message

    async def send_text(self, text: str) -> None:
        await self.may_send.wait()
        if self.client_state == WebSocketState.DISCONNECTED:
            raise RuntimeError("the client is gone")
        self.times_s.append(self.clock())
        self.received.put_nowait(json.loads(text))

    async def close(self, code: int = 1000) -> None:
        self.close_code = code
        self.application_state = WebSocketState.DISCONNECTED
        self.times_s.append(self.clock())
        self.received.put_nowait({"type": "closed", "code": code})


class RealtimeClient:
    """Sends events and waits for answers. Every event of the server is checked against the SDK's types."""

    def __init__(self, socket: MemorySocket, dialect: str) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.is_beta = dialect == "beta"
        self._place = 0

    def send(self, type: str, **fields: Any) -> None:
        self.send_text(json.dumps({"type": type, **fields}))

    def send_text(self, text: str) -> None:
        self.socket.to_server.put_nowait({"type": "websocket.receive", "text": text})

    def append(self, pcm: np.ndarray) -> None:
        self.send("input_audio_buffer.append", audio=base64.b64encode(pcm.astype("<i2").tobytes()).decode())

    def say(self, text: str, role: str = "user", id: str | None = None, previous: str | None = None) -> None:
        kind = "output_text" if role == "assistant" else "input_text"
        item: dict[str, Any] = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        if id is not None:
            item["id"] = id
        self.send("conversation.item.create", item=item, previous_item_id=previous)

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Read on to the next event of this type with these fields at its top or in its response or item."""
        while True:
            event = await self.next()
            if event["type"] == type and _has(event, fields):
                return event

    async def next(self) -> dict[str, Any]:
        while self._place == len(self.events):
            await self._read()
        self._place += 1
        return self.events[self._place - 1]

    async def answer(self, **response: Any) -> dict[str, Any]:
        """Ask for a response, and wait for its end."""
        self.send("response.create", **({"response": response} if response else {}))
        return (await self.until("response.done"))["response"]

    async def settle(self, seconds: float = 0.05) -> None:
        """Take in what comes within a while."""
        with_timeout = asyncio.get_running_loop().time() + seconds
        while (left := with_timeout - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.wait_for(self._read(), left)
            except TimeoutError:
                return

    def drop(self, code: int = 1006) -> None:
        """Lose the connection."""
        self.socket.to_server.put_nowait({"type": "websocket.disconnect", "code": code})

    def of_type(self, *types: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] in types]

    def audio(self, response_id: str | None = None) -> np.ndarray:
        deltas = self.of_type("response.output_audio.delta", "response.audio.delta")
        chosen = [one for one in deltas if response_id in (None, one["response_id"])]
        return np.frombuffer(b"".join(base64.b64decode(one["delta"]) for one in chosen), dtype="<i2")

    def items_of_server(self, context: ServerContext) -> list[str]:
        """The ids of the items that the server has of this connection's conversation."""
        [found] = [one for one in context.live if one._socket is self.socket]  # type: ignore[attr-defined]
        return [item.id for item in found._hosted.conversation.scope.items]  # type: ignore[attr-defined]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def _read(self) -> None:
        event = await asyncio.wait_for(self.socket.received.get(), PATIENCE_S)
        if event["type"] != "closed" and not event["type"].startswith("innervoice."):
            (BETA if self.is_beta else GA).validate_python(event, strict=True)
        self.events.append(event)


def _has(event: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    places = [event, event.get("response") or {}, event.get("item") or {}, event.get("error") or {}]
    return all(any(place.get(name) == value for place in places) for name, value in fields.items())


def make_context(engine: Engine, num_slots: int = 64, **options: Any) -> ServerContext:
    """Make what the connections of a server share, without its socket."""
    chosen = ServerOptions(**options)
    return ServerContext(
        engine=engine,
        model_name="tiny",
        options=chosen,
        metrics=ServerMetrics(),
        admission=Admission(num_slots),
        listener=SpeechListener(EnergyNetwork()),
        transcriber=None,
        signer=Signer(b"secret"),
        calls=ThreadPoolExecutor(4),
    )


@asynccontextmanager
async def connected(
    context: ServerContext,
    dialect: str = "ga",
    model: str = "gpt-realtime",
    *,
    is_beyond: bool = False,
    **query: str,
) -> AsyncIterator[RealtimeClient]:
    """A connection to the server; its end is waited for. is_beyond: it takes no place of its own."""
    socket = MemorySocket()
    slot = Slot(context.admission, is_counted=False) if is_beyond else context.admission.hold()
    opening = Opening(dialect=dialect, model=model, presets={}, query=query, slot=slot)  # type: ignore[arg-type]
    task = asyncio.create_task(serve_connection(socket, context, opening))  # type: ignore[arg-type]
    client = RealtimeClient(socket, dialect)
    try:
        yield client
    finally:
        client.drop(1000)
        await asyncio.wait_for(task, PATIENCE_S)
        if not slot.is_kept:
            slot.release()


NO_TURNS: dict[str, Any] = {"audio": {"input": {"turn_detection": None}}}


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on an event loop of its own, for as long as patience lasts."""
    asyncio.run(work)


async def greeted(client: RealtimeClient, **session: Any) -> dict[str, Any]:
    """The session after the greeting and an update; greedy, so that replies are the same every time."""
    await client.until("session.created")
    client.send("session.update", session={**NO_TURNS, "temperature": 0.0, **session})
    return dict((await client.until("session.updated"))["session"])
