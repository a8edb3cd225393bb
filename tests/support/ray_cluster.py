"""A cluster of Ray on this machine with replicas of the server, and callers of it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from paths import ROOT
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

APPLICATION = "innervoice"
PATIENCE_S = 300.0
SLOW_MACHINE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


class Caller:
    """One client of the Realtime protocol, with extensions; replies are greedy."""

    def __init__(self, port: int, **query: str) -> None:
        query = query or {"innervoice": "1"}
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        self.socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}/v1/realtime?{asked}",
            open_timeout=PATIENCE_S,
            compression=None,
            ping_interval=None,  # nobody reads while replicas change
            max_queue=None,
            legacy=True,
        )
        self.times_s: list[float] = []  # at which sound came
        self.sound = b""
        self.session = self.until("session.created")["session"]
        self.token: str = self.session["innervoice"]["resume_token"]
        if "resume" not in query:
            settings = {
                "audio": {"input": {"turn_detection": None}},
                "temperature": 0.0,
                "max_output_tokens": 60,
            }
            self.send("session.update", session=settings)
            self.until("session.updated")

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def until(self, type: str) -> dict[str, Any]:
        """Read on to the next event of a type. Raises ConnectionClosed."""
        while True:
            event: dict[str, Any] = json.loads(self.socket.recv(timeout=PATIENCE_S))
            if event["type"] == "response.output_audio.delta":
                self.times_s.append(time.monotonic())
                self.sound += base64.b64decode(event["delta"])
            if event["type"] == type:
                return event

    def ask(self, text: str) -> None:
        """Ask, and wait for nothing."""
        self.sound = b""
        self.times_s = []
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        self.send("conversation.item.create", item=item)
        self.send("response.create")

    def answer(self) -> bytes:
        """Wait for the reply -> its sound."""
        done = self.until("response.done")["response"]
        assert done["status"] in ("completed", "incomplete"), done  # at its end, or at its most tokens
        return self.sound

    def turn(self, text: str) -> bytes:
        """Ask, and wait for the reply -> its sound."""
        self.ask(text)
        return self.answer()

    def closed(self) -> int:
        """Read until the connection is closed -> its code."""
        try:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        except ConnectionClosed as error:
            return 1006 if error.rcvd is None else error.rcvd.code

    def hang_up(self) -> None:
        self.socket.close()


class Cluster:
    """Replicas behind one port."""

    def __init__(self, model: Path, port: int) -> None:
        self.port = port
        self._model = model
        self._options: dict[str, Any] = {}

    def deploy(self, replicas: int, **server: Any) -> None:
        """Run so many replicas, as `serve deploy` does, and wait until they serve.

        server: options, whose change replaces all replicas, each once its successor serves.
        """
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self._options |= server
        arguments = {
            "model": str(self._model),
            "served_name": "tiny",
            "name": APPLICATION,
            "engine": {"device": "cpu", "max_sessions": 32, "vocoder_noise": False},
            "server": {"vad": "energy", "max_output_tokens": 60, **self._options},
        }
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "innervoice.server.ray:build",
            "args": arguments,
            "deployments": [{"name": "Replica", "num_replicas": replicas, "max_surge_percent": 100}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            found = serve.status().applications.get(APPLICATION)
            if found is not None and found.status == "RUNNING":
                states = {str(name): num for name, num in found.deployments["Replica"].replica_states.items()}
                if states == {"RUNNING": replicas}:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the replicas do not run: {serve.status()}")

    def homes(self, callers: list[Caller]) -> list[str]:
        """Name the replica of each caller."""
        from innervoice.server.ray.session_hub import SessionHub

        async def ask() -> list[str | None]:
            hub = SessionHub(APPLICATION)
            return [await hub.home(caller.token) for caller in callers]

        found = asyncio.run(ask())
        assert None not in found, "a session is in no directory"
        return [str(home) for home in found]

    def saved_bytes(self) -> tuple[int, int]:
        """Sessions and bytes in the directory."""
        from innervoice.server.ray.session_hub import SessionHub

        return asyncio.run(SessionHub(APPLICATION).size())

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def replica_pids(self) -> list[int]:
        """The processes of replicas, by the title that Ray gives them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                title = path.read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if f"ServeReplica:{APPLICATION}:".encode() in title:
                found.append(int(path.parent.name))
        return sorted(found)

    def kill(self, pid: int) -> None:
        """End a replica without a word."""
        assert pid in self.replica_pids()
        os.kill(pid, signal.SIGKILL)


@contextmanager
def running_cluster(model: Path) -> Iterator[Cluster]:
    """Start Ray, with a proxy on a free port; both end with the block."""
    paths = f"{ROOT / 'engine'}{os.pathsep}{ROOT / 'kernels'}"
    before = dict(os.environ)
    os.environ.update({name: value for name, value in SLOW_MACHINE.items() if name not in os.environ})
    os.environ["PYTHONPATH"] = paths
    os.environ.pop("RAY_ADDRESS", None)  # tests disturb nobody's cluster
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from innervoice.server.ray.session_hub import SessionHub

    try:
        ray.init(
            num_cpus=8,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            logging_level="warning",
            log_to_driver=False,
        )
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield Cluster(model, port)
    finally:
        serve.shutdown()
        SessionHub(APPLICATION).end()
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
