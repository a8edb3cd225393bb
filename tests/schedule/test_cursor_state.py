"""A cursor's position as a value: it goes through JSON, and whatever is changed in it is refused or does no harm."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from random_schedules import VOCABULARY, schedules

from innervoice.schedule import (
    UNLIMITED,
    Cursor,
    CursorState,
    FreeCursor,
    Program,
    Schedule,
    TokenKind,
    compile_schedule,
    make_cursor,
    pack,
    reflection_ahead,
    spoken_until,
)
from innervoice_kernels.sampling.cursor import state_columns, state_values
from innervoice_kernels.sampling.cursor_columns import StateColumn

FREE = compile_schedule(Schedule(cycle=(), guided=False), VOCABULARY)
GUIDED = compile_schedule(
    Schedule.from_dict({"cycle": [["reflection", 3], ["transcript", 2], ["speech", 2]]}), VOCABULARY
)
TEXT_ONLY = compile_schedule(Schedule.from_dict({"cycle": [["transcript", 2]]}), VOCABULARY)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([-(2**31), 2**30, 2**31 - 1, 2**31, 10**30, 1.5, "speech", "open", "", {}]),
    st.lists(st.one_of(st.integers(-2, 9), st.sampled_from([2**31 - 1, 10**30, True, None])), max_size=5),
)


def walk(cursor: Cursor | FreeCursor, num_tokens: int, seed: int, *, caps: bool = True) -> list[int]:
    """Draw so many tokens at random, holding each to the mask, and lower caps now and then."""
    rng = random.Random(seed)
    ids: list[int] = []
    while len(ids) < num_tokens and not cursor.is_done:
        assert spoken_until(cursor, 5) >= 0
        ahead = reflection_ahead(cursor)
        assert ahead is None or 0 <= ahead.most <= UNLIMITED
        if caps and rng.random() < 0.2:
            (cursor.lower_cap if cursor.is_reflecting else cursor.cap_next)(rng.randrange(4))
        if cursor.forced is not None:
            emission = cursor.emit_forced()
        else:
            drawn = rng.choice([i for low, high in cursor.mask.spans for i in range(low, high)])
            made = cursor.draw(drawn)
            if made is None:
                continue
            emission = made
        assert 0 <= emission.token < VOCABULARY.size and emission.segment >= 0
        ids.append(emission.token)
    return ids


@st.composite
def standing(draw: st.DrawFn) -> Cursor | FreeCursor:
    """A cursor somewhere in a reply, guided or free."""
    program = FREE
    if draw(st.integers(0, 4)):
        program = compile_schedule(Schedule.from_dict(draw(schedules())), VOCABULARY)
    cursor = make_cursor(program, draw(st.lists(st.integers(0, 5), max_size=3)))
    walk(cursor, draw(st.integers(0, 25)), draw(st.integers(0, 2**32)))
    return cursor


@settings(max_examples=60, deadline=None)
@given(cursor=standing(), seed=st.integers(0, 2**32))
def test_a_cursor_goes_on_from_its_state(cursor: Cursor | FreeCursor, seed: int) -> None:
    state = cursor.state
    assert CursorState.from_json(json.loads(json.dumps(state.to_json()))) == state
    twin = make_cursor(cursor.program, state=state)
    assert walk(twin, 30, seed) == walk(cursor, 30, seed)
    assert twin.state == cursor.state


DONE_BEHIND_ONE_LEFT_OUT: dict[str, Any] = {
    "cycle": [
        {"kind": "forced", "as": "reflection", "ids": [0, 0]},
        {"kind": "forced", "as": "reflection", "ids": [0, 0, 0]},
        ["reflection", 3], ["reflection", 1], ["reflection", 1], ["speech", 1],
    ],
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@example(given_schedule=DONE_BEHIND_ONE_LEFT_OUT, caps=[0, 0, 0], seed=0)
@given(given_schedule=schedules(), caps=st.lists(st.integers(0, 4), max_size=6), seed=st.integers(0, 2**32))
def test_emissions_say_what_each_reflection_may_have_and_has_had(
    given_schedule: dict[str, Any], caps: list[int], seed: int
) -> None:
    cursor, rng = (
        make_cursor(compile_schedule(Schedule.from_dict(given_schedule), VOCABULARY), caps),
        random.Random(seed),
    )
    assume(isinstance(cursor, Cursor))
    num_skipped = num_before = spent = 0
    for _ in range(60):
        if cursor.is_done:
            break
        if rng.random() < 0.3:
            (cursor.lower_cap if cursor.is_reflecting else cursor.cap_next)(rng.randrange(1, 4))
        num_left_out = list(cursor.granted).count(0)
        drawable = [i for low, high in cursor.mask.spans for i in range(low, high)]
        made = cursor.emit_forced() if cursor.forced is not None else cursor.draw(rng.choice(drawable))
        if made is None:
            continue
        num_skipped += made.num_skipped
        assert num_skipped == num_left_out
        if made.kind is TokenKind.REFLECTION and not made.forced:
            spent = spent + 1 if made.segment == num_before else 1
            num_before = made.segment
            assert made.cap is not None
            assert made.spent == spent <= made.cap
        elif made.kind is TokenKind.CLOSE and made.cap is not None:
            assert made.spent == made.cap == spent
        assert made.kind.is_hidden or made.cap is None


@settings(max_examples=60, deadline=None)
@given(cursor=standing(), num_tokens=st.integers(0, 99))
def test_the_device_s_columns_hold_a_state(cursor: Cursor | FreeCursor, num_tokens: int) -> None:
    state, is_guided = cursor.state, cursor.program.schedule.guided
    columns = state_columns(num_tokens, state.caps, **pack.state_values(state))
    assert len(columns) == StateColumn.WIDTH and columns[StateColumn.NUM_TOKENS] == num_tokens
    values, _ = state_values(columns, state.caps)
    back = pack.cursor_state(values, state.caps, is_guided=is_guided)
    assert replace(back, granted=state.granted) == state


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cursor=standing(), data=st.data(), seed=st.integers(0, 2**32))
def test_a_changed_field_is_refused_or_harmless(
    cursor: Cursor | FreeCursor, data: st.DataObject, seed: int
) -> None:
    values = cursor.state.to_json()
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(ANYTHING)
    try:
        state = CursorState.from_json(json.loads(json.dumps(values)))
        changed = make_cursor(cursor.program, state=state)
    except ValueError:
        return
    columns = state_columns(1, state.caps, **pack.state_values(state))
    assert all(-(2**31) <= column < 2**31 for column in columns)
    walk(changed, 40, seed)
    assert CursorState.from_json(changed.state.to_json()) == changed.state


@pytest.mark.parametrize("program", [FREE, GUIDED])
def test_the_greatest_segment_goes_on(program: Program) -> None:
    first = make_cursor(program)
    walk(first, 3, 0)
    cursor = make_cursor(program, state=replace(first.state, segment=2**30))
    walk(cursor, 40, 0)
    assert cursor.state.segment > 2**30
    assert CursorState.from_json(cursor.state.to_json()) == cursor.state


@pytest.mark.parametrize(
    ("program", "changes", "message"),
    [
        (GUIDED, {"row": 99}, "row is 99: it must be 0 to"),
        (GUIDED, {"row": 0, "count": 1}, "count is 1: it must be 0 to 0"),
        (GUIDED, {"limit": -1}, "limit is -1: it must be 0 to 2147483647"),
        (TEXT_ONLY, {"count": 2}, "count is 2: it must be 0 to 1"),
        (TEXT_ONLY, {"limit": 3}, "limit is 3: it must be 1 to 2"),
        (GUIDED, {"granted": ()}, "0 granted caps for 1 reflections"),
        (GUIDED, {"granted": (), "num_reflections": 0}, "num_reflections must be 1 or more"),
        (GUIDED, {"caps": (-1,)}, r"caps\[0\] is -1: it must be 0 to"),
        (GUIDED, {"segment": -2}, "segment is -2"),
        (FREE, {"segment": 2**30 + 1}, "segment is 1073741825: it must be -1 to 1073741824"),
        (GUIDED, {"fresh": False}, "segment must be 0 or more"),
        (GUIDED, {"row": -1}, "of a free reply"),
        (FREE, {"row": 3}, "of a guided reply"),
        (TEXT_ONLY, {"text_done": True}, "nothing in the schedule finishes the text"),
    ],
    ids=str,
)
def test_states_out_of_range_are_refused(program: Program, changes: dict[str, Any], message: str) -> None:
    state = make_cursor(program).state
    make_cursor(program, state=state)
    with pytest.raises(ValueError, match=message):
        make_cursor(program, state=replace(state, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"version": 2}, "version 2: this engine reads version 1"),
        (lambda v: v | {"program": 3}, "has the unknown program"),
        (lambda v: {key: value for key, value in v.items() if key != "_limit"}, "lacks _limit"),
        (lambda v: v | {"_row": True}, "row is True: use an integer"),
        (lambda v: v | {"caps": [1, "2"]}, r"caps\[1\] is '2': use an integer"),
        (lambda v: list(v), "it must be an object"),
    ],
)
def test_json_that_is_no_state_is_refused(change: Any, message: str) -> None:
    values = make_cursor(GUIDED).state.to_json()
    assert CursorState.from_json({k: v for k, v in values.items() if k != "version"}).is_guided
    with pytest.raises(ValueError, match=message):
        CursorState.from_json(change(values))


def test_a_cap_leaves_forced_text_whole() -> None:
    forced = {"kind": "forced", "as": "reflection", "ids": [1, 2, 3]}
    schedule = Schedule.from_dict({"cycle": [forced, ["reflection", 4], ["speech", 2]]})
    cursor = Cursor(compile_schedule(schedule, VOCABULARY))
    assert not cursor.is_reflecting
    cursor.lower_cap(0)
    assert [cursor.emit_forced().token for _ in range(3)] == [1, 2, 3]
    assert cursor.is_reflecting and cursor.limit == 4
