"""The application of a replica in front of a server's, with other replicas that are plain objects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.types import Message, Receive, Scope, Send

from innervoice.server.access import Access
from innervoice.server.errors import ApiError
from innervoice.server.ray.ingress import CHAT, Ingress
from innervoice.server.ray.relay import ReplicaLost, answer_here
from innervoice.server.signer import Signer

KNOWN, FOREIGN = "audio_" + "a" * 24, "audio_" + "b" * 24


def figures(number: float) -> bytes:
    registry = CollectorRegistry()
    Gauge("sessions", "Open.", registry=registry).set(number)
    return generate_latest(registry)


class OtherReplicas:
    """One other replica, which has an answer. dies_after: so many messages; is_known: whether the directory answers."""

    def __init__(
        self, dies_after: int = 10, kind: str = "application/json", *, is_known: bool = True
    ) -> None:
        self._dies_after = dies_after
        self._kind = kind.encode()
        self._is_known = is_known
        self.taken: list[str] = []
        self.claimed: list[str] = []
        self.bodies: list[bytes] = []

    async def home_of_answer(self, audio_id: str) -> str | None:
        if not self._is_known:
            raise ApiError("session_store_unavailable", "who knows", status=503, retry_after_s=5.0)
        return "b" if audio_id == FOREIGN else None

    async def take_answer(self, audio_id: str) -> None:
        self.taken.append(audio_id)

    async def answer(self, replica: str, audio_id: str, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        self.bodies.append(body)
        messages: list[Message] = [
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._kind)]},
            {"type": "http.response.body", "body": replica.encode(), "more_body": True},
            {"type": "http.response.body", "body": b"", "more_body": False},
        ]
        for message in messages[: self._dies_after]:
            yield message
        if self._dies_after < len(messages):
            raise ReplicaLost("b is gone")

    async def all_figures(self) -> dict[str, str]:
        return {"b": figures(2).decode()}

    async def trace(self, replica: str | None, seconds: float) -> bytes:
        if replica == "c":
            raise ApiError("invalid_value", "there is no replica c", "replica")
        return json.dumps({"traceEvents": [], "of": replica, "seconds": seconds}).encode()

    def claim(self, session: str) -> None:
        self.claimed.append(session)


async def server(scope: Scope, receive: Receive, send: Send) -> None:
    """A server that says "here" and the length of the body; its figures need a key."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status = 200
    answer = b"here %d" % len(body)
    if scope["path"] == "/metrics":
        status = 200 if (b"authorization", b"Bearer key") in scope["headers"] else 401
        answer = figures(1) if status == 200 else b"no key"
    length = (b"content-length", str(len(answer)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})


