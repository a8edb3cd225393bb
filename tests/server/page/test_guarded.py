"""The page of a server with a key and a certificate, below a path, as a reverse proxy has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from driven_clients import Driven, Place
from small_servers import running_server
from starlette.applications import Starlette
from starlette.routing import Mount
from wire_tap import WireTap

from innervoice import Engine

pytestmark = pytest.mark.slow
PREFIX = "/talk/here"


@pytest.fixture(scope="module")
def guarded(engine: Engine, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *words]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)

    def below_a_path(app: Starlette) -> Starlette:
        return Starlette(routes=[Mount(PREFIX, app)])

    with running_server(
        engine, below_a_path, ssl_certfile=cert, ssl_keyfile=key, max_output_tokens=120
    ) as server:
        environment = place.environment | {"PAGE_PREFIX": PREFIX}
        yield Place(server, WireTap(), place.question, place.record, environment)


@pytest.fixture(scope="module")
def seen(guarded: Place, drivers: Path) -> Driven:
    return guarded.drive(str(drivers / "guarded.mjs"))


def test_the_key_is_asked_for_and_then_kept(seen: Driven) -> None:
    assert seen.only("keyless")["focused"] == "key"
    assert seen.only("keyless")["isInView"]
    assert (
        seen.only("keyless")["reason"]
        == "The server asks for a key. Type it under Settings, then press Start."
    )
    assert [note for note in seen.only("notes")["notes"] if "key" in note] == []
    assert seen.only("spoken")["status"] in ("completed", "incomplete")
    assert seen.only("spoken")["playedMs"] > 100


def test_everything_comes_from_below_the_path(seen: Driven, guarded: Place) -> None:
    origin = urlsplit(guarded.server.base).netloc
    for line in seen.of("request"):
        address = urlsplit(line["url"])
        assert (address.scheme, address.netloc) == ("https", origin)
        assert address.path.startswith(f"{PREFIX}/")
    for line in seen.of("socket"):
        address = urlsplit(line["url"])
        assert (address.scheme, address.netloc, address.path) == ("wss", origin, f"{PREFIX}/v1/realtime")
    assert [line for line in seen.of("error") if "WebSocket" not in line["message"]] == []


def test_the_policy_allows_nothing_unsafe(guarded: Place) -> None:
    with httpx2.Client(base_url=guarded.server.base, verify=False) as client:
        for name in ("/", "/page/app.js", "/page/playback-worklet.js"):
            policy = client.get(f"{PREFIX}{name}").headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "*" not in policy
            assert "http" not in policy
