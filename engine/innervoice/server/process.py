"""The process of a server: its socket, its signals, and the end of its connections at SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvicorn

from innervoice.api.engine import Engine
from innervoice.runtime.stoppable_thread import start_pool
from innervoice.server.admission import Admission
from innervoice.server.app import make_app
from innervoice.server.context import ServerContext
from innervoice.server.draining import drain
from innervoice.server.metrics import ServerMetrics
from innervoice.server.options import ServerOptions
from innervoice.server.signer import Signer
from innervoice.server.transcriber import HttpTranscriber
from innervoice.server.vad.choose import load_network
from innervoice.server.vad.listener import SpeechListener

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SWITCH_S = 0.001  # for which a thread keeps the interpreter: the event loop waits for no longer


def make_context(engine: Engine, model_name: str, options: ServerOptions) -> ServerContext:
    """Make what the connections of a server share."""
    metrics = ServerMetrics(engine.collector())
    max_sessions = engine.parts.core.max_rows
    calls = ThreadPoolExecutor(2 * max_sessions + 4, thread_name_prefix="innervoice-call")
    start_pool(calls, 4)
    engine.start_threads()
    transcriber = None
    if options.transcription_url is not None:
        transcriber = HttpTranscriber(
            options.transcription_url, model=options.transcription_model, api_key=options.transcription_key
        )
    return ServerContext(
        engine=engine,
        model_name=model_name,
        options=options,
        metrics=metrics,
        admission=Admission(max_sessions),
        listener=SpeechListener(load_network(options.vad), metrics.vad),
        transcriber=transcriber,
        signer=Signer(options.secret),
        calls=calls,
    )


def bind(options: ServerOptions) -> socket.socket:
    """Take the address of a server, so that it is refused before a model is loaded. Raises OSError."""
    try:
        family, kind, *_, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        taken.bind(address)
    except OSError as error:
        raise OSError(
            f"{options.host}:{options.port} cannot be listened on ({error.strerror}): choose another host or port"
        ) from error
    return taken


def address_of(options: ServerOptions, taken: socket.socket) -> str:
    """The base URL of a server, without /v1."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{options.scheme}://{host}:{taken.getsockname()[1]}"


class _NoFaults(logging.Filter):
    """Drops what uvicorn logs as faults and is none: each refused upgrade has no answer, and a request that
    still runs when the server ends is cancelled.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record of the log stays."""
        is_cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        return not is_cancelled and record.msg != "ASGI callable returned without completing handshake."


_NO_FAULTS = _NoFaults()


class DrainingServer(uvicorn.Server):
    """A server whose running replies end and are played before SIGTERM or Ctrl+C ends it; a second one does at once."""

    def __init__(self, context: ServerContext, on_start: Callable[[], None] = lambda: None) -> None:
        options = context.options
        super().__init__(
            uvicorn.Config(
                make_app(context),
                log_level="warning",
                access_log=False,
                ws_max_size=options.max_message_bytes,
                ws_per_message_deflate=False,
                ws_ping_interval=20.0,
                ws_ping_timeout=20.0,
                ssl_certfile=options.ssl_certfile,
                ssl_keyfile=options.ssl_keyfile,
                timeout_graceful_shutdown=1,
                server_header=False,
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_NO_FAULTS)
        self._context = context
        self._on_start = on_start
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal, and end on the second, while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def caught(*_: Any) -> None:
            loop.call_soon_threadsafe(self.stop)

        before = {number: signal.signal(number, caught) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Begin to drain; the second time end at once. On the event loop."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._draining.cancel()
            self.should_exit = True

    async def _drain(self) -> None:
        await drain(self._context)
        self.should_exit = True


def serve(engine: Engine, model_name: str, options: ServerOptions, taken: socket.socket) -> None:
    """Serve until a signal ends it; then the engine is closed. taken: as `bind` made it."""
    sys.setswitchinterval(SWITCH_S)
    context = make_context(engine, model_name, options)
    address = address_of(options, taken)

    def announce() -> None:
        print(
            f"{model_name} is served at {address}/v1; to talk to it open {address}/ in a browser", flush=True
        )

    try:
        DrainingServer(context, announce).run([taken])
    finally:
        engine.close()