def ask(
    path: str,
    *parts: bytes,
    peers: OtherReplicas | None = None,
    query: str = "",
    most: int = 1000,
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """Send a request to a replica's application -> status, body and headers of the answer."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "path": path, "method": "POST" if path == CHAT else "GET", "headers": given,
        "query_string": query.encode(),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    app = Ingress(server, "a", peers or OtherReplicas(), Access(("key",), Signer(b"secret")), most)
    asyncio.run(app(scope, receive, send))
    named = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]), named


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages": []}', b"here 16"),
        (b'{"id": "%s"}' % KNOWN.encode(), b"here 40"),
        (b'{"id": "%s"}' % FOREIGN.encode(), b"b"),
        (b'["%s", "%s"]' % (FOREIGN.encode(), KNOWN.encode()), b"here 68"),
        (b'["%s", "%s"]' % (KNOWN.encode(), FOREIGN.encode()), b"b"),
        (b'{"content": "audio_nothing"}', b"here 28"),
    ],
)
@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_last_answer_that_is_named_decides(body: bytes, expected: bytes, num_parts: int) -> None:
    size = -(-len(body) // num_parts)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    peers = OtherReplicas()
    status, answer, _ = ask(CHAT, *parts, peers=peers)
    assert (status, answer) == (200, expected)
    assert peers.bodies == ([body] if expected == b"b" else [])


@pytest.mark.parametrize("num_messages", [0, 1])
def test_a_replica_that_is_lost_before_the_client_heard_it_is_replaced(num_messages: int) -> None:
    peers = OtherReplicas(num_messages)
    body = b'{"id": "%s"}' % FOREIGN.encode()
    assert ask(CHAT, body, peers=peers)[:2] == (200, b"here 40")
    assert peers.taken == [FOREIGN]


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    peers = OtherReplicas(2, "text/event-stream; charset=utf-8")
    status, answer, _ = ask(CHAT, b'{"id": "%s"}' % FOREIGN.encode(), peers=peers)
    assert (status, answer[:7]) == (200, b"bdata: ")
    error = json.loads(answer[7:])["error"]
    assert error["code"] == "replica_lost"
    assert "send the request again" in error["message"]
    assert peers.taken == [], "it was half heard: no other replica may begin it anew"


def test_another_answer_that_breaks_off_is_no_whole_one() -> None:
    with pytest.raises(ReplicaLost):
        ask(CHAT, b'{"id": "%s"}' % FOREIGN.encode(), peers=OtherReplicas(2))


def test_while_the_directory_is_silent_the_client_may_try_again() -> None:
    peers = OtherReplicas(is_known=False)
    status, answer, headers = ask(CHAT, b'{"id": "%s"}' % FOREIGN.encode(), peers=peers)
    assert (status, headers["retry-after"]) == (503, "5")
    assert json.loads(answer)["error"]["code"] == "session_store_unavailable"
    assert ask(CHAT, b'{"messages": []}', peers=peers)[0] == 200, "who names no answer needs no directory"


def test_a_body_that_is_too_large_is_the_servers_to_refuse() -> None:
    body = b'{"id": "%s"}' % FOREIGN.encode()
    assert ask(CHAT, *[body] * 40, most=100) == (200, b"here 1600", {"content-length": "9"})


def test_figures_of_all_replicas() -> None:
    _, text, headers = ask("/metrics", authorization="Bearer key")
    lines = text.decode().splitlines()
    assert 'sessions{replica="a"} 1.0' in lines
    assert 'sessions{replica="b"} 2.0' in lines
    assert headers["content-length"] == str(len(text))
    assert ask("/metrics")[:2] == (401, b"no key")


@pytest.mark.parametrize(
    ("query", "status", "part"),
    [
        ("replica=b&seconds=2", 200, b'"of": "b", "seconds": 2.0'),
        ("", 200, b'"of": null, "seconds": 5.0'),
        ("replica=c", 400, b"there is no replica c"),
        ("seconds=0", 400, b"seconds is '0'"),
        ("seconds=61", 400, b"at most 60"),
        ("seconds=nan", 400, b"above 0"),
        ("seconds=soon", 400, b"above 0"),
    ],
)
def test_a_trace_of_one_replica(query: str, status: int, part: bytes) -> None:
    found = ask("/trace", query=query, authorization="Bearer key")
    assert found[0] == status
    assert part in found[1]
    assert ask("/trace", query=query)[0] == 401


def test_a_session_is_claimed_by_its_header() -> None:
    peers = OtherReplicas()
    ask("/v1/models", peers=peers, x_session_id="caller 7")
    ask("/v1/models", peers=peers)
    assert peers.claimed == ["caller 7"]


def test_an_answer_for_another_replica_comes_as_it_is_made() -> None:
    async def work() -> None:
        made = [message async for message in answer_here(server, {"path": CHAT, "headers": []}, b"12345")]
        assert [message["type"] for message in made] == ["http.response.start", "http.response.body"]
        assert made[1]["body"] == b"here 5"

    asyncio.run(work())


def test_who_stops_reading_has_hung_up() -> None:
    heard: list[Message] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append(await receive())

    async def work() -> None:
        answer = answer_here(endless, {}, b"")
        await anext(answer)
        await answer.aclose()
        assert heard == [{"type": "http.disconnect"}]

    asyncio.run(work())


def test_a_failure_of_the_server_is_the_readers() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("it broke")

    async def work() -> None:
        with pytest.raises(RuntimeError, match="it broke"):
            [message async for message in answer_here(failing, {}, b"")]

    asyncio.run(work())
