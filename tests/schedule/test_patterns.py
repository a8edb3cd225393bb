"""Segments that a pattern binds: the offered ids against brute force, ends, budgets, caps, states, JSON, refusals."""

from __future__ import annotations

import builtins
import json
import random
import re
from functools import cache
from itertools import product
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.schedule import (
    UNLIMITED,
    Cursor,
    CursorState,
    Emission,
    Patterns,
    Schedule,
    ScheduleError,
    Segment,
    compile_schedule,
    make_cursor,
)
from innervoice.schedule.regex_parts import expanded_length
from innervoice.types import Vocabulary

# Ids 0 to 19 are text: single letters, longer pieces, parts of an é, one text twice. 17 to 19 have none.
TEXTS = [
    b"a", b"b", b"c", b"ab", b"ba", b"abc", b"1", b"2", b"12", b'"', b"{", b"}", b":", b"\xc3", b"\xa9", b"a", b"-",
]  # fmt: skip
SIZE = 70
OPEN, CLOSE, DONE, EOT = 31, 32, 33, 30
VOCABULARY = Vocabulary(
    size=SIZE, text=(0, 20), speech=(20, 30), end_of_turn=EOT, open=OPEN, close=CLOSE, done=DONE, eos=(EOT,),
    words=((64, 66),),
)  # fmt: skip
WORDS = {64: b"bb", 65: b"cab"}


def text_of(token: int) -> bytes:
    return WORDS.get(token, b"") if token >= 20 else dict(enumerate(TEXTS)).get(token, b"")


BYTES = Vocabulary(size=300, text=(0, 256), speech=None, end_of_turn=270, open=271, close=272, eos=(270,))
IDS = [token for token in range(SIZE) if text_of(token)]
PATTERNS = Patterns(VOCABULARY, text_of)


def cursor_of(*prologue: Any, caps: tuple[int, ...] = (), tokens: Any = None, **more: Any) -> Cursor:
    schedule = {"prologue": list(prologue), "cycle": [["transcript", 3], ["speech", 2]], **more}
    if tokens is not None:
        schedule["tokens"] = tokens
    program = compile_schedule(Schedule.from_dict(schedule), VOCABULARY, patterns=PATTERNS)
    made = make_cursor(program, caps)
    assert isinstance(made, Cursor)
    return made


def bound(pattern: str, budget: int | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "reflection", "budget": budget, "pattern": pattern, **more}


def offered(cursor: Cursor) -> set[int]:
    return {token for token in range(SIZE) if token in cursor.mask}


def spelled(pattern: str, num_characters: int, most: int = 99) -> set[tuple[int, ...]]:
    """All ids, at most so many, that spell a text of at most so many characters which fits: by trying them all."""
    characters = [one for one in 'abc12"{}:-é' if one in pattern.replace("a-c", "abc")]
    fits = re.compile(pattern)
    texts = ("".join(text) for num in range(num_characters + 1) for text in product(characters, repeat=num))
    fitting = [text.encode() for text in texts if fits.fullmatch(text)]
    return {ids for text in fitting for ids in spellings_of(text) if len(ids) <= most}


@cache
def spellings_of(text: bytes) -> frozenset[tuple[int, ...]]:
    """All ids that spell a text."""
    if not text:
        return frozenset({()})
    first = [token for token in IDS if text.startswith(text_of(token))]
    return frozenset((token, *rest) for token in first for rest in spellings_of(text[len(text_of(token)) :]))


FINITE = [
    "ab|abc|ba", "a|ab(c1)?", "a(b|c)?1", "[ab]{1,3}", '"[abc]?"', "é|a", "(ab|a)(12|1)?", "-?1?2", "(abc|cab)c?", "(ab)??c?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", FINITE)
def test_the_offered_ids_are_those_that_some_spelling_goes_on_with(pattern: str) -> None:
    """At every place that can be reached, against all spellings of at most six characters: no text that fits has as many."""
    spellings = spelled(pattern, 6)
    assert max(len(b"".join(map(text_of, ids)).decode()) for ids in spellings) < 6
    places = {ids[:num] for ids in spellings for num in range(len(ids) + 1)}
    for place in places:
        goes_on = {ids[len(place)] for ids in spellings if ids[: len(place)] == place and ids != place}
        if place in spellings and not goes_on:
            continue
        cursor = cursor_of(bound(pattern))
        cursor.emit_forced()
        for token in place:
            cursor.draw(token)
        ends = {CLOSE, DONE} if place in spellings else set()
        assert offered(cursor) == goes_on | ends, place


