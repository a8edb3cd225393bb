"""The way into the Realtime protocol: what a connection is opened with, and how others are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from small_servers import KEY, RunningServer, running_server, wait_until
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from innervoice import Engine, EngineDead
from innervoice.server.context import Opening, ServerContext

BEARER = {"Authorization": f"Bearer {KEY}"}


async def show_opening(websocket: WebSocket, context: ServerContext, opening: Opening) -> None:
    """A connection that says what it was opened with, and waits until the client leaves."""
    await websocket.send_json(
        {
            "dialect": opening.dialect,
            "model": opening.model,
            "presets": dict(opening.presets),
            "query": dict(opening.query),
        }
    )
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


@pytest.fixture(scope="module")
def server(small_engine: Engine) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("innervoice.server.realtime_route.serve_connection", show_opening)
        with running_server(small_engine, allow_origins=("https://friend.example",)) as made:
            yield made


def opened(server: RunningServer, query: str = "", **options: Any) -> ClientConnection:
    base = server.base.replace("http", "ws")
    return connect(f"{base}/v1/realtime{query}", **{"additional_headers": BEARER} | options)


def shown(connection: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(connection.recv(10))
    return message


@pytest.mark.parametrize(
    ("query", "headers", "protocols", "dialect"),
    [
        ("?model=gpt-realtime-2.1", {}, None, "ga"),
        ("?model=m&dialect=beta", {}, None, "beta"),
        ("", {"OpenAI-Beta": "realtime=v1"}, None, "beta"),
        ("", {}, ["realtime", "openai-beta.realtime-v1"], "beta"),
    ],
)
def test_the_opening(
    server: RunningServer,
    query: str,
    headers: dict[str, str],
    protocols: list[str] | None,
    dialect: str,
) -> None:
    with opened(server, query, additional_headers=BEARER | headers, subprotocols=protocols) as connection:
        message = shown(connection)
        assert message["dialect"] == dialect
        assert message["model"] == message["query"].get("model")
        assert message["presets"] == {}
        assert connection.subprotocol == (protocols and "realtime")


def test_the_sub_protocol_with_the_key_is_not_sent_back(server: RunningServer) -> None:
    protocols = [f"openai-insecure-api-key.{KEY}", "realtime", "openai-agents-sdk.0.20.0"]
    with opened(server, additional_headers={}, subprotocols=protocols) as connection:
        assert connection.subprotocol == "realtime"
        assert KEY not in str(connection.response.headers)
    with opened(server, additional_headers={}, subprotocols=protocols[:1]) as connection:
        assert connection.subprotocol is None


def test_an_unknown_dialect_is_refused(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(server, "?dialect=klingon", additional_headers=BEARER)
    assert caught.value.response.status_code == 400
    assert json.loads(caught.value.response.body)["error"]["param"] == "dialect"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_wrong_key_is_an_http_answer(server: RunningServer, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(server, additional_headers=headers)
    response = caught.value.response
    assert response.status_code == 401
    assert json.loads(response.body)["error"]["code"] == "invalid_api_key"


def closed(server: RunningServer, headers: dict[str, str]) -> tuple[dict[str, Any], int]:
    """What a page of a friend is shown before its connection is closed, and the close code."""
    headers = {"Origin": "https://friend.example", **headers}
    with opened(server, additional_headers=headers, subprotocols=["realtime"]) as connection:
        message = shown(connection)
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(10)
    assert caught.value.rcvd is not None
    assert message["type"] == "error"
    assert message["event_id"]
    return message["error"], caught.value.rcvd.code


def test_a_page_is_shown_the_reason(server: RunningServer) -> None:
    error, code = closed(server, {})
    assert (error["code"], code) == ("invalid_api_key", 1008)
    slots = [server.context.admission.hold() for _ in range(2)]
    error, code = closed(server, BEARER)
    assert (error["code"], code) == ("session_limit_reached", 1013)
    assert error["retry_after"] > 0
    for slot in slots:
        slot.release()


def test_foreign_pages_get_no_connection(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(server, additional_headers=BEARER | {"Origin": "https://evil.example"})
    assert caught.value.response.status_code == 403
    assert json.loads(caught.value.response.body)["error"]["code"] == "invalid_origin"


def test_no_room_is_429_and_a_slot_comes_back_with_its_connection(server: RunningServer) -> None:
    with opened(server) as one, opened(server) as two:
        shown(one), shown(two)
        with pytest.raises(InvalidStatus) as caught:
            opened(server)
        response = caught.value.response
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert json.loads(response.body)["error"]["retry_after"] > 0
        with opened(server, "?resume=token") as back:  # its session has a slot already
            shown(back)
    wait_until(lambda: server.context.admission.num_held == 0)
    with opened(server) as one:
        shown(one)
    wait_until(lambda: server.context.admission.num_held == 0)


def test_an_engine_that_has_stopped(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead() -> None:
        raise EngineDead("the device is lost")

    monkeypatch.setattr(server.context.engine, "check_health", dead)
    with pytest.raises(InvalidStatus) as caught:
        opened(server)
    assert caught.value.response.status_code == 503
    error, code = closed(server, BEARER)
    assert (error["code"], code) == ("server_error", 1011)


def test_refusals_without_a_connection(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(server, "?intent=transcription")
    assert caught.value.response.status_code == 501
    with server.client() as client:
        calls = client.post("/v1/realtime/calls", content=b"v=0")
        assert calls.status_code == 501
        assert "WebSocket" in calls.json()["error"]["message"]
        assert client.get("/v1/realtime").status_code == 426
        assert client.get("/v1/realtime").status_code == 426
        for method, path, status in (("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404)):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["code"]


def test_a_message_that_is_too_long_closes_its_connection_alone(small_engine: Engine) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(small_engine, max_message_bytes=2**20) as small,
    ):
        patch.setattr("innervoice.server.realtime_route.serve_connection", show_opening)
        with opened(small) as other, opened(small) as connection:
            shown(connection), shown(other)
            connection.send("x" * (2**20 + 1))
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv(10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
            other.ping().wait(10)
        wait_until(lambda: small.context.admission.num_held == 0)


def test_a_client_secret_opens_sessions_with_its_settings(server: RunningServer) -> None:
    session = {"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}}
    with OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as client:
        made = client.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 30},
            session=session,  # type: ignore[arg-type]
        )
    assert made.value.startswith("ek_")
    assert 25 <= made.expires_at - time.time() <= 30
    assert made.session.instructions == "Be brief."
    protocols = ["realtime", f"openai-insecure-api-key.{made.value}"]
    with opened(server, additional_headers={}, subprotocols=protocols) as connection:
        assert shown(connection)["presets"] == session
    with server.client(key=made.value) as client:
        assert client.post("/v1/realtime/client_secrets", json={}).status_code == 401
        assert client.get("/v1/models").status_code == 200
