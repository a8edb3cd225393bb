"""LiveKit's AgentSession: turns by the server's two detectors and by the client, and connections that are lost."""

from __future__ import annotations

import pytest
from driven_clients import Driven, Place
from wire_rules import check_chain, check_order
from wire_tap import Wire

pytestmark = pytest.mark.clients
NUM_ITEMS = 40


def check_metadata(wire: Wire) -> None:
    """Each reply that was asked for is announced with the metadata of its request, by which the client knows it."""
    asked = [event["response"]["metadata"] for event in wire.of("client", "response.create")]
    assert len(asked) >= 1
    shown = [event["response"]["metadata"] for event in wire.of("server", "response.created")]
    assert [found for found in shown if found is not None] == asked


def check_conversation(seen: Driven) -> None:
    """Three replies, each cut while the speaker played it: two by the client and one, if it detects turns, by speech."""
    wire = seen.wire
    assert seen.of("error") == []
    played = seen.of("played")
    assert len(played) == 3
    assert all(line["is_cut"] and line["seconds"] > 0.3 for line in played)
    items = seen.of("item")
    assert [item["interrupted"] for item in items if item["role"] == "assistant"] == [True] * len(
        wire.transcripts
    )
    assert len(wire.transcripts) >= 1
    assert items[0]["text"] == "How are you?"
    truncated = wire.of("client", "conversation.item.truncate")
    assert len(truncated) == 3
    for event, line in zip(truncated, played, strict=True):
        assert abs(event["audio_end_ms"] - 1000 * line["seconds"]) < 50
    # A client that cancels what the server has cancelled already is answered by an error that it knows.
    codes = {event["error"]["code"] for event in wire.of("server", "error")}
    assert codes <= {"response_cancel_not_active"}
    check_metadata(wire)
    check_order(wire)


def check_without_transcription(wire: Wire) -> None:
    """The client asked for the user's words, and was shown that there are none."""
    [asked, *_] = [
        event["session"]["audio"]["input"]
        for event in wire.of("client", "session.update")
        if "audio" in event["session"]
    ]
    assert asked["transcription"]["model"]
    shown = wire.of("server", "session.updated")[-1]["session"]["audio"]["input"]["transcription"]
    assert shown is None
    assert [name for name in wire.types() if "transcription" in name] == []


@pytest.mark.parametrize(("mode", "detector"), [("server", "server_vad"), ("semantic", "semantic_vad")])
def test_turns_of_the_server(place: Place, mode: str, detector: str) -> None:
    seen = place.drive("livekit_client.py", mode)
    check_conversation(seen)
    turns = seen.wire.of("server", "session.updated")[-1]["session"]["audio"]["input"]["turn_detection"]
    assert turns["type"] == detector
    first = seen.wire.of("server", "response.done")[0]["response"]
    assert first["status"] == "completed" or first["status_details"]["reason"] == "turn_detected"
    assert seen.wire.types().count("input_audio_buffer.speech_started") == 1
    check_without_transcription(seen.wire)


def test_turns_of_the_client(place: Place) -> None:
    seen = place.drive("livekit_client.py", "none")
    check_conversation(seen)
    assert "input_audio_buffer.speech_started" not in seen.wire.types()
    assert seen.wire.types("client").count("input_audio_buffer.commit") == 1
    assert seen.wire.types().count("input_audio_buffer.committed") == 1


def test_a_lost_connection_is_made_again_with_its_forty_items(place: Place) -> None:
    seen = place.start("livekit_client.py", "reconnect")
    names = [f"line_{i:02}" for i in range(NUM_ITEMS)]
    place.tap.wait(
        lambda: seen.wires and seen.wires[0].types().count("conversation.item.done") == NUM_ITEMS, 90.0
    )
    place.tap.close(seen.wires[0], 1012)
    seen.finish()
    first, second = seen.wires
    [lost] = seen.of("error")  # what the client itself says of the loss
    assert "connection closed unexpectedly" in lost["message"] and "recoverable=True" in lost["message"]
    assert len(seen.of("reconnected")) == 1
    assert check_chain(first.sent) == names
    chain = check_chain(second.sent)
    assert chain[:NUM_ITEMS] == names
    assert len(chain) == NUM_ITEMS + 2, "the question and its answer"
    check_metadata(second)
    assert second.of("server", "error", "response.done")[-1]["type"] == "response.done"
    check_order(first)
    check_order(second)
    roles = [event["item"]["role"] for event in second.of("server", "conversation.item.added")]
    assert roles[:2] == ["user", "assistant"]
    assert len(seen.of("played")) == 1
