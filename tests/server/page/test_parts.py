"""The page's parts: refused settings, quick reloads, tries of a lost connection, a timeline that rests, wordless replies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from driven_clients import Driven, Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(place: Place, drivers: Path) -> Driven:
    return place.drive(str(drivers / "parts.mjs"))


def test_nothing_fails(seen: Driven) -> None:
    assert [line["message"] for line in seen.of("error") if "WebSocket" not in line["message"]] == []


def test_the_theme_follows_the_system(seen: Driven) -> None:
    assert [line["colorScheme"] for line in seen.of("theme")] == ["dark", "light"]


def test_unusable_settings_hold_a_call_back_and_are_left_out_of_updates(seen: Driven) -> None:
    shown: dict[str, dict[str, Any]] = {line["name"]: line for line in seen.of("unusable")}
    assert {line["opened"] for line in shown.values()} == {"idle"}
    assert re.match(r"Under Settings, Temperature: .*2", shown["temperature"]["reason"])
    assert re.match(r"Under Settings, Thought \(tokens\): .*1", shown["thought"]["reason"])
    warm, thought = shown["temperature"]["update"], shown["thought"]["update"]
    assert "temperature" not in warm
    assert warm["innervoice"]["reflection_budget"] == 150
    assert "reflection_budget" not in thought["innervoice"]
    assert thought["temperature"] == 0.8


def test_the_parts_of_the_delay_are_shown_while_the_reply_runs(seen: Driven) -> None:
    assert re.fullmatch(r"\d+ \+ \d+ ms|\d+\.\d \+ \d+\.\d s", seen.only("parts")["parts"])
    assert seen.only("parts")["isAnswering"]


def test_stop_is_there_while_there_is_a_reply(seen: Driven) -> None:
    assert seen.only("stops")["stops"] == [False, True, False]


def test_nothing_reaches_over_the_right_edge(seen: Driven) -> None:
    assert {line["width"] for line in seen.of("wide")} == {320, 390, 820, 1440}
    assert [line for line in seen.of("wide") if line["by"] > 0] == []


def test_typing_does_not_move_the_page(seen: Driven) -> None:
    assert seen.only("typed")["scrolled"] == 0


def test_quick_reloads_keep_the_session_and_its_end_forgets_it(seen: Driven) -> None:
    before, after = seen.only("before"), seen.only("reloaded")
    assert len(before["turns"]) == 2
    assert (after["turns"], after["token"]) == (before["turns"], before["token"])
    goes_on = seen.only("goes-on")
    assert goes_on["playedMs"] == pytest.approx(goes_on["receivedMs"], abs=0.05)
    assert (seen.only("ended")["state"], seen.only("ended")["turns"]) == ("idle", [])


def test_a_lost_connection_is_tried_for_ever_and_a_session_that_is_gone_is_replaced(seen: Driven) -> None:
    tries = seen.only("tries")
    assert tries["waits"] == [500, 1000, 2000, 4000, 8000, *[15000] * 8]
    assert all(re.search(r"Next try in [\d.]+ s\.$", reason) for reason in tries["waiting"])
    assert len(tries["waiting"]) == 13
    assert tries["tried"] == tries["asked"] + 2, "tried at once, and then for a new session"
    assert "resume=old" in tries["lost"]
    assert "resume=" not in tries["fresh"]
    assert (tries["last"]["state"], tries["last"]["reason"]) == ("open", "Connected.")


def test_the_reserve_is_drawn_from_what_is_known_and_in_view(seen: Driven) -> None:
    timeline = seen.only("timeline")
    assert set(timeline["joined"]) <= {0}, "no line joins reports with a pause between them"
    assert timeline["edge"] == [{"at": 5, "ms": 2000}, {"at": 10, "ms": 0}]


def test_the_timeline_rests_while_nothing_happens(seen: Driven) -> None:
    timeline = seen.only("timeline")
    assert timeline["running"] == pytest.approx(0, abs=0.1)
    assert timeline["lost"] == pytest.approx(-197, abs=0.1)
    assert timeline["resting"] == pytest.approx(-97, abs=0.1)
    assert timeline["moved"] == pytest.approx(-147, abs=0.1)
    assert timeline["zero"] == -50


def test_a_reply_without_words_says_what_became_of_it(seen: Driven) -> None:
    wordless = seen.only("wordless")
    said = ["(sound without words)", "(the reply failed)", "(stopped)", "(nothing)"]
    assert wordless["texts"] == [*said, "one two six ten"]
    assert wordless["again"] == wordless["texts"]
    first, second, heard = wordless["spoken"]
    assert first == "one two"
    assert second == heard, "the caption has the words that the transcript shows as heard"
    assert (wordless["notes"], wordless["cut"]) == (1, 1)
