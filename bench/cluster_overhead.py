"""The server behind Ray Serve's proxy against the plain one: an event and its answer, first sound, chunks, replies.

Both run at the same time, with the packaged tiny checkpoint, and one caller asks them in turn, so that what else the machine
does falls on both alike. Needs the extras `server` and `ray`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from bench.record import ROOT, Record, Times, device_name, parser, report
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

TINY = ROOT / "engine" / "innervoice" / "assets" / "tiny"
OPTIONS = (
    "--device", "cpu", "--vocoder-noise", "off", "--max-sessions", "16", "--vad", "energy"
)  # fmt: skip
SETTINGS = {"audio": {"input": {"turn_detection": None}}, "temperature": 0.0, "max_output_tokens": 60}
QUESTION = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "What is the weather like?"}],
}
PATIENCE_S = 240.0
REPLICAS = 2
NUM_ANSWERS = 40  # refused events a round


@dataclass
class Waits:
    """Seconds that one caller waited for a server, from the question on."""

    answer_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)
    reply_s: list[float] = field(default_factory=list)


class Caller:
    """One session, which asks the same every time."""

    def __init__(self, port: int) -> None:
        self._socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}/v1/realtime",
            open_timeout=PATIENCE_S,
            compression=None,
            ping_interval=None,
        )
        self._until("session.created")
        self._send("session.update", session={"type": "realtime"} | SETTINGS)
        self._until("session.updated")

    def answer(self, waits: Waits) -> None:
        """Ask for an item that there is not."""
        begun_s = time.perf_counter()
        self._send("conversation.item.retrieve", item_id="none")
        self._until("error")
        waits.answer_s.append(time.perf_counter() - begun_s)

    def reply(self, waits: Waits) -> None:
        """Ask for a reply, and hear it."""
        begun_s = time.perf_counter()
        self._send("conversation.item.create", item=QUESTION)
        self._send("response.create")
        chunk_s = list[float]()
        while (event := self._next())["type"] != "response.done":
            if event["type"] == "response.output_audio.delta":
                chunk_s.append(time.perf_counter() - begun_s)
        waits.first_s.append(chunk_s[0])
        waits.chunk_s += chunk_s
        waits.reply_s.append(time.perf_counter() - begun_s)

    def hang_up(self) -> None:
        self._socket.close()

    def _send(self, type: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"type": type, **fields}))

    def _next(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE_S))
        return event

    def _until(self, type: str) -> None:
        while self._next()["type"] != type:
            pass


@contextmanager
def running_server(*more: str) -> Iterator[int]:
    """Start `innervoice serve` -> its port, once a session was held."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    paths = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels")])
    words = [
        sys.executable, "-m", "innervoice", "serve", "--model", str(TINY), "--port", str(port), *OPTIONS, *more
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}
    server = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait(server, port)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE_S)


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        if server.poll() is not None:
            raise RuntimeError(f"innervoice serve ended with {server.returncode}")
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/ready", timeout=5.0).status_code == 200:
                caller = Caller(port)
                caller.reply(Waits())
                caller.hang_up()
                return
        except (httpx2.HTTPError, OSError, ConnectionClosed, InvalidHandshake):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"innervoice serve was not ready in {PATIENCE_S:g} s")


def measured(ports: dict[str, int], rounds: int, num_replies: int) -> dict[str, Waits]:
    """Ask the servers in turn, in each round by a new session."""
    made = {name: Waits() for name in ports}
    for _ in range(rounds):
        callers = {name: Caller(port) for name, port in ports.items()}
        for _ in range(NUM_ANSWERS):
            for name, caller in callers.items():
                caller.answer(made[name])
        for _ in range(num_replies):
            for name, caller in callers.items():
                caller.reply(made[name])
        for caller in callers.values():
            caller.hang_up()
    return made


def records(rounds: int, num_replies: int) -> Iterator[Record]:
    """A record of each wait: by Ray Serve, and the plain server's as the peer."""
    with ExitStack() as servers:
        ports = {
            "plain": servers.enter_context(running_server()),
            "ray": servers.enter_context(running_server("--replicas", str(REPLICAS))),
        }
        made = measured(ports, rounds, num_replies)
    names = {
        "answer_s": "an event and its answer",
        "first_s": "first sound",
        "chunk_s": "a chunk of sound",
        "reply_s": "a reply of 60 tokens",
    }
    for attribute, name in names.items():
        ours, peer = (Times(tuple(getattr(made[key], attribute)), 1) for key in ("ray", "plain"))
        details = {"p99": _p99_ms(ours), "peer_p99": _p99_ms(peer), "peer_n": peer.n}
        shape = f"tiny, {REPLICAS} replicas, 1 caller"
        common: dict[str, Any] = {"unit": "ms", "device": device_name("cpu"), "peer_name": "plain server"}
        yield Record.of(name, shape, ours, peer=peer, details=details, **common)


def _p99_ms(times: Times) -> float:
    ordered = sorted(times.seconds)
    return 1e3 * ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]


def main() -> None:
    """Measure, and print and write the records."""
    given = parser(__doc__).parse_args()
    report(records(1 if given.quick else 4, 2 if given.quick else 10), given.json)


if __name__ == "__main__":
    main()
