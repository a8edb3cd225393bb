"""Client secrets: what is asked for them, and what they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from openai import OpenAI
from small_servers import KEY, RunningServer, running_server

from innervoice import Engine


@pytest.fixture(scope="module")
def server(small_engine: Engine) -> Iterator[RunningServer]:
    with running_server(small_engine) as made:
        yield made


def test_a_secret_and_its_session(server: RunningServer) -> None:
    session = {"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}}
    with OpenAI(base_url=f"{server.base}/v1", api_key=KEY, max_retries=0) as client:
        made = client.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 30},
            session=session,  # type: ignore[arg-type]
        )
    assert made.value.startswith("ek_")
    assert 25 <= made.expires_at - time.time() <= 30
    assert made.session.instructions == "Be brief."
    with server.client(key=made.value) as client:
        assert client.post("/v1/realtime/client_secrets", json={}).status_code == 401
        assert client.get("/v1/models").status_code == 200


def test_without_a_body_it_is_good_for_ten_minutes(server: RunningServer) -> None:
    with server.client() as client:
        made = client.post("/v1/realtime/client_secrets").json()
    assert 590 <= made["expires_at"] - time.time() <= 600
    assert made["session"]["audio"]["input"]["turn_detection"]["type"] == "server_vad"


def test_client_secrets_of_the_beta(server: RunningServer) -> None:
    with server.client() as client:
        answer = client.post("/v1/realtime/sessions", json={"model": "m", "modalities": ["text"]})
        made = answer.json()
        assert answer.status_code == 200
        assert made["modalities"] == ["text"]
        assert made["client_secret"]["value"].startswith("ek_")
        assert made["client_secret"]["expires_at"] > time.time()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"[]", "object"),
        (b'{"expires_after": {"seconds": 9}}', "expires_after.seconds"),
        (b'{"expires_after": {"seconds": 7201}}', "expires_after.seconds"),
        (b'{"expires_after": {"anchor": "now"}}', "expires_after.anchor"),
        (b'{"session": {"instructions": 3}}', "instructions"),
        (b'{"session": {"tools": [{"type": "mcp"}]}}', "mcp"),
    ],
)
def test_bodies_that_are_refused(server: RunningServer, body: bytes, message: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/realtime/client_secrets", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in f"{error['message']} {error['param']}"
