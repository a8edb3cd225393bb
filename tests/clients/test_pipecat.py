"""Pipecat, with turns that the server finds and with turns that are found locally."""

from __future__ import annotations

import pytest
from driven_clients import Driven, Place
from wire_rules import check_order

pytestmark = pytest.mark.clients


def check_pipeline(seen: Driven, reason: str) -> None:
    """The pipeline lived to its end: a reply that was cut for a reason, a whole one, and both in the context."""
    assert seen.of("error") == []
    assert len(seen.of("interruption")) >= 1
    alive = seen.only("alive")
    assert alive["status"] == "completed"
    cut, whole = [event["response"] for event in seen.wire.of("server", "response.done")]
    assert (cut["status"], cut["status_details"]["reason"]) == ("cancelled", reason)
    assert whole["status"] == "completed"
    num_codes = whole["usage"]["output_token_details"]["audio_tokens"]
    assert alive["sound_s"] > num_codes / 12.5 - 0.1

    messages = seen.only("context")["messages"]
    assert messages[0] == {"role": "user", "content": "How are you?"}
    assert [message["role"] for message in messages[1:]] == ["assistant"] * len(seen.wire.transcripts)
    assert len(seen.wire.transcripts) >= 1
    created, *_ = seen.wire.of("client", "conversation.item.create")
    added, *_ = seen.wire.of("server", "conversation.item.added")
    assert added["item"]["id"] == created["item"]["id"], "the client's id is kept"
    check_order(seen.wire)


def test_turns_of_the_server(place: Place) -> None:
    seen = place.drive("pipecat_client.py", "server")
    check_pipeline(seen, "turn_detected")
    assert seen.wire.of("server", "error") == []
    [truncate] = seen.wire.of("client", "conversation.item.truncate")
    assert truncate["audio_end_ms"] > 0
    assert "input_audio_buffer.commit" not in seen.wire.types("client")


def test_turns_that_are_found_locally(place: Place) -> None:
    seen = place.drive("pipecat_client.py", "manual")
    check_pipeline(seen, "client_cancelled")
    assert {event["error"]["code"] for event in seen.wire.of("server", "error")} <= {
        "response_cancel_not_active"
    }
    asked = [name for name in seen.wire.types("client") if name != "session.update"]
    order = ["input_audio_buffer.clear", "response.cancel", "conversation.item.truncate"]
    order += ["input_audio_buffer.commit", "response.create"]
    assert [name for name in asked[2:] if name in order] == order
    assert {"input_audio_buffer.cleared", "conversation.item.truncated"} <= set(seen.wire.types())
    assert "input_audio_buffer.speech_started" not in seen.wire.types()