@pytest.mark.parametrize(
    ("pattern", "budget"), [("a*b", 2), ("[abc]+1", 3), ("(ab)*(12)?", 2), ('"[a-c]*"', 3)]
)
def test_the_offered_ids_leave_room_for_the_end_within_the_budget(pattern: str, budget: int) -> None:
    """Endless patterns under a budget: at every place the ids of spellings that are short enough, and no others."""
    spellings = spelled(pattern, 3 * budget, budget)
    places = {ids[:num] for ids in spellings for num in range(len(ids) + 1)}
    for place in places:
        goes_on = {ids[len(place)] for ids in spellings if ids[: len(place)] == place and ids != place}
        cursor = cursor_of(bound(pattern, budget))
        cursor.emit_forced()
        for token in place:
            cursor.draw(token)
        if place in spellings and (len(place) == budget or not goes_on):
            assert cursor.forced == CLOSE
        else:
            assert offered(cursor) == goes_on | ({CLOSE, DONE} if place in spellings else set()), place


def test_few_ids_are_offered_singly_and_many_by_packed_bits() -> None:
    """The same ids either way, and an id without text never."""
    letters = Patterns(BYTES, lambda token: bytes([token]))
    schedule = {"prologue": [bound("[\\x20-\\x7e]|[^a]{2}")], "cycle": [["transcript", 3]]}
    cursor = Cursor(compile_schedule(Schedule.from_dict(schedule), BYTES, patterns=letters))
    cursor.emit_forced()
    assert cursor.mask.bits is not None
    assert {token for token in range(300) if token in cursor.mask} >= set(range(1, 128)) - {ord("a")}
    assert 0 not in cursor.mask and 271 not in cursor.mask
    cursor.draw(0xC3)
    assert cursor.mask.bits is None
    assert {token for token in range(300) if token in cursor.mask} == set(range(0x80, 0xC0))


def walk(cursor: Cursor, rng: random.Random, likes: tuple[int, ...] = ()) -> list[Emission]:
    """Draws of a reply's prologue, at random among what is offered but for ids that are liked."""
    made: list[Emission] = []
    while cursor.is_reflecting or cursor.forced is not None:
        if cursor.forced is not None:
            made.append(cursor.emit_forced())
            continue
        ids = sorted(offered(cursor))
        emission = cursor.draw(next((token for token in likes if token in ids), rng.choice(ids)))
        assert emission is not None
        made.append(emission)
    return made


def text_in(made: list[Emission]) -> str:
    return b"".join(text_of(e.token) for e in made if e.kind.label == "reflection").decode()


@pytest.mark.parametrize("pattern", ["[abc]+1", "(ab|c)*", '\\{"a+":1?2\\}', "é+", "-?(1|2)+"])
def test_random_walks_fit_within_budgets_and_caps(pattern: str) -> None:
    """Whatever is capped, and whenever, the text fits, and `granted` given as caps offers the same at each place."""
    shortest = cursor_of(bound(pattern)).program.bound
    (segment,) = shortest.values()
    for seed in range(60):
        rng = random.Random(seed)
        budget = rng.choice([None, segment.guide.shortest or 1, 4 + segment.guide.shortest, 12])
        budget = None if budget is None else max(budget, segment.guide.shortest)
        caps = (rng.choice([UNLIMITED, 1, 2, 5]),)
        close = rng.choice([{}, {"close": [1, 32, 2]}, {"stop": [5]}])
        cursor = cursor_of(bound(pattern, budget, **close), caps=caps)
        lowered = rng.randrange(8)
        made: list[Emission] = []
        seen: list[set[int]] = []
        while cursor.is_reflecting or cursor.forced is not None:
            again = CursorState.from_json(json.loads(json.dumps(cursor.state.to_json())))
            cursor = make_cursor(cursor.program, state=again)  # type: ignore[assignment]
            if cursor.forced is not None:
                made.append(cursor.emit_forced())
                continue
            if len(made) == lowered:
                cursor.lower_cap(rng.choice([1, len(made), 20]))
                lowered = -1
                continue
            seen.append(offered(cursor))
            plain = sorted(seen[-1] - {CLOSE, DONE, 1, 5}) or sorted(seen[-1])
            emission = cursor.draw(rng.choice(plain if rng.random() < 0.8 else sorted(seen[-1])))
            assert emission is not None
            made.append(emission)
        text = [e for e in made if e.kind.label == "reflection"]
        assert re.fullmatch(pattern, text_in(made)), (seed, text_in(made))
        assert budget is None or len(text) <= budget
        granted = cursor.granted[0]
        assert len(text) <= max(granted, 1) + int(segment.guide.distance.max())
        twin = cursor_of(bound(pattern, budget, **close), caps=(granted,))
        for emission in made:
            if twin.forced is not None:
                assert twin.emit_forced() == emission
            else:
                assert offered(twin) == seen.pop(0)
                twin.draw(emission.token)
        assert not seen and twin.granted[0] == granted


