"""Replica: an engine and a server, as an actor of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp, Message, Scope

from innervoice.api.engine import Engine
from innervoice.api.options import EngineOptions
from innervoice.api.preparation import prepare
from innervoice.server.access import Access
from innervoice.server.app import make_app
from innervoice.server.chat.kept import KeptAnswer
from innervoice.server.cluster.report import ReplicaReport
from innervoice.server.context import STORE_S
from innervoice.server.draining import drain
from innervoice.server.errors import ApiError
from innervoice.server.options import ServerOptions
from innervoice.server.process import SWITCH_S, make_context
from innervoice.server.ray.ingress import FIGURES_S, Ingress
from innervoice.server.ray.relay import ReplicaLost, answer_here, lost
from innervoice.server.ray.session_hub import ReplicaStore, SessionHub, session_key
from innervoice.server.realtime.openings import save_all, store_unavailable

GONE_S = 1.0  # for which a replica must be out of the list before it drains
WATCH_S = 5.0  # between looks at whether a directory was started anew
SESSION_S = 3600.0  # for which a session of HTTP requests stays with its replica
PLAIN = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip
GONE = (RayActorError, RayServeException)  # what a call to a replica raises that is not there
log = logging.getLogger("innervoice")


@dataclass(frozen=True)
class ReplicaSettings:
    """The model and the options of all replicas; engine: of `EngineOptions`, server: of `ServerOptions`, hub: of
    `SessionHub`.
    """

    model: str
    name: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    hub: Mapping[str, Any] = field(default_factory=dict)


class Replica:
    """One engine behind the server's ASGI application. Its methods run on one event loop, but for `on_replicas`."""

    async def __init__(self, settings: ReplicaSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        sys.setswitchinterval(SWITCH_S)
        context = serve.get_replica_context()
        self._name: str = context.replica_tag
        self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        self._loop = asyncio.get_running_loop()
        self._hub = SessionHub(**settings.hub)
        options = ServerOptions(**{"secret": await self._hub.secret()} | dict(settings.server))
        self._lives, self._watched_s = await self._hub.lives(), time.monotonic()
        prepared = prepare(settings.model, EngineOptions().changed(**settings.engine))
        prepared.check(None, schedule=options.schedule)
        self._engine = await self._loop.run_in_executor(None, Engine.load, prepared)
        self._server = make_context(self._engine, settings.name, options)
        self._store = ReplicaStore(self._hub, self._name)
        self._server.store = self._store
        self._server.kept.on_keep = self._leave_answer
        self._names: frozenset[str] = frozenset()
        self._is_connected = self._is_listed = False
        self._num_reports = 0
        self._recording = asyncio.Lock()
        self._draining: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Make the application that Ray Serve passes requests to."""
        self._app = make_app(self._server)
        options = self._server.options
        access = Access(options.api_keys, self._server.signer)
        return Ingress(self._app, self._name, self, access, options.max_message_bytes)

    async def __del__(self) -> None:
        if hasattr(self, "_engine"):  # not where it could not be loaded
            self._engine.close()

    def check_health(self) -> None:
        """Raise ApiError once the engine has stopped: Ray Serve replaces the replica then."""
        self._server.check_engine()

    async def record_routing_stats(self) -> dict[str, Any]:
        """Report to the routers, every half second."""
        if not self._is_connected:
            self._is_connected = True
            self._start(self._connect())
        if time.monotonic() >= self._watched_s + WATCH_S:
            self._watched_s = time.monotonic()
            self._start(self._watch_directories())
        return (await self._report()).to_dict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report to the policy that sets the number of replicas."""
        report = await self._report()
        return {name: float(value) for name, value in report.to_dict().items()}

    async def ping(self) -> str:
        """Answer with the replica's name."""
        return self._name

    async def figures(self, name: str) -> str | None:
        """The figures of this replica's server and engine for Prometheus, None: another one was asked."""
        if name != self._name:
            return None
        text: bytes = await self._loop.run_in_executor(self._server.calls, self._server.metrics.to_text)
        return text.decode()

    async def record(self, name: str, seconds: float) -> bytes | None:
        """Record this replica's engine for a while -> Chrome trace JSON, for Perfetto; None: another one was asked."""
        if name != self._name:
            return None
        async with self._recording:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                with self._engine.trace(path):
                    await asyncio.sleep(seconds)
                return path.read_bytes()

    async def answer_for(self, audio_id: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Answer a request that came to another replica -> the ASGI messages of the answer.

        The call comes here as well when the replica went that had the earlier answer: it is taken over then.
        """
        if self._server.kept.find(audio_id) is None:
            await self.take_answer(audio_id)
        async for message in answer_here(self._app, scope, body):
            yield message

    def on_replicas(self, names: set[str]) -> None:
        """Take the names of the replicas that run; one that is no longer among them drains. Any thread."""
        self._loop.call_soon_threadsafe(self._take_names, frozenset(names))

    # What the ingress asks of the other replicas.

    async def home_of_answer(self, audio_id: str) -> str | None:
        """Name the other replica that has an answer; one whose replica is gone is taken over, and is here then."""
        if self._server.kept.find(audio_id) is not None:
            return None
        try:
            async with asyncio.timeout(STORE_S):
                home = await self._hub.home(audio_id)
        except Exception as error:
            log.warning("the directory of sessions does not answer: %r", error)
            raise store_unavailable() from None
        if home is None or (home in self._names and home != self._name):
            return home
        await self.take_answer(audio_id)
        return None

    async def take_answer(self, audio_id: str) -> None:
        """Take an earlier answer over, if there is one."""
        try:
            async with asyncio.timeout(STORE_S):
                taken = await self._store.take(audio_id)
        except Exception as error:
            log.warning("the directory of sessions does not answer: %r", error)
            raise store_unavailable() from None
        if taken is not None:
            self._server.kept.add(msgspec.msgpack.decode(taken[0], type=KeptAnswer))

    async def answer(self, replica: str, audio_id: str, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Have a request answered by another replica."""
        handle = self._handle.options(stream=True, session_id=replica)
        plain = {name: scope[name] for name in PLAIN if name in scope}
        try:
            async for message in handle.answer_for.remote(audio_id, plain, body):
                yield message
        except GONE as error:
            raise ReplicaLost(f"{replica}: {error!r}"[:300]) from error

    async def other_figures(self, name: str) -> str | None:
        """Ask another replica for its figures, None: it did not answer in time."""
        try:
            async with asyncio.timeout(FIGURES_S):
                text: str | None = await self._handle.options(session_id=name).figures.remote(name)
                return text
        except Exception as error:
            log.warning("replica %s gave no figures: %r", name, error)
            return None

    async def all_figures(self) -> dict[str, str]:
        """Ask all others for their figures."""
        names = sorted(self._names - {self._name})
        texts = await asyncio.gather(*(self.other_figures(name) for name in names))
        return {name: text for name, text in zip(names, texts, strict=True) if text is not None}

    async def trace(self, replica: str | None, seconds: float) -> bytes:
        """Record a replica, None: this one. Raises ApiError for one that there is not."""
        made: bytes | None = None
        if replica in (None, self._name):
            made = await self.record(self._name, seconds)
        elif replica in self._names:
            try:
                made = await self._handle.options(session_id=replica).record.remote(replica, seconds)
            except GONE as error:
                log.warning("replica %s gave no trace: %r", replica, error)
                raise lost() from error
        if made is None:
            known = ", ".join(sorted(self._names)) or self._name
            raise ApiError(
                "invalid_value", f"there is no replica {str(replica)[:40]!r}: use one of {known}", "replica"
            )
        return made

    def claim(self, session: str) -> None:
        """Note that requests of a session come here from now on."""
        self._start(self._store.save(session_key(session), None, SESSION_S))

    async def _report(self) -> ReplicaReport:
        admission = self._server.admission
        forecast = await self._loop.run_in_executor(self._server.calls, self._engine.forecast)
        self._num_reports += 1
        return ReplicaReport(
            number=self._num_reports,
            first_audio_s=forecast.first_audio_s,
            num_sessions=admission.num_held,
            max_sessions=admission.max_sessions,
            num_running=forecast.num_running + forecast.num_waiting,
            is_draining=admission.is_draining,
        )

    async def _connect(self) -> None:
        """Have a router in this process, which hears of all replicas."""
        await self._handle.options(session_id=self._name).ping.remote()

    async def _watch_directories(self) -> None:
        """Leave everything once more in directories that were started anew, or did not take a state."""
        lives = await self._hub.lives()
        before, self._lives = self._lives, lives
        if lives == before and not self._store.is_behind:
            return
        self._store.is_behind = False
        log.warning(
            "a directory of sessions was started anew, or did not answer: all sessions are saved again"
        )
        save_all(self._server)
        for reply in self._server.kept.all():
            await self._save_answer(reply)

    def _take_names(self, names: frozenset[str]) -> None:
        self._names = names
        if self._name in names:
            self._is_listed = True
        elif self._is_listed and self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Hand all sessions over, once this replica is out of the list for good."""
        await asyncio.sleep(GONE_S)
        if self._name in self._names:
            self._draining = None
            return
        log.info("replica %s drains %d sessions", self._name, self._server.admission.num_held)
        await drain(self._server)

    def _leave_answer(self, reply: KeptAnswer) -> None:
        self._start(self._save_answer(reply))

    async def _save_answer(self, reply: KeptAnswer) -> None:
        keep_s = max(0.0, reply.expires_at - time.time())
        await self._store.save(reply.audio_id, msgspec.msgpack.encode(reply), keep_s)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a call to the cluster failed: %r", task.exception())
