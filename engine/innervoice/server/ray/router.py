"""FirstAudioRouter: which replica gets a request; runs in Ray Serve's proxies, and in replicas that pass requests on."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from typing import Any
from urllib.parse import parse_qs

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from innervoice.server.cluster.placement import STALE_S, Candidate, FirstAudio
from innervoice.server.cluster.report import ReplicaReport
from innervoice.server.ray.session_hub import SessionHub, session_key

HOME_S = 1.0  # that a directory may take to answer
log = logging.getLogger("innervoice")


class FirstAudioRouter(RequestRouter):
    """Requests of a session go to the replica that has it, all others to the one that answers first.

    A session is named by `?resume=TOKEN` or by the header x-session-id; the name of a replica stands for itself.
    """

    def initialize_state(self, hub: dict[str, Any], stale_s: float = STALE_S) -> None:
        """Take the options of the deployment. hub: arguments of `SessionHub`."""
        self._hub = SessionHub(**hub)
        self._placement = FirstAudio(stale_s=stale_s)
        # Number of each replica's last report, and when it came.
        self._seen: dict[str, tuple[int, float]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas, the best first."""
        replicas = {one.replica_id.unique_id: one for one in candidate_replicas}
        home = await self._home_of(pending_request, replicas)
        if home is not None:
            return [[replicas[home]]]
        order = self._placement.order([self._candidate(name, one) for name, one in replicas.items()])
        return [[replicas[name]] for name in order]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that run now, and pass their names to the one in this process."""
        super().update_replicas(replicas)
        names = {one.replica_id.unique_id for one in replicas}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        self._placement.note([self._candidate(one.replica_id.unique_id, one) for one in replicas])
        try:
            context = serve.get_replica_context()
        except RayServeException:
            return  # a proxy, or the command line
        if context.replica_id.deployment_id == self._deployment_id:
            context.servable_object.on_replicas(names)

    async def _home_of(
        self, request: PendingRequest | None, replicas: dict[str, RunningReplica]
    ) -> str | None:
        if request is None:
            return None
        named: str = request.metadata.session_id
        if named in replicas:
            return named
        key = session_key(named) if named else resume_token(request)
        if not key:
            return None
        try:
            async with asyncio.timeout(HOME_S):
                home: str | None = await self._hub.home(key)
        except Exception as error:
            log.warning("the directory of sessions does not answer: %r", error)
            return None
        return home if home in replicas else None

    def _candidate(self, name: str, replica: RunningReplica) -> Candidate:
        report = ReplicaReport.from_dict(replica.routing_stats)
        now = time.monotonic()
        if report is not None and self._seen.get(name, (-1, 0.0))[0] != report.number:
            self._seen[name] = report.number, now
        age_s = now - self._seen[name][1] if report is not None else float("inf")
        return Candidate(name, report, age_s, self.replica_queue_len_cache.get(replica.replica_id))


def resume_token(request: PendingRequest) -> str | None:
    """Find the resume token in the query of a request from a proxy, None: it has none."""
    if not request.metadata.is_http_request or not request.args:
        return None
    sent = request.args[0]
    if not isinstance(sent, bytes) or b"resume=" not in sent:
        return None
    query: bytes = pickle.loads(sent).asgi_scope.get("query_string", b"")
    return next(iter(parse_qs(query.decode("latin-1")).get("resume", [])), None)