def test_the_close_is_forced_where_nothing_can_follow() -> None:
    cursor = cursor_of(bound("ab", close=[1, 2, 32], name="letters"))
    assert cursor.emit_forced().token == OPEN
    assert cursor.program.fits_device is False and cursor.is_reflecting
    assert offered(cursor) == {0, 3, 15}  # a, and another a, and ab
    cursor.draw(0)
    made = [cursor.draw(1), *(cursor.emit_forced() for _ in range(3))]
    assert [(e.token, e.kind.label, e.forced, e.name, e.cap) for e in made if e] == [
        (1, "reflection", False, "letters", UNLIMITED),
        *((token, "close", True, "letters", None) for token in (1, 2, 32)),
    ]
    assert cursor.kind.label == "transcript" and DONE in cursor.mask


def test_a_drawn_beginning_of_a_close_forces_its_rest_even_where_the_pattern_could_go_on() -> None:
    cursor = cursor_of(bound("[ab]+", close=[1, 32, 2]))
    cursor.emit_forced()
    cursor.draw(0)
    closing = [cursor.draw(1), cursor.emit_forced(), cursor.emit_forced()]
    assert [(e.token, e.kind.label, e.forced) for e in closing if e] == [
        (1, "close", False),
        (32, "close", True),
        (2, "close", True),
    ]


def test_done_and_stop_end_it_only_where_the_text_fits() -> None:
    cursor = cursor_of(bound("ab?", stop=[7]), ["reflection", 2])
    cursor.emit_forced()
    assert offered(cursor) == {0, 3, 15}
    cursor.draw(0)
    assert offered(cursor) == {1, 7, CLOSE, DONE}
    ended = cursor.draw(DONE)
    assert ended is not None and ended.kind.label == "done" and cursor.kind.label == "transcript"


def test_a_segment_without_a_close_ends_with_its_pattern() -> None:
    cursor = cursor_of(bound("(ab|c)1"), tokens={"open": None, "close": None, "done": None})
    cursor.draw(2)
    cursor.draw(6)
    assert cursor.kind.label == "transcript"


def test_a_cap_of_zero_leaves_it_out_and_limits_hold() -> None:
    assert cursor_of(bound("ab"), caps=(0,)).kind.label == "transcript"
    cursor = cursor_of(bound("a+", name="letters"), limits={"letters": 2})
    made = walk(cursor, random.Random(1), likes=(0,))
    assert text_in(made) == "aa" and cursor.granted == [2]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "b": {"enum": [1, "a", None]},
        "a": {"type": "string", "maxLength": 2},
        "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "d": {"$ref": "#/$defs/n"},
    },
    "required": ["b", "a"],
    "additionalProperties": False,
    "$defs": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
}
CHARACTERS = Vocabulary(
    size=200, text=(0, 128), speech=None, end_of_turn=130, open=131, close=132, eos=(130,)
)


