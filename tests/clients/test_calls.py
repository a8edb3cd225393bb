"""Clients whose tools are called: each runs its tool once, gives the result back, and hears the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_clients import Driven, Place, tapped
from tool_models import ANSWER
from wire_rules import check_order

from innervoice import Engine

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def place(calling_engine: Engine, tmp_path_factory: pytest.TempPathFactory, record: Path) -> Iterator[Place]:
    with tapped(calling_engine, tmp_path_factory.mktemp("sound"), record) as made:
        yield made


def check_call(seen: Driven) -> None:
    """One call, its result behind it, and the spoken answer, on the wire."""
    wire = seen.wire
    assert wire.of("server", "error") == []
    check_order(wire)
    called, answered = [event["response"] for event in wire.of("server", "response.done")]
    [call], [message] = called["output"], answered["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "weather",
        {"city": "Paris"},
    )
    assert message["content"][0]["transcript"] == ANSWER
    items = [event["item"] for event in wire.of("client", "conversation.item.create")]
    [result] = [item for item in items if item["type"] == "function_call_output"]
    assert (result["call_id"], result["output"]) == (call["call_id"], "25 degrees")


def test_openai(place: Place) -> None:
    seen = place.drive("openai_tools.py")
    assert seen.of("error") == []
    called, answered = seen.of("reply")
    assert called["status"] == answered["status"] == "completed"
    assert json.loads(called["arguments"]) == {"city": "Paris"}
    assert (called["sound_s"], answered["sound_s"] > 0.5) == (0.0, True)
    check_call(seen)


@pytest.mark.parametrize("driver", ["agents_tools.py", "agents_tools.mjs"])
def test_agents(place: Place, driver: str) -> None:
    seen = place.drive(driver)
    assert seen.of("error") == []
    assert [line["city"] for line in seen.of("tool")] == ["Paris"]
    assert [line["type"] for line in seen.of("event") if line["type"] == "error"] == []
    assert seen.only("history")["sound_s"] > 0.5
    check_call(seen)
