"""A cluster of Ray on this machine with replicas of the server, and callers of it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from paths import ROOT
from realtime_callers import RATE, Tally, listen, question, say
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from innervoice.runtime.playback import Playback
from innervoice.telemetry.metrics import find_underruns

APPLICATION = "innervoice"
TEXTS = ("What is the weather like?", "And tomorrow?", "Thank you.")
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
        self.heard: list[tuple[float, int]] = []  # when sound came, and its samples
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
                delta = base64.b64decode(event["delta"])
                self.heard.append((time.monotonic(), len(delta) // 2))
                self.sound += delta
            if event["type"] == type:
                return event

    def ask(self, text: str) -> None:
        """Ask, and wait for nothing."""
        self.sound = b""
        self.heard = []
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

    @property
    def gap_s(self) -> float:
        """The longest silence in the last reply, for a player that begins with its first sound."""
        return find_underruns(self.heard, RATE).max_s

    @property
    def played_s(self) -> float:
        """The time at which that player has played all of the last reply."""
        playback = Playback()
        for time_s, samples in self.heard:
            playback.send(time_s, samples / RATE)
        return playback.dry_s

    def closed(self) -> int:
        """Read until the connection is closed -> its code."""
        try:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        except ConnectionClosed as error:
            return 1006 if error.rcvd is None else error.rcvd.code

    def hang_up(self) -> None:
        self.socket.close()

    def vanish(self) -> None:
        """Lose the connection without a word, if there is one."""
        with suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        self.closed()


class SpeakingCallers:
    """Clients that speak in real time and hear the replies, turn after turn, each in one session until they are stopped.

    A thread has their event loop. At the end of the block every call ends after its reply, and what went wrong in one is
    raised. tokens: of their sessions. replies: how each caller's replies ended.
    """

    def __init__(self, port: int) -> None:
        self._url = f"ws://127.0.0.1:{port}/v1/realtime?innervoice=1"
        self._sound = question()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._is_over = False
        self._calls: list[Future[None]] = []
        self.tokens: list[str] = []
        self.replies: list[list[str]] = []

    def call(self, num: int, every_s: float = 0.2) -> list[str]:
        """Have so many more callers, one after another -> the tokens of their sessions."""
        before = len(self.tokens)
        for i in range(num):
            self.replies.append([])
            talk = self._talk(self.replies[-1])
            self._calls.append(asyncio.run_coroutine_threadsafe(talk, self._loop))
            wait_for(lambda i=i: len(self.tokens) > before + i)  # type: ignore[misc]
            time.sleep(every_s)
        return self.tokens[before:]

    def __enter__(self) -> SpeakingCallers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over = True
        ends = wait(self._calls, PATIENCE_S if kind is None else 0.0)
        for call in ends.not_done:
            call.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if kind is None:
            assert not ends.not_done, "a call did not end"
            for call in self._calls:
                call.result()

    async def _talk(self, replies: list[str]) -> None:
        async with connect_async(self._url, open_timeout=PATIENCE_S, ping_interval=None) as connection:
            created = json.loads(await connection.recv())
            self.tokens.append(created["session"]["innervoice"]["resume_token"])
            session = {"type": "realtime", "max_output_tokens": 60}
            await connection.send(json.dumps({"type": "session.update", "session": session}))
            while not self._is_over:
                speaking = asyncio.create_task(say(connection, self._sound))
                try:
                    replies.append(await asyncio.wait_for(listen(connection, Tally()), PATIENCE_S))
                    await speaking
                finally:
                    speaking.cancel()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(is_so: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait until something is so. Raises AssertionError."""
    until_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until_s, f"it did not come true in {seconds:g} s"
        time.sleep(0.1)


class Cluster:
    """Replicas behind one port."""

    def __init__(self, model: Path, port: int) -> None:
        self.port = port
        self._model = model
        self._options: dict[str, Any] = {}

    def deploy(self, replicas: int, *, scaling: dict[str, Any] | None = None, **server: Any) -> None:
        """Run so many replicas, as `serve deploy` does, and wait until they serve.

        scaling: the configuration that sets their number instead, beginning with so many. server: options, whose
        change replaces all replicas, each once its successor serves.
        """
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        self._options |= server
        number = {"num_replicas": replicas} if scaling is None else {"autoscaling_config": scaling}
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
            "deployments": [{"name": "Replica", "max_surge_percent": 100, **number}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        self.wait_for_replicas(replicas)

    def wait_for_replicas(self, num: int) -> None:
        """Wait until so many replicas serve, and no others are there."""
        from ray import serve

        def is_so() -> bool:
            found = serve.status().applications.get(APPLICATION)
            if found is None or found.status != "RUNNING":
                return False
            states = found.deployments["Replica"].replica_states
            return {str(name): count for name, count in states.items()} == {"RUNNING": num}

        wait_for(is_so)

    def homes(self, keys: Iterable[str], seconds: float = 20.0) -> list[str]:
        """Name the replica of each session or answer, once the directory has all of them.

        seconds: for which that is waited for: a state is on its way when its turn ends.
        """
        from innervoice.server.ray.session_hub import SessionHub

        asked = list(keys)

        async def ask() -> list[str | None]:
            hub = SessionHub(APPLICATION)
            return [await hub.home(key) for key in asked]

        until_s = time.monotonic() + seconds
        while None in (found := asyncio.run(ask())):
            assert time.monotonic() < until_s, f"{found.count(None)} sessions are in no directory"
            time.sleep(0.1)
        return [str(home) for home in found]

    def saved_bytes(self) -> tuple[int, int]:
        """Sessions and bytes in the directory."""
        from innervoice.server.ray.session_hub import SessionHub

        return asyncio.run(SessionHub(APPLICATION).size())

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def kill(self, replica: str) -> None:
        """End a replica without a word."""
        from ray._private.state import actors

        [pid] = [one["Pid"] for one in actors().values() if (one["Name"] or "").endswith(f"#{replica}")]
        os.kill(pid, signal.SIGKILL)

    def restart_directory(self) -> None:
        """End the directory's process, which Ray starts anew, and wait for that."""
        import ray

        from innervoice.server.ray.session_hub import NAMESPACE, SessionHub

        async def lives() -> tuple[str, ...]:
            try:
                return await SessionHub(APPLICATION).lives()
            except ray.exceptions.RayActorError:  # it is being started
                return ()

        before = asyncio.run(lives())
        ray.kill(ray.get_actor(f"{APPLICATION}-sessions-0", namespace=NAMESPACE), no_restart=False)
        wait_for(lambda: asyncio.run(lives()) not in ((), before))

    def secret(self) -> bytes:
        """The secret that all replicas sign with."""
        from innervoice.server.ray.session_hub import SessionHub

        return asyncio.run(SessionHub(APPLICATION).secret())


def replicas_in_figures(client: httpx2.Client) -> set[str]:
    """The replicas whose figures /metrics has."""
    lines = [line for line in client.get("/metrics").text.splitlines() if 'replica="' in line]
    return {line.split('replica="')[1].split('"')[0] for line in lines}


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
            address="local",  # and no cluster that was left running here
            num_cpus=8,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            logging_level="warning",
            log_to_driver=False,
        )
        port = free_port()
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield Cluster(model, port)
    finally:
        serve.shutdown()
        SessionHub(APPLICATION).end()
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