def test_texts_of_a_schema_fit_it() -> None:
    """Random walks over a vocabulary of single characters, also when they are cut short."""
    patterns = Patterns(CHARACTERS, lambda token: bytes([token]))
    values = []
    for number, schema in enumerate(
        [SCHEMA, json.dumps(SCHEMA), {"type": ["number", "null"]}, {"const": "é"}] * 12
    ):
        if schema == {"const": "é"}:
            continue
        made = Schedule(prologue=(Segment("reflection", schema=schema),), cycle=(Segment("transcript"),))
        assert Schedule.from_dict(json.loads(json.dumps(made.to_dict()))) == made
        program = compile_schedule(made, CHARACTERS, patterns=patterns)
        cursor = make_cursor(program, (5 + number,))
        assert isinstance(cursor, Cursor)
        rng, text = random.Random(number), b""
        cursor.emit_forced()
        while cursor.forced is None and cursor.is_reflecting:
            emission = cursor.draw(rng.choice([token for token in range(200) if token in cursor.mask]))
            assert emission is not None
            text += bytes([emission.token]) if emission.kind.label == "reflection" else b""
        value = json.loads(text)
        jsonschema.validate(value, json.loads(schema) if isinstance(schema, str) else schema)
        values.append(value)
    assert len({json.dumps(value) for value in values}) > 10
    assert any(isinstance(value, dict) and list(value)[:2] == ["b", "a"] for value in values)


