"""Clients that show the user's words, against a server with a transcription service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_clients import Place, tapped
from transcribing import WORDS, transcription_service
from wire_rules import check_order

from innervoice import Engine

pytestmark = pytest.mark.clients
COMPLETED = "conversation.item.input_audio_transcription.completed"


@pytest.fixture(scope="module")
def place(engine: Engine, tmp_path_factory: pytest.TempPathFactory, record: Path) -> Iterator[Place]:
    with (
        transcription_service() as url,
        tapped(engine, tmp_path_factory.mktemp("sound"), record, transcription_url=url) as made,
    ):
        yield made


@pytest.mark.parametrize("driver", ["agents_node.mjs", "agents_python.py"])
def test_agents(place: Place, driver: str) -> None:
    seen = place.drive(driver)
    assert seen.of("error") == []
    [completed] = seen.wire.of("server", COMPLETED)
    assert completed["transcript"] == WORDS
    spoken = seen.only("history")["items"][2]
    assert completed["item_id"] in (spoken.get("itemId"), spoken.get("item_id"))
    assert spoken["role"] == "user"
    assert spoken["content"][0]["transcript"] == WORDS
    check_order(seen.wire)


def test_livekit(place: Place) -> None:
    seen = place.drive("livekit_client.py", "server")
    assert seen.of("error") == []
    assert len(seen.wire.of("server", COMPLETED)) == 1
    texts = [item["text"] for item in seen.of("item") if item["role"] == "user"]
    assert texts == ["How are you?", WORDS]
    check_order(seen.wire)
