"""Ingress: the ASGI application of a replica, which passes requests on to the replica that has their pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from innervoice.server.access import Access
from innervoice.server.cluster.audio_ids import audio_ids
from innervoice.server.cluster.figures import with_replicas
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import refusal
from innervoice.server.ray.relay import Relay

CHAT = "/v1/chat/completions"
SESSION_HEADER = b"x-session-id"
FIGURES_S = 2.0
MAX_TRACE_S = 60.0


class Peers(Protocol):
    """The other replicas, as an ingress needs them."""

    async def home_of_answer(self, audio_id: str) -> str | None:
        """Name the other replica that has an answer, None: it is here now, or nowhere.

        Raises ApiError while that is not known.
        """
        ...

    async def take_answer(self, audio_id: str) -> None:
        """Take an earlier answer over, as it was left in the directory. Raises ApiError while there is none."""
        ...

    def answer(self, replica: str, audio_id: str, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Have a request answered by another replica -> its ASGI messages. Raises ReplicaLost."""
        ...

    async def all_figures(self) -> dict[str, str]:
        """Ask the others for their figures, by name; those that do not answer in time are left out."""
        ...

    async def trace(self, replica: str | None, seconds: float) -> bytes:
        """Record a replica for a while, None: this one -> Chrome trace JSON. Raises ApiError for an unknown one."""
        ...

    def claim(self, session: str) -> None:
        """Note that requests of a session come here from now on."""
        ...


class Ingress:
    """An ASGI application around a server's. name: of this replica. access: who may see traces."""

    def __init__(self, app: ASGIApp, name: str, peers: Peers, access: Access, max_body_bytes: int) -> None:
        self._app = app
        self._name = name
        self._peers = peers
        self._access = access
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        is_http = scope["type"] == "http"
        if is_http:
            self._note_session(scope)
        if is_http and scope["path"] == "/metrics":
            await self._send_figures(scope, receive, send)
        elif is_http and scope["path"] == "/trace":
            await (await self._trace(Request(scope)))(scope, receive, send)
        elif is_http and scope["path"] == CHAT and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _note_session(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == SESSION_HEADER:
                self._peers.claim(value.decode("latin-1"))

    async def _trace(self, request: Request) -> Response:
        """Record one replica: `GET /trace?replica=NAME&seconds=5`."""
        try:
            self._access.grant_key(request.headers)
            seconds = read_seconds(request.query_params.get("seconds", "5"))
            made = await self._peers.trace(request.query_params.get("replica"), seconds)
        except ApiError as error:
            return refusal(error)
        return Response(made, media_type="application/json")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here, unless another replica has the pages of the answer that the messages go on from.

        If that one dies before the client has heard anything of it, this one takes its place.
        """
        taken = [await receive()]
        size = len(taken[0].get("body", b""))
        while taken[-1].get("more_body") and size <= self._max_body_bytes:
            taken.append(await receive())
            size += len(taken[-1].get("body", b""))
        if not taken[-1].get("more_body"):
            body = b"".join(one.get("body", b"") for one in taken)
            named = audio_ids(body)
            try:
                if named and await self._answer_there(named[-1], scope, body, send):
                    return
            except ApiError as error:
                await refusal(error)(scope, receive, send)
                return
        await self._app(scope, replayed(taken, receive), send)

    async def _answer_there(self, audio_id: str, scope: Scope, body: bytes, send: Send) -> bool:
        """Have the replica answer that has an earlier answer -> False: it is here. Raises ApiError, ReplicaLost."""
        home = await self._peers.home_of_answer(audio_id)
        if home is None:
            return False
        if await Relay(send).pass_on(self._peers.answer(home, audio_id, scope, body)):
            return True
        await self._peers.take_answer(audio_id)
        return False

    async def _send_figures(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the figures of all replicas to whom this one would send its own."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        start = messages[0]
        if start["status"] == 200:
            own = b"".join(one.get("body", b"") for one in messages[1:]).decode()
            joined = with_replicas({self._name: own} | await self._peers.all_figures())
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            start["headers"] = [*headers, (b"content-length", str(len(joined)).encode())]
            messages = [start, {"type": "http.response.body", "body": joined}]
        for message in messages:
            await send(message)


def read_seconds(given: str) -> float:
    """Read the length of a trace. Raises ApiError for one that is none, and beyond MAX_TRACE_S."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TRACE_S:
        raise ApiError(
            "invalid_value",
            f"seconds is {given[:20]!r}: it must be above 0 and at most {MAX_TRACE_S:g}",
            "seconds",
        )
    return seconds


def replayed(messages: list[Message], receive: Receive) -> Receive:
    """Receive messages that were taken already, and then those that follow."""
    waiting = list(messages)

    async def next_message() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return next_message
