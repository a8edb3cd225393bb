"""OpenAI's agent kits: @openai/agents-realtime in node and in Chromium, and openai-agents."""

from __future__ import annotations

import pytest
from driven_clients import Driven, Place
from wire_rules import check_order

pytestmark = pytest.mark.clients


def check_barge_in(seen: Driven) -> str:
    """The client cut the reply that was spoken over, once, and did not cancel it -> the reply's item."""
    wire = seen.wire
    [truncate] = wire.of("client", "conversation.item.truncate")
    assert truncate["audio_end_ms"] > 0
    assert wire.of("client", "response.cancel") == [], "the session says that the server interrupts"
    types = [one.type for one in wire.log]
    assert types.index("conversation.item.truncated") < types.index("conversation.item.retrieve")
    assert wire.of("client", "conversation.item.retrieve")[0]["item_id"] == truncate["item_id"]
    first, second = [event["response"] for event in wire.of("server", "response.done")]
    assert (first["status"], first["status_details"]["reason"]) == ("cancelled", "turn_detected")
    assert second["status"] == "completed"
    assert wire.of("server", "error") == []
    check_order(wire)
    return str(truncate["item_id"])


def check_tools(seen: Driven) -> None:
    """The tool was accepted and shown."""
    shown = [event["session"]["tools"] for event in seen.wire.of("server", "session.updated")]
    assert [(tool["type"], tool["name"]) for tool in shown[-1]] == [("function", "weather")]
    assert "city" in shown[-1][0]["parameters"]["properties"]
    assert seen.of("tool") == [], "the tiny checkpoint has no tokens for calls"


def test_node(place: Place) -> None:
    seen = place.drive("agents_node.mjs")
    assert seen.of("error") == []
    assert len(seen.of("interrupted")) == 1
    item_id = check_barge_in(seen)
    check_tools(seen)
    items = seen.only("history")["items"]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
    assert [item["status"] for item in items] == ["completed", "incomplete", "completed", "completed"]
    assert items[1]["itemId"] == item_id
    assert items[2]["content"][0]["type"] == "input_audio"
    assert sum(line["seconds"] for line in seen.of("audio")) > 1.0


def test_chromium(place: Place) -> None:
    seen = place.drive("agents_browser.mjs")
    assert seen.of("error") == []
    page = seen.only("page")
    assert page["errors"] == []
    assert page["audio_s"] > 0.5
    assert {"session.created", "session.updated", "response.done"} <= set(page["types"])
    offered = seen.wire.subprotocols
    assert offered[0] == "realtime"
    assert any(name.startswith("openai-insecure-api-key.") for name in offered)
    assert "authorization" not in seen.wire.headers
    check_order(seen.wire)


def test_python(place: Place) -> None:
    seen = place.drive("agents_python.py")
    assert [line for line in seen.of("event") if line["type"] == "error"] == []
    raw = [line["type"] for line in seen.of("raw")]
    assert "error" not in raw
    assert "exception" not in raw
    assert raw.count("audio_interrupted") >= 1
    assert raw.count("turn_ended") == 2
    item_id = check_barge_in(seen)
    check_tools(seen)
    items = seen.only("history")["items"]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
    assert items[1]["item_id"] == item_id
    assert items[1]["status"] == "incomplete"
    assert sum(line["seconds"] for line in seen.of("audio")) > 1.0
