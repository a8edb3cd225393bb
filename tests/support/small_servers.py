"""Servers of tests on a free port of loopback, each in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from innervoice.api.engine import Engine
from innervoice.server.context import ServerContext
from innervoice.server.options import ServerOptions
from innervoice.server.process import DrainingServer, address_of, bind, make_context

KEY = "key-of-the-tests"


@dataclass(frozen=True)
class RunningServer:
    """A server that listens. base: its address, without /v1."""

    base: str
    context: ServerContext
    server: DrainingServer

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.base.rsplit(":", 1)[1])

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the server runs on."""
        return self.server.servers[0].get_loop()

    def client(self, key: str | None = KEY, **options: Any) -> httpx2.Client:
        """An HTTP client of this server, which gives the key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.base, headers=headers, timeout=60.0, **options)


@contextmanager
def running_server(
    engine: Engine, around: Callable[[Any], Any] = lambda app: app, **options: Any
) -> Iterator[RunningServer]:
    """Serve an engine while the block runs; the engine stays open.

    around: wraps the ASGI application. options: of `ServerOptions`.
    """
    made = ServerOptions(**{"port": 0, "api_keys": (KEY,), "vad": "energy", "drain_s": 5.0} | options)
    taken: socket.socket = bind(made)
    context = make_context(engine, "tiny", made)
    started = threading.Event()
    server = DrainingServer(context, started.set)
    server.config.app = around(server.config.app)
    thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
    thread.start()
    try:
        assert started.wait(30), "the server did not start"
        yield RunningServer(address_of(made, taken), context, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds. Raises AssertionError when it does not in time."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until_s, "it did not come to pass in time"
        time.sleep(0.01)
