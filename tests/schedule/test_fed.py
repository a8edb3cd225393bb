"""Fed segments: an independent interpreter on random schedules, listening, the end of a feed, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_schedule import hold
from random_schedules import VOCABULARY, fed_schedules, feeds

from innervoice.schedule import Cursor, CursorState, Schedule, ScheduleError, TokenKind, compile_schedule

RANDOM = given(
    schedule=fed_schedules(),
    absent=st.sets(st.sampled_from(["open", "close", "done"]), max_size=1),
    caps=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 2**32 - 1),
    limit=st.integers(1, 60),
    given_ids=feeds,
)


@settings(max_examples=100, deadline=None)
@RANDOM
def test_random_schedules_equal_the_naive_interpreter(**reply: Any) -> None:
    hold(**reply)
    made = Schedule.from_dict(reply["schedule"])
    assert Schedule.from_dict(made.to_dict()) == made


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@RANDOM
def test_many_random_schedules_equal_the_naive_interpreter(**reply: Any) -> None:
    hold(**reply)


def cursor_of(**schedule: Any) -> Cursor:
    return Cursor(compile_schedule(Schedule.from_dict(schedule), VOCABULARY))


HEARD = {"kind": "fed", "as": "reflection", "feed": "user", "budget": 3, "stop": [7], "name": "heard"}
THOUGHT = {"kind": "reflection", "budget": 4, "stop": [7]}
LISTENING = {"listen": [HEARD, THOUGHT], "cycle": [["transcript", 2], ["speech", 2]]}


def think(cursor: Cursor, *ids: int) -> None:
    cursor.emit_forced()
    for token in ids:
        cursor.draw(token)


def test_it_listens_until_the_feed_is_closed() -> None:
    """A chunk, a thought, a shorter chunk, and then the reply; no thought stands behind the end."""
    cursor = cursor_of(**LISTENING)
    assert cursor.waits and cursor.forced is None and cursor.feed_name == "user"
    heard = [cursor.feed(token) for token in (1, 2, 3)]
    assert [(e.kind.label, e.feed, e.forced, e.name, e.segment) for e in heard] == [
        ("reflection", "user", True, "heard", 0)
    ] * 3
    think(cursor, 5, 6, 32)
    assert cursor.waits
    cursor.feed(4)
    cursor.close_feed()
    assert cursor.kind is TokenKind.TRANSCRIPT and cursor.closed == {"user"} and not cursor.waits


def test_an_id_ends_the_listening() -> None:
    cursor = cursor_of(**LISTENING)
    for token in (1, 2, 3):
        cursor.feed(token)
    think(cursor, 5, 7)
    assert not cursor.waits and cursor.kind is TokenKind.TRANSCRIPT and cursor.closed == {"user"}


@pytest.mark.parametrize("way", ["off", "done"])
def test_it_goes_on_listening_without_its_thoughts(way: str) -> None:
    """Reflection is off, or was done: the thought at the end of a round is left out, and the next piece follows."""
    cursor = cursor_of(**LISTENING, **({"reflect": "off"} if way == "off" else {}))
    for token in (1, 2, 3):
        cursor.feed(token)
    if way == "done":
        think(cursor, 5, VOCABULARY.done or 0)
        for token in (1, 2, 3):
            assert cursor.waits
            cursor.feed(token)
    assert cursor.waits and cursor.feed_name == "user"
    cursor.feed(4)
    cursor.close_feed()
    assert cursor.kind is TokenKind.TRANSCRIPT


def test_the_end_of_fed_text_lets_speech_go_on_to_its_end() -> None:
    said = {"kind": "fed", "as": "transcript", "feed": "text", "budget": 2}
    cursor = cursor_of(cycle=[said, ["speech", 3]])
    cursor.feed(1)
    cursor.feed(2)
    assert VOCABULARY.end_of_turn not in cursor.mask
    for token in (20, 21, 22):
        cursor.draw(token)
    cursor.close_feed()
    assert cursor.text_done and cursor.kind is TokenKind.SPEECH
    for token in (20, 21, 22, 23):
        cursor.draw(token)
    assert cursor.kind is TokenKind.SPEECH and VOCABULARY.end_of_turn in cursor.mask


def test_a_state_goes_on_within_a_feed_and_behind_its_end() -> None:
    cursor = cursor_of(**LISTENING)
    cursor.feed(1)
    again = Cursor(cursor.program, state=CursorState.from_json(cursor.state.to_json()))
    assert again.waits and again.count == 1
    again.feed(2)
    again.feed(3)
    think(again, 5, 7)
    later = Cursor(cursor.program, state=CursorState.from_json(again.state.to_json()))
    assert later.closed == {"user"} and later.state == again.state
    wrong = CursorState.from_json(cursor.state.to_json() | {"closed": ["nobody"]})
    with pytest.raises(ValueError, match="closed names 'nobody'"):
        wrong.check(cursor.program)
    with pytest.raises(ValueError, match="count is 3"):
        CursorState.from_json(cursor.state.to_json() | {"_count": 3}).check(cursor.program)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"prologue": [{"kind": "fed", "budget": 2}]}, "prologue[0].feed is missing: name the feed"),
        (
            {"prologue": [["reflection", 2], {"kind": "transcript", "feed": "a"}]},
            "only a segment of kind fed",
        ),
        ({"listen": [["reflection", 2]]}, "schedule.listen has no fed segment"),
        ({"listen": [HEARD, ["speech", 2]]}, "schedule.listen[1].kind is 'speech': nothing is said"),
        ({"cycle": [HEARD | {"name": None}]}, "nothing can run in it"),
        ({"cycle": [HEARD | {"as": "transcript"}, ["speech", None]]}, "cycle[1].budget is null"),
        ({"prologue": [HEARD | {"budget": 0}]}, "prologue[0].budget is 0"),
        ({"prologue": [HEARD | {"name": " "}]}, "prologue[0].name is ' ': give it a name"),
        ({"prologue": [HEARD | {"feed": ""}]}, "prologue[0].feed is '': give it a name"),
        ({"prologue": [HEARD | {"name": "\ud800"}]}, "prologue[0].name has a lone surrogate"),
        ({"prologue": [HEARD | {"stop": [99]}]}, "prologue[0].stop: id 99 is outside"),
        ({"prologue": [HEARD | {"pick": "scored"}]}, "only a segment of kind choice has one"),
        ({"first": [2, None, None], "cycle": [{"kind": "choice", "choices": [[1]]}]}, "first has 3 budgets"),
    ],
)
def test_refusals(schedule: dict[str, Any], message: str) -> None:
    given_one = {"cycle": [["transcript", 3], ["speech", 3]]} | schedule
    with pytest.raises(ScheduleError) as error:
        compile_schedule(Schedule.from_dict(given_one), VOCABULARY)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
