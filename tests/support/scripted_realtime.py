"""A server of the Realtime protocol whose timing is a script, in either dialect, so that figures of it are known."""

from __future__ import annotations

import asyncio
import base64
import http
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

RATE = 24000
LOUD = 300  # of an int16 sample
BETA_NAMES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
}


@dataclass(frozen=True)
class Script:
    """Times in seconds. chunks: (after `response.created`, seconds of sound) of each delta; quiet_s: of the
    first chunk are silent. notice_s: from the first loud frame to `speech_started`; runs_on_s: for which deltas
    still come after it, or after a cancellation. silence_s: that ends a turn. answer_s: from then, or from
    `response.create`, to `response.created`.

    fault: what the server does wrong, by name; on_calls: the connections that have it, all by default.
    """

    dialect: str = "ga"
    chunks: tuple[tuple[float, float], ...] = ((0.1, 0.4), (0.3, 0.4))
    quiet_s: float = 0.0
    notice_s: float = 0.1
    runs_on_s: float = 0.0
    silence_s: float = 0.5
    answer_s: float = 0.2
    fault: str = ""
    on_calls: tuple[int, ...] | None = None


@dataclass
class ScriptedServer:
    """Serves a script. received: the events of every client, without those that append sound, by connection."""

    script: Script
    received: list[list[dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_frames: int = 0

    def has_fault(self, number: int, *names: str) -> bool:
        """Whether a connection has one of these faults."""
        calls = self.script.on_calls
        return self.script.fault in names and (calls is None or number in calls)

    def admit(self, connection: ServerConnection, request: Any) -> Any:
        """Refuse an upgrade, if the script says so."""
        number = len(self.headers)
        self.headers.append({name.lower(): value for name, value in request.headers.raw_items()})
        if self.has_fault(number, "401", "429"):
            code = {"401": "invalid_api_key", "429": "session_limit_reached"}[self.script.fault]
            body = json.dumps({"error": {"code": code, "message": "no"}})
            return connection.respond(http.HTTPStatus(int(self.script.fault)), body)
        if self.has_fault(number, "wants beta") and "openai-beta" not in self.headers[-1]:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "send OpenAI-Beta: realtime=v1")
        return None

    async def serve(self, connection: ServerConnection) -> None:
        """Serve one connection to its end."""
        self.received.append([])
        session = _Session(self, connection, len(self.received) - 1)
        try:
            await session.run()
        except ConnectionClosed:
            pass
        finally:
            session.end()


class _Session:
    def __init__(self, server: ScriptedServer, connection: ServerConnection, number: int) -> None:
        self._server, self._connection, self._number = server, connection, number
        self._script = server.script
        self._loop = asyncio.get_running_loop()
        self._detects = True
        self._loud_s: float | None = None  # the last loud frame of an open turn
        self._tasks: list[asyncio.Task[None]] = []
        self._reply: asyncio.Task[None] | None = None
        self._cut_s = float("inf")
        self._num_replies = 0

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        if self._has("mute"):
            await self._connection.wait_closed()
            return
        if self._has("full"):
            await self._error("session_limit_reached")
            await self._connection.close(1013, "all sessions are in use")
            return
        is_beta = self._script.dialect == "beta"
        session = {"modalities": ["audio", "text"]} if is_beta else {"type": "realtime", "audio": {}}
        await self._send("session.created", session={**session, "model": "scripted"})
        async for text in self._connection:
            await self._take(json.loads(text))

    async def _take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            self._server.num_frames += 1
            self._hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
            return
        self._server.received[self._number].append(event)
        if kind == "session.update":
            session = event["session"]
            assert ("modalities" in session) == (self._script.dialect == "beta"), "the other dialect"
            turns = (
                session["turn_detection"]
                if "modalities" in session
                else session["audio"]["input"]["turn_detection"]
            )
            self._detects = turns is not None
            if self._has("refuses settings"):
                await self._error("invalid_value", event["event_id"])
                return
            await self._send("session.updated", session=session)
        elif kind == "response.create":
            if self._has("refuses replies"):
                await self._error("no_reply_today", event["event_id"])
                return
            self._start(self._answer())
        elif kind == "response.cancel":
            self._cut_s = min(self._cut_s, self._loop.time())

    def _hear(self, pcm: np.ndarray) -> None:
        """Find the user's turns in a frame of sound."""
        now = self._loop.time()
        if not self._detects or self._has("deaf"):
            return
        if int(np.abs(pcm.astype(np.int32)).max()) >= LOUD:
            if self._loud_s is None:
                self._start(self._notice())
            self._loud_s = now
        elif self._loud_s is not None and now - self._loud_s >= self._script.silence_s - 1e-6:
            self._loud_s = None
            self._start(self._end_turn())

    async def _notice(self) -> None:
        if self._has("ignores barge-in") and self._num_replies:
            return
        if self._has("ignores some") and self._num_replies % 3 == 1:
            return
        await asyncio.sleep(self._script.notice_s)
        await self._send("input_audio_buffer.speech_started", item_id="user")
        self._cut_s = min(self._cut_s, self._loop.time())

    async def _end_turn(self) -> None:
        await self._send("input_audio_buffer.speech_stopped", item_id="user")
        await self._send("input_audio_buffer.committed", item_id="user")
        await self._answer()

    async def _answer(self) -> None:
        await asyncio.sleep(self._script.answer_s)
        self._num_replies += 1
        name, self._cut_s = f"resp_{self._num_replies}", float("inf")
        if self._has("no answer"):
            return
        if self._has("dies"):
            self._connection.transport.abort()
            return
        await self._send("response.created", response={"id": name, "status": "in_progress"})
        status = await self._speak(name)
        details = (
            {"error": {"code": "server_error", "message": "out of breath"}} if status == "failed" else None
        )
        await self._send("response.done", response={"id": name, "status": status, "status_details": details})

    async def _speak(self, name: str) -> str:
        begun_s = self._loop.time()
        if self._has("speechless"):
            return "completed"
        for place, (at_s, sound_s) in enumerate(self._script.chunks):
            while (left_s := begun_s + at_s - self._loop.time()) > 0:
                await asyncio.sleep(min(left_s, 0.01))
                if self._loop.time() >= self._cut_s + self._script.runs_on_s - 1e-9:
                    return "cancelled"
            pcm = np.full(round(sound_s * RATE), 8000, "<i2")
            if place == 0:
                pcm[: round(self._script.quiet_s * RATE)] = 0
            audio = base64.b64encode(pcm.tobytes()).decode()
            if self._has("garbles"):
                audio = "%%%"
            place_of = {"response_id": name, "item_id": f"item_{name}", "content_index": 0}
            await self._send("response.output_audio.delta", delta=audio, **place_of)
            if self._has("stalls"):
                await asyncio.Event().wait()
        return "failed" if self._has("fails") else "completed"

    async def _error(self, code: str, event_id: str | None = None) -> None:
        await self._send("error", error={"code": code, "message": "no", "event_id": event_id})

    async def _send(self, kind: str, **fields: Any) -> None:
        name = BETA_NAMES.get(kind, kind) if self._script.dialect == "beta" else kind
        await self._connection.send(json.dumps({"type": name, "event_id": "e", **fields}))

    def _start(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    def _has(self, *names: str) -> bool:
        return self._server.has_fault(self._number, *names)


@asynccontextmanager
async def scripted_server(script: Script, folder: Path) -> AsyncIterator[tuple[ScriptedServer, Any]]:
    """Serve a script on a local socket -> the server, and the function that connects to it."""
    path = str(folder / "socket")
    server = ScriptedServer(script)
    async with unix_serve(server.serve, path, process_request=server.admit, compression=None):
        yield server, lambda url, **options: unix_connect(path, uri=url, **options)
