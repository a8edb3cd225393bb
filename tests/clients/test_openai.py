"""OpenAI's own packages: openai of Python, its beta, and openai of npm over TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_clients import Driven, Place, tapped
from wire_rules import check_order

from innervoice import Engine

pytestmark = pytest.mark.clients
CODES_PER_S = 12.5
CODE_S = 1 / CODES_PER_S


def check_conversation(seen: Driven) -> None:
    """A whole reply, and one that was cancelled and cut: what the application saw, and what was on the wire."""
    assert seen.of("error") == []
    assert seen.wire.of("server", "error") == []
    assert seen.only("session")["model"] == "gpt-realtime"
    whole, cut = seen.of("reply")
    assert (whole["status"], cut["status"]) == ("completed", "cancelled")
    num_codes = whole["usage"]["output_token_details"]["audio_tokens"]
    assert abs(whole["sound_s"] - num_codes * CODE_S) <= CODE_S
    assert whole["sound_s"] > 0.5
    assert 0 < cut["sound_s"] < whole["sound_s"]
    for reply in (whole, cut):
        assert reply["joined"] == reply["final"]
        usage = reply["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert usage["input_tokens"] > 0

    retrieved = seen.only("retrieved")
    [part] = retrieved["item"]["content"]
    assert retrieved["audio_end_ms"] == 200
    assert retrieved["item"]["status"] == "incomplete"
    assert cut["final"].startswith(part["transcript"])
    assert len(part["transcript"]) < len(cut["final"])
    check_order(seen.wire)


def test_python(place: Place) -> None:
    seen = place.drive("openai_ga.py")
    assert seen.only("updated")["turn_detection"] is None
    check_conversation(seen)


def test_python_comes_back_after_a_restart_but_not_after_a_refusal(place: Place) -> None:
    seen = place.start("openai_ga.py", "reconnect")
    place.tap.wait(lambda: len(seen.wires) == 1 and seen.wires[0].types())
    place.tap.close(seen.wires[0], 1012)
    place.tap.wait(lambda: len(seen.wires) == 2 and seen.wires[1].types())
    place.tap.close(seen.wires[1], 1008)
    seen.finish()
    assert [(line["code"], line["attempt"]) for line in seen.of("reconnecting")] == [(1012, 1)]
    assert [line["type"] for line in seen.of("event")].count("session.created") == 2
    assert len(seen.wires) == 2
    assert seen.only("ended")["code"] == 1008
    queries = {wire.query for wire in seen.wires}
    assert queries == {"model=gpt-realtime"}


def test_python_beta(place: Place) -> None:
    seen = place.drive("openai_beta.py")
    assert seen.wire.headers["openai-beta"] == "realtime=v1"
    types = [line["type"] for line in seen.of("event")]
    assert seen.of("error") == []
    assert types[0] == "session.created"
    assert {"conversation.item.created", "response.audio.delta", "response.audio.done"} <= set(types)
    assert types.count("conversation.item.created") == 2
    newer = (
        "response.output_audio",
        "response.output_text",
        "conversation.item.added",
        "conversation.item.done",
    )
    assert [name for name in types if name.startswith(newer)] == []
    session = seen.only("session")["session"]
    assert session["modalities"] == ["audio", "text"] or session["modalities"] == ["text", "audio"]
    assert session["turn_detection"] is None
    assert session["input_audio_format"] == session["output_audio_format"] == "pcm16"
    assert session["instructions"] == "Be brief."
    assert "audio" not in session
    reply = seen.only("reply")
    assert reply["status"] == "completed"
    assert [part["type"] for part in reply["item"]["content"]] == ["audio"]


@pytest.fixture
def tls_place(engine: Engine, tmp_path: Path, record: Path) -> Iterator[Place]:
    """A server over TLS with a certificate of its own."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *words]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    with tapped(engine, tmp_path, record, ssl_certfile=cert, ssl_keyfile=key) as place:
        yield place


def test_npm_over_tls(tls_place: Place) -> None:
    assert tls_place.server.base.startswith("https://")
    seen = tls_place.drive("openai_npm.mjs")
    check_conversation(seen)
