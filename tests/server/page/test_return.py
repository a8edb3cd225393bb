"""The page over a lost connection, a reload and a refusal: the conversation goes on, and nothing is played twice."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from driven_clients import Driven, Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(place: Place, drivers: Path) -> Driven:
    return place.drive(str(drivers / "return.mjs"))


def sound_ms(seen: Driven, response: str) -> float:
    """The sound of a response that the server sent, each piece once, in milliseconds."""
    pieces = {
        one["event_seq"]: len(base64.b64decode(one["delta"])) / 48
        for wire in seen.wires
        for one in wire.of("server", "response.output_audio.delta")
        if one["response_id"] == response
    }
    return sum(pieces.values())


def test_nothing_fails(seen: Driven) -> None:
    assert [line["message"] for line in seen.of("error") if "WebSocket" not in line["message"]] == []


def test_a_key_that_is_held_makes_a_turn(seen: Driven) -> None:
    held = seen.only("held")
    assert held["status"] == "incomplete"  # as long as the server allows
    assert held["playedMs"] == pytest.approx(held["receivedMs"], abs=0.05)
    first = seen.wires[0]
    assert len(first.of("server", "input_audio_buffer.committed")) == 1
    assert first.of("server", "error") == []
    sent = first.of("client", "input_audio_buffer.append")
    assert 600 < sum(len(base64.b64decode(one["audio"])) / 48 for one in sent) < 2500, "only while it is held"


def test_a_lost_connection_comes_back_and_the_reply_is_played_whole(seen: Driven) -> None:
    assert re.search(r"Next try in 0\.5 s\.$", seen.only("lost")["reason"])
    second = seen.only("reconnected")
    assert second["status"] == "incomplete"  # as long as the server allows
    assert second["playedMs"] == pytest.approx(sound_ms(seen, second["id"]), abs=0.1)
    assert second["playedMs"] == pytest.approx(second["receivedMs"], abs=0.05)
    assert "resume=" in seen.wires[1].query


def test_a_reload_goes_on_with_the_dialogue_and_the_sound(seen: Driven) -> None:
    before, after = seen.only("before"), seen.only("reloaded")
    num = len(before["turns"])
    assert num == 6
    assert after["turns"][: num - 1] == before["turns"][:-1]
    assert after["turns"][num - 1].startswith(before["turns"][-1])
    assert after["thoughts"] >= before["thoughts"]
    assert after["replies"] == before["replies"] == 3
    assert after["turnsValue"] == "manual"
    assert after["at"]["response"] == before["at"]["response"]
    finished = seen.only("finished")
    assert finished["response"] == before["at"]["response"]
    assert finished["playedMs"] == pytest.approx(sound_ms(seen, finished["response"]), abs=0.1)
    acks = [
        [
            one["played_ms"]
            for one in wire.of("client", "innervoice.playback.ack")
            if one["response_id"] == finished["response"]
        ]
        for wire in seen.wires[1:3]
    ]
    assert acks[1][0] >= acks[0][-1], "nothing is played twice"
    assert acks[1][0] < acks[0][-1] + 2000
    last = seen.only("last")
    assert last["status"] == "incomplete"  # as long as the server allows
    ids = {wire.of("server", "session.created")[0]["session"]["id"] for wire in seen.wires[:3]}
    assert len(ids) == 1


def test_a_refused_session_shows_when_it_is_tried_again(seen: Driven) -> None:
    waits = re.search(r"Next try in (\d+(?:\.\d+)?) s\.$", seen.only("refused")["reason"])
    assert waits is not None
    refusal = next(one for wire in seen.wires[3:] for one in wire.of("server", "error"))
    assert refusal["error"]["code"] == "session_limit_reached"
    assert float(waits.group(1)) >= refusal["error"].get("retry_after", 0) > 0
    assert seen.only("admitted")["reason"] == "Connected."