_plain = st.sampled_from([None, True, 3, -1.5, "a", "b c", "é{"])
_leaves = st.one_of(
    st.sampled_from(["string", "integer", "number", "boolean", "null", ["string", "null"]]).map(
        lambda name: {"type": name}
    ),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
              st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(["[a-c]+", "^x(1|2)?$", "\\d{2}"]).map(lambda text: {"type": "string", "pattern": text}),
    st.sampled_from(["date", "date-time", "uuid"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(_plain, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    _plain.map(lambda value: {"const": value}),
)  # fmt: skip


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(["a", "b b", "c.d", "ä"]), max_size=3, unique=True)
    return st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=1, max_size=2).map(lambda several: {"type": "array", "prefixItems": several}),
        st.builds(lambda one, low, more: {"type": "array", "items": one, "minItems": low, "maxItems": low + more},
                  inner, st.integers(0, 2), st.integers(0, 1)),
        inner.map(lambda one: {"type": "object", "additionalProperties": one}),
        st.builds(lambda keys, several, needed: {"type": "object", "properties": dict(zip(keys, several, strict=False)),
                                                 "required": list(dict(zip(keys, several, strict=False)))[:needed]},
                  names, st.lists(inner, min_size=3, max_size=3), st.integers(0, 3)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(schema=st.recursive(_leaves, _nested, max_leaves=4), seed=st.integers(0, 99), cap=st.integers(1, 30))
def test_what_is_drawn_under_any_schema_fits_it(schema: dict[str, Any], seed: int, cap: int) -> None:
    made = Schedule(prologue=(Segment("reflection", schema=schema),), cycle=(Segment("transcript"),))
    program = compile_schedule(made, BYTES, patterns=Patterns(BYTES, lambda token: bytes([token])))
    cursor = Cursor(program, (cap,))
    rng, text = random.Random(seed), b""
    cursor.emit_forced()
    while cursor.forced is None and cursor.is_reflecting:
        offered_ids = [token for token in range(300) if token in cursor.mask]
        printable = [token for token in offered_ids if 32 <= token < 127] or offered_ids
        emission = cursor.draw(rng.choice(printable if rng.random() < 0.9 else offered_ids))
        assert emission is not None
        text += bytes([emission.token]) if emission.kind.label == "reflection" else b""
    jsonschema.validate(json.loads(text), schema)


REFUSED = [
    (bound("("), "prologue[0].pattern is '(', which outlines-core refuses (Failed to build DFA"),
    (bound("a)|(b"), "write a regular expression in the syntax of Rust's regex"),
    (bound("az"), "prologue[0].pattern is 'az', a part of which no ids of the vocabulary can spell"),
    (bound("a+z|é+z"), "a part of which no ids of the vocabulary can spell"),
    (bound(""), "which only the empty text fits"),
    (bound("(a{1000}){1000}"), "it must have at most 20000"),
    (bound("a[bc]1-", 2), "prologue[0].budget is 2: the shortest text that fits has 3 ids"),
    (bound("a") | {"schema": {"type": "null"}}, "has a pattern and a schema: leave one out"),
    (
        {"kind": "choice", "choices": [[1]], "pattern": "a"},
        "prologue[0].pattern is given, and it binds a reflection alone: a choice segment has no such text",
    ),
    ({"kind": "fed", "feed": "x", "pattern": "a"}, "a fed segment has no such text"),
    ({"kind": "transcript", "schema": {}}, "prologue[0].schema is given, and it binds a reflection alone"),
    (bound("a") | {"pattern": 3}, "prologue[0].pattern is 3: use a string"),
    ({"kind": "reflection", "schema": 3}, "prologue[0].schema is 3: use a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("segment", "message"), REFUSED)
def test_refusals(segment: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        cursor_of(segment)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and str(error.value).startswith("schedule.prologue[0]")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "schema is '{', which is no JSON"),
        ("3", "schema is '3': write a JSON schema, which is an object"),
        ({}, "schema has no type"),
        ({"type": "dict"}, "schema.type is 'dict'"),
        (
            {"type": "integer", "minimum": 3},
            "schema.minimum is a keyword that outlines-core does not hold here",
        ),
        ({"oneOf": [{"type": "null"}]}, "schema has no type"),
        ({"type": "string", "oneOf": []}, "schema.oneOf is a keyword"),
        ({"enum": [[1]]}, "schema.enum holds '[1]', which is no plain value"),
        ({"type": "string", "enum": [1]}, "schema.enum holds '1'"),
        ({"properties": {"a": {"not": {}}}}, "schema.properties.a has no type"),
        ({"properties": {}, "required": ["a"]}, "schema.required names 'a'"),
        ({"properties": {'"': {"type": "null"}}}, "schema.properties has the name '\"'"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "which leads to itself"),
        ({"properties": {"a": {"$ref": "#/x"}}}, "which the schema does not have"),
        ({"$ref": "http://example.org"}, "only places within the schema are known"),
        ({"type": "string", "pattern": "a.*"}, "which may write what no JSON string holds"),
        ({"type": "string", "pattern": "a|b"}, "alternatives in parentheses"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "has two of length, pattern and format"),
        ({"type": "string", "format": "email"}, "schema.format is 'email'"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "schema.maxLength is below minLength"),
        ({"type": "array", "items": {"type": "null"}, "minItems": -1}, "schema.minItems is -1"),
        ({"type": "array", "items": 3}, "schema.items is '3'"),
        ({"anyOf": []}, "schema.anyOf is '[]'"),
    ],
)
def test_schemas_whose_texts_would_not_fit_them_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        cursor_of({"kind": "reflection", "schema": schema})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits and the first pass; what never ends; no tokenizer; no library; a state of another text."""
    for more, message in (
        ({"limits": {"x": 1}}, "schedule.limits.x is 1: the shortest text that fits its pattern has 2 ids"),
        ({"first": [1, None]}, "schedule.first[0] is 1: the shortest text"),
        ({"tokens": {"close": None, "done": None}}, "the text may go on for ever: nothing could end it"),
    ):
        schedule = {"cycle": [bound("a1+", name="x"), ["speech", 2]], **more}
        with pytest.raises(ScheduleError, match=re.escape(message)):
            compile_schedule(Schedule.from_dict(schedule), VOCABULARY, patterns=PATTERNS)
    plain = Schedule.from_dict({"cycle": [bound("ab"), ["speech", 2]]})
    with pytest.raises(ScheduleError, match="has a pattern, and there is no tokenizer"):
        compile_schedule(plain, VOCABULARY)

    cursor = cursor_of(bound("ab"))
    cursor.emit_forced()
    cursor.draw(0)
    for changed, message in (
        ({"spelled": [1]}, "its segment's pattern does not begin with"),
        ({"spelled": []}, "0 ids"),
    ):
        state = CursorState.from_json(cursor.state.to_json() | changed)
        with pytest.raises(ValueError, match=message):
            make_cursor(cursor.program, state=state)

    find = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("outlines_core"):
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ScheduleError, match=r"not installed: pip install 'innervoice\[patterns\]'"):
        compile_schedule(plain, VOCABULARY, patterns=PATTERNS)


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("abc", 3),
        ("a{3}", 3),
        ("(ab){2,5}c", 11),
        ("((a{10}){10}){10}", 1000),
        ("[^a-z]{4}", 4),
        (r"\{2\}", 3),
        ("a{2,}", 2),
    ],
)
def test_repeats_are_written_out_to_measure_a_pattern(pattern: str, length: int) -> None:
    assert expanded_length(pattern) == length
