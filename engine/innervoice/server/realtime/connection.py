"""Connection: a WebSocket of the Realtime protocol, from its first event to its close code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from innervoice.server.context import Opening, ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.openings import Hosted, new_writer, open_hosted
from innervoice.server.realtime.protocol import server_events
from innervoice.server.realtime.protocol.client_events import AnyClientEvent, AudioAppend, BadEvent, decode
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.sound_format import MAX_APPEND_BYTES
from innervoice.server.realtime.writer import SlowReader
from innervoice.types import EngineDead, OutOfCapacity

log = logging.getLogger(__name__)
CLOSE_S = 3.0
PART_BYTES = 96_000
CLEAN_CODES = (1000,)  # with 1001 a browser leaves a page, which may be loaded again
TAKEN_OVER = 4001
TRY_AGAIN = (429, 503)
REASONS = {1001: "drained", 1011: "engine", TAKEN_OVER: "taken_over"}


@dataclass(frozen=True)
class Closing:
    """The end of a connection.

    code: of the close frame, None: the client is gone. reason: the server's name for it. error: what is sent
    before. is_clean: whether the session ends as well.
    """

    code: int | None
    reason: str
    error: ApiError | None = None
    is_clean: bool = True


async def serve_connection(websocket: WebSocket, server: ServerContext, opening: Opening) -> None:
    """Serve an accepted WebSocket until it is closed. Raises nothing."""
    connection = Connection(websocket, server, opening)
    server.live.add(connection)
    server.metrics.session_started(opening.dialect)
    end = Closing(1011, "error")
    try:
        end = await connection.serve()
    except Exception:
        log.exception("a connection failed")
        await connection.close_socket(1011)
    finally:
        server.live.discard(connection)
        server.metrics.session_ended(opening.dialect, end.reason)


class Connection:
    """One socket, and the conversation on it."""

    def __init__(self, socket: WebSocket, server: ServerContext, opening: Opening) -> None:
        self._socket = socket
        self._server = server
        self._opening = opening
        self._hosted: Hosted | None = None
        self._end: asyncio.Future[Closing] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._num_bad = 0

    @property
    def is_busy(self) -> bool:
        """Whether a reply runs, or is still being played by the estimate."""
        return self._hosted is not None and self._hosted.conversation.is_busy

    async def end(self, code: int, error: ApiError) -> None:
        """Send the error, close with the code, and wait until that is done; any number of times."""
        server = self._server
        goes_on = code == TAKEN_OVER or (server.store is not None and server.admission.is_draining)
        self._finish(Closing(code, REASONS.get(code, "error"), error, is_clean=not goes_on))
        await self._over.wait()

    async def serve(self) -> Closing:
        """Serve the socket until it is closed -> the end."""
        try:
            hosted = await self._open()
            if hosted is None:
                return self._end.result()
            self._hosted = hosted
            return await self._run(hosted)
        finally:
            self._over.set()

    async def _open(self) -> Hosted | None:
        """Make a conversation, or take one over; None: it was refused."""
        try:
            return await open_hosted(self._server, self._opening, self)
        except ApiError as error:
            await self._refuse(Closing(1013 if error.status in TRY_AGAIN else 1008, "error", error))
        except OutOfCapacity as error:
            refused = ApiError("session_limit_reached", f"{error}.", type="rate_limit_error")
            await self._refuse(Closing(1013, "error", refused))
        except EngineDead as error:
            await self._refuse(Closing(1011, "engine", dead(error)))
        return None

    async def _refuse(self, end: Closing) -> None:
        """Close a socket that has no conversation."""
        await self._close_with(end)
        self._finish(end)

    async def _close_with(self, end: Closing) -> None:
        """Send the error past the conversation's queue, and close the socket."""
        if end.error is not None:
            writer = new_writer(self._server, self._opening)
            writer.put(server_events.error(end.error, None) | {"event_id": new_id("event")})
            writer.close()
            self._server.metrics.error(end.error.code)
            with contextlib.suppress(Exception):
                await writer.run(self._socket.send_text)
        if end.code is not None:
            await self.close_socket(end.code)

    async def _run(self, hosted: Hosted) -> Closing:
        scope = hosted.conversation.scope
        scope.on_engine_dead = lambda error: self._finish(Closing(1011, "engine", dead(error)))
        loop = asyncio.get_running_loop()
        age = loop.call_later(max(0.0, hosted.expires_s - scope.clock()), self._expire)
        reader = loop.create_task(self._read(hosted))
        writer = loop.create_task(self._write(hosted))
        try:
            end = await self._end
        finally:
            age.cancel()
            reader.cancel()
        await self._close(hosted, end, writer)
        return end

    async def _close(self, hosted: Hosted, end: Closing, writer: asyncio.Task[None]) -> None:
        """Send the last error, close the socket, and give back or keep the conversation."""
        conversation = hosted.conversation
        is_kept = not end.is_clean and hosted.is_resumable
        if is_kept and end.code is not None and end.code != TAKEN_OVER:
            await hosted.keep()
        if not is_kept:
            conversation.close_quietly()
            if end.error is not None:
                conversation.scope.send_error(end.error, None)
            conversation.scope.writer.close()
            if end.code is not None:
                await asyncio.wait({writer}, timeout=0.0 if end.reason == "slow" else CLOSE_S)
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await writer
        if is_kept:
            await self._close_with(end)
        elif end.code is not None:
            await self.close_socket(end.code)
        self._over.set()
        await hosted.leave(self, is_kept)

    async def _read(self, hosted: Hosted) -> None:
        scope = hosted.conversation.scope
        idle_s = self._server.options.idle_s
        while True:
            await scope.writer.control_room()
            await scope.lane.room()
            try:
                async with asyncio.timeout(idle_s):
                    message = await self._socket.receive()
            except TimeoutError:
                error = ApiError("session_idle", f"The client sent nothing for {idle_s:g} s: connect again.")
                self._finish(Closing(1001, "idle", error))
                return
            if message["type"] == "websocket.disconnect":
                code = message.get("code", 1005)
                self._finish(Closing(None, "client", is_clean=code in CLEAN_CODES))
                return
            await self._take(hosted, message.get("text") or message.get("bytes") or b"")

    async def _take(self, hosted: Hosted, message: str | bytes) -> None:
        """Handle one message; what is wrong with it stays with it."""
        scope = hosted.conversation.scope
        metrics = self._server.metrics
        self._num_bad += 1
        try:
            event = decode(message)
        except BadEvent as bad:
            metrics.event("in", "unknown")
            scope.send_error(bad.error, bad.event_id)
        else:
            metrics.event("in", str(type(event).__struct_config__.tag))
            try:
                for part in in_parts(event):
                    await hosted.conversation.turns.audio.room()
                    hosted.conversation.handle(part)
                    await asyncio.sleep(0)
                self._num_bad = 0
            except ApiError as error:
                scope.send_error(error, event.event_id)
            except Exception as error:
                scope.report_failure(error, event.event_id)
        if self._num_bad >= self._server.options.max_bad_events:
            refused = ApiError("too_many_errors", f"{self._num_bad} events in a row were refused.")
            self._finish(Closing(1008, "abuse", refused))

    async def _write(self, hosted: Hosted) -> None:
        try:
            await hosted.write(self._socket.send_text)
        except SlowReader as error:
            self._finish(Closing(1008, "slow", ApiError("slow_reader", f"{error}.")))
        except (WebSocketDisconnect, RuntimeError, OSError):
            self._finish(Closing(None, "client", is_clean=False))

    def _expire(self) -> None:
        age_s = self._server.options.max_session_s
        error = ApiError("session_expired", f"Your session hit the maximum duration of {age_s:g} s.")
        self._finish(Closing(1001, "expired", error))

    def _finish(self, end: Closing) -> None:
        if not self._end.done():
            self._end.set_result(end)

    async def close_socket(self, code: int) -> None:
        """Send the close frame, if the client still takes one."""
        if WebSocketState.DISCONNECTED in (self._socket.client_state, self._socket.application_state):
            return
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._socket.close(code), CLOSE_S)


def dead(error: BaseException) -> ApiError:
    """The error that the clients of a dead engine get."""
    return ApiError("server_error", f"The engine has stopped: {error}.", type="server_error", status=503)


def in_parts(event: AnyClientEvent) -> Iterator[AnyClientEvent]:
    """Divide an event with seconds of sound, so that other connections get their turn between its parts."""
    size = len(event.audio) if isinstance(event, AudioAppend) else 0
    if not isinstance(event, AudioAppend) or not PART_BYTES < size <= MAX_APPEND_BYTES or size % 2:
        yield event
        return
    for start in range(0, size, PART_BYTES):
        yield AudioAppend(event_id=event.event_id, audio=event.audio[start : start + PART_BYTES])
