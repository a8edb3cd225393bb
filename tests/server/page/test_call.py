"""The page in Chromium: a microphone that asks, a reply that is played, shown, spoken over and cut."""

from __future__ import annotations

import base64
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from driven_clients import RATE, Driven, Place

pytestmark = pytest.mark.slow
START_MS = 80.0  # of sound that waits before a reply begins, or goes on after a gap


@pytest.fixture(scope="module")
def seen(place: Place, drivers: Path) -> Driven:
    return place.drive(str(drivers / "call.mjs"))


def squeezed(text: str) -> str:
    """A text without white space and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f]", "", text)


def test_nothing_fails_and_nothing_leaves_the_origin(seen: Driven, place: Place) -> None:
    assert seen.of("error") == []
    assert seen.of("failed") == []
    origin = urlsplit(place.server.base).netloc
    assert {urlsplit(line["url"]).netloc for line in seen.of("request")} == {origin}
    assert seen.wire.of("server", "error") == []


def loudest_db(samples: np.ndarray[Any, Any]) -> float:
    """The level of the loudest half second, in dBFS."""
    summed = np.concatenate([[0.0], np.cumsum(np.square(samples.astype(np.float64) / 32768))])
    half = RATE // 2
    return 10 * math.log10(float((summed[half:] - summed[:-half]).max()) / half)


def test_the_microphone_reaches_the_server_at_its_level(seen: Driven, place: Place) -> None:
    """Without the browser's own processing, whose gain control is meant to change it."""
    question = np.frombuffer(place.question.read_bytes(), "<i2")
    sent = [base64.b64decode(one["audio"]) for one in seen.wire.of("client", "input_audio_buffer.append")]
    assert loudest_db(np.frombuffer(b"".join(sent), "<i2")) == pytest.approx(loudest_db(question), abs=1.0)


def test_the_meter_shows_the_level(seen: Driven) -> None:
    """0 is -60 dBFS: each value of the meter belongs to a block of 40 ms that was sent."""
    levels = seen.only("levels")["levels"]
    blocks = [base64.b64decode(one["audio"]) for one in seen.wire.of("client", "input_audio_buffer.append")]
    loudest = max(math.sqrt(float(np.square(np.frombuffer(block, "<i2") / 32768).mean())) for block in blocks)
    assert 60 * max(levels) - 60 == pytest.approx(20 * math.log10(loudest), abs=1.0)


def gaps_of(arrivals: list[list[float]]) -> int:
    """The gaps that sound has whose pieces arrive at these times, in milliseconds: (time, length) each."""
    num, dry_ms = 0, -math.inf
    for i, (at_ms, length_ms) in enumerate(arrivals):
        if i and at_ms > dry_ms + 20.0:  # the audio thread is up to a block behind
            num += 1
        dry_ms = max(dry_ms, at_ms) + length_ms
    return num


def test_the_page_makes_no_gaps_of_its_own(seen: Driven) -> None:
    spoken = seen.only("spoken")
    assert sum(length for _, length in spoken["arrivals"]) == pytest.approx(spoken["receivedMs"], abs=0.1)
    assert spoken["underruns"] <= gaps_of(spoken["arrivals"])


def test_the_microphone_is_heard_and_the_reply_is_played_whole(seen: Driven) -> None:
    first = seen.only("spoken")
    assert first["status"] == "incomplete"  # as long as the server allows
    assert first["receivedMs"] > 500
    assert first["playedMs"] == pytest.approx(first["receivedMs"], abs=0.05)
    assert first["waitingMs"] == 0
    types = seen.wire.types()
    until = types.index("response.done")
    assert types[:until].count("input_audio_buffer.committed") == 1, "the microphone's question is one turn"
    last_ack = max(event["played_ms"] for event in seen.wire.of("client", "innervoice.playback.ack"))
    assert last_ack >= int(first["playedMs"])


def test_hidden_text_is_only_in_its_lane(seen: Driven) -> None:
    texts = seen.only("texts")
    assert len(texts["hidden"].strip()) > 3
    assert squeezed(texts["thoughts"]) == squeezed(texts["hidden"])
    assert squeezed(texts["transcript"]) in (squeezed(texts["spoken"]), "(soundwithoutwords)")
    assert squeezed(texts["hidden"]) not in squeezed(texts["transcript"] + texts["others"])
    assert re.fullmatch(r"\d+ ms|\d+\.\d s", texts["firstSound"])


def test_the_timeline_has_all_segments_in_order_and_ends_at_the_last_sound(seen: Driven) -> None:
    timeline, spoken = seen.only("timeline"), seen.only("spoken")
    sent = [one for one in seen.wire.of("server", "innervoice.segment") if one["response_id"] == spoken["id"]]
    shown = timeline["segments"]
    assert [one["kind"] for one in shown] == [one["kind"] for one in sent]
    assert all(one["from"] <= one["to"] for one in shown)
    assert all(a["to"] <= b["from"] + 1e-6 for a, b in pairwise(shown))
    plays = timeline["plays"]
    assert plays[0]["fromMs"] == 0
    assert all(a["toMs"] == b["fromMs"] and a["to"] <= b["from"] + 1e-6 for a, b in pairwise(plays))
    assert plays[-1]["toMs"] == pytest.approx(spoken["receivedMs"], abs=0.05)
    assert plays[-1]["to"] > shown[-1]["from"]
    assert timeline["open"] is None


def test_budgets_are_shown_as_they_are_given(seen: Driven) -> None:
    spoken = seen.only("spoken")
    kinds = ("innervoice.reflection.started", "innervoice.reflection.skipped")
    given = [one for one in seen.wire.of("server", *kinds) if one["response_id"] == spoken["id"]]
    assert given
    assert [one["cap"] for one in seen.only("timeline")["grants"]] == [one.get("cap", 0) for one in given]
    for shown in seen.only("timeline")["segments"]:
        assert shown["cap"] is None or shown["tokens"] <= shown["cap"]


def test_speaking_over_a_reply_stops_its_sound_and_cuts_its_words(seen: Driven) -> None:
    cut = seen.only("cut")
    assert 0 < cut["cleared"]["afterMs"] < 100
    [truncate] = seen.wire.of("client", "conversation.item.truncate")
    heard_ms = (
        cut["cleared"]["playedMs"] - cut["cut"]["latencyMs"]
    )  # what the device still held was not heard
    assert truncate["audio_end_ms"] == pytest.approx(heard_ms, abs=20)
    assert 0 <= cut["cut"]["latencyMs"] < 200
    assert truncate["item_id"] == cut["cut"]["item"]
    assert cut["marked"] == 1
    ends = {one["response"]["id"]: one["response"] for one in seen.wire.of("server", "response.done")}
    done = ends[cut["cut"]["response"]]
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
