"""The server's own page in Chromium: a microphone that asks, a reply that is played, spoken over and cut."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from driven_clients import RATE, Driven, Place

pytestmark = pytest.mark.clients


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of its own: other projects' schemas have no events of extensions."""
    return tmp_path_factory.mktemp("page") / "events.jsonl"


@pytest.fixture(scope="module")
def seen(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    spoken = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    samples = np.frombuffer(place.question.read_bytes(), "<i2")
    silence = np.zeros(2 * RATE, np.int16)
    soundfile.write(spoken, np.concatenate([silence[:RATE], samples, silence]), RATE)
    place.environment["REALTIME_SPOKEN"] = str(spoken)
    return place.drive("page.mjs")


def squeezed(text: str) -> str:
    """A text without white space and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f]", "", text)


def test_nothing_fails_and_nothing_leaves_the_origin(seen: Driven, place: Place) -> None:
    assert seen.of("error") == []
    assert seen.of("failed") == []
    origin = urlsplit(place.server.base).netloc
    assert {urlsplit(line["url"]).netloc for line in seen.of("request")} == {origin}
    assert seen.wire.of("server", "error") == []


def test_the_microphone_is_heard_and_the_reply_is_played_whole(seen: Driven) -> None:
    first = seen.only("spoken")
    assert first["status"] == "completed"
    assert first["receivedMs"] > 500
    assert first["playedMs"] == pytest.approx(first["receivedMs"], abs=0.05)
    assert first["waitingMs"] == 0
    turns = seen.wire.of("server", "input_audio_buffer.committed")
    assert len(turns) == 2, "the microphone's question, and the recording's"
    last_ack = max(event["played_ms"] for event in seen.wire.of("client", "innervoice.playback.ack"))
    assert last_ack >= int(first["playedMs"])


def test_hidden_text_is_only_in_its_lane(seen: Driven) -> None:
    texts = seen.only("texts")
    assert len(texts["hidden"].strip()) > 20
    assert squeezed(texts["thoughts"]) == squeezed(texts["hidden"])
    assert squeezed(texts["transcript"]) == squeezed(texts["spoken"])
    assert squeezed(texts["hidden"]) not in squeezed(texts["transcript"] + texts["others"])
    assert re.fullmatch(r"\d+ ms", texts["firstSound"])


def test_speaking_over_a_reply_stops_its_sound_and_cuts_its_words(seen: Driven) -> None:
    cut = seen.only("cut")
    assert 0 < cut["cleared"]["afterMs"] < 100
    [truncate] = seen.wire.of("client", "conversation.item.truncate")
    assert cut["cleared"]["playedMs"] - 200 < truncate["audio_end_ms"] <= cut["cleared"]["playedMs"]
    assert truncate["item_id"] == cut["cut"]["item"]
    assert cut["marked"] == 1
    done = seen.wire.of("server", "response.done")[1]["response"]
    assert done["id"] == cut["cut"]["response"]
    assert seen.only("after")["response"] not in (None, done["id"])


def test_words_are_pale_until_heard_and_struck_out_if_never(seen: Driven) -> None:
    words = seen.only("words")
    assert words["playing"] == ["", "", "coming", "coming", "coming"]
    assert words["cut"] == ["", "", "", "", "unheard"]


def test_it_can_be_used_by_all_and_fits_every_width(seen: Driven) -> None:
    checks = seen.of("axe")
    assert [check["when"] for check in checks] == ["light", "dark"]
    assert [check["faults"] for check in checks] == [[], []]
    assert min(check["passes"] for check in checks) > 20
    widths = seen.of("overflow")
    assert {line["width"] for line in widths} == {390, 820, 1440}
    assert [line for line in widths if line["wide"] > 0] == []
