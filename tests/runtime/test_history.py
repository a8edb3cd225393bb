"""Histories as items: turns taken out, cuts that repeat, exports of the first version."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.model.sequence import TokenColumns
from innervoice.model.text.dialogue import DialogueItem
from innervoice.model.token_role import TokenRole
from innervoice.runtime.history import derive_items, droppable, groups_of, join_tokens, without
from innervoice.runtime.interrupt import cut_tokens
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.types import Ids

SPEECH = (100, 200)
LETTERS = {"h": (5, TokenRole.HIDDEN), "t": (6, TokenRole.SPOKEN), "s": (150, TokenRole.SPOKEN)}


def item(name: str, role: Any, reply: int = 0) -> DialogueItem:
    return DialogueItem(name, role, reply=reply)


def own(letters: str, number: int = 1) -> TokenColumns:
    pairs = [LETTERS[letter] for letter in letters]
    return TokenColumns([i for i, _ in pairs], [role for _, role in pairs], [number] * len(pairs))


@given(
    st.text("hts", max_size=30),
    st.integers(0, 12),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_second_cut_leaves_what_the_only_one_would(
    letters: str, more: int, less: int, by_text: bool, keeps: bool, is_over: bool
) -> None:
    """Whatever was cut before, as long as it was more."""
    more, less = max(more, less), min(more, less)
    cut: Any = "transcript" if by_text else "speech"
    reflection: Any = "keep" if keeps else "drop"
    tokens = own(letters)
    first = cut_tokens(tokens, SPEECH, more, cut, reflection, is_over=is_over)
    rest = tokens.at(first.places)
    second = cut_tokens(rest, SPEECH, less, cut, reflection, is_over=True, size=first.size)
    only = cut_tokens(tokens, SPEECH, less, cut, reflection, is_over=is_over)
    assert [first.places[i] for i in second.places] == only.places
    assert (second.num_speech, second.text_ids) == (only.num_speech, only.text_ids)


def test_turns_are_taken_out_from_the_oldest() -> None:
    items = [
        item("s", "system"),
        item("greeting", "assistant", 1),
        item("a", "user"),
        item("b", "user"),
        item("c", "assistant", 2),
        item("t", "system"),
        item("d", "user"),
        item("e", "assistant", 3),
    ]
    assert [[one.item_id for one in group] for group in groups_of(items)] == [
        ["greeting"],
        ["a", "b", "c"],
        ["d", "e"],
    ]
    assert [one.item_id for one in without(items, groups_of(items)[:2])] == ["s", "t", "d", "e"]
    assert [one.item_id for one in without(items, groups_of(items))] == ["s", "t"]


@pytest.mark.parametrize(
    ("new", "after_turns"),
    [
        ("", ["s", "t"]),
        ("f:user", ["s", "t"]),
        ("f:user g:user h:user", ["f", "g", "s", "t"]),
        ("f:user u:system g:user v:system", ["f", "s", "t", "u", "v"]),
        ("u:system v:system", ["s", "t", "u"]),
        ("f:user once:system", ["s", "t"]),
    ],
)
def test_turns_are_dropped_before_messages_and_these_before_system_texts(
    new: str, after_turns: list[str]
) -> None:
    """The last message stays whatever its role, and so does a system text that counts once."""
    old = [item("s", "system"), item("a", "user"), item("b", "assistant", 1), item("t", "system")]
    messages = [item(*one.split(":")) for one in new.split()]  # type: ignore[arg-type]
    messages = [replace(one, is_once=one.item_id == "once") for one in messages]
    groups, num_turns = droppable(old, messages)
    assert [[one.item_id for one in group] for group in groups] == [["a", "b"], *([id] for id in after_turns)]
    assert num_turns == 1


def test_replies_go_between_the_runs_of_a_template() -> None:
    items = [item("a", "user"), item("b", "assistant", 2), item("c", "assistant", 1), item("d", "user")]
    tokens = own("ts", 1)
    tokens.extend(own("h", 2))
    made = join_tokens([[1], [2, 3], [4]], items, tokens)
    assert (made.ids, made.replies) == ([1, 5, 2, 3, 6, 150], [0, 2, 0, 0, 1, 1])
    derived = derive_items(made)
    assert [(one.role, one.reply) for one in derived] == [
        ("prompt", 0),
        ("assistant", 2),
        ("prompt", 0),
        ("assistant", 1),
    ]
    assert derived[2].parts == (Ids([2, 3]),)


def test_a_snapshot_of_the_first_version_is_read() -> None:
    values = {
        "model": "m",
        "ids": [1, 2, 6],
        "roles": [0, 0, 2],
        "replies": [0, 0, 1],
        "weights": [0.0, 0.0],
        "paused": None,
        "injected": [],
    }
    snapshot = SessionSnapshot.from_dict(values)
    assert (snapshot.items, snapshot.pending, snapshot.head) == ([], [], None)
    newer = json.loads(json.dumps(snapshot.to_dict()))
    assert SessionSnapshot.from_dict(newer) == snapshot
    for change, message in (
        ({"items": [item("a", "user").to_json()]}, "history must end with a reply"),
        ({"pending": [item("a", "assistant", 1).to_json()]}, "what waits hold none"),
        ({"items": [item("a", "assistant", 5).to_json()]}, "items hold reply 5 of 1"),
        ({"items": [item("a", "assistant", 1).to_json()] * 2}, "have one item_id"),
    ):
        with pytest.raises(ValueError, match=message):
            SessionSnapshot.from_dict(newer | change).check(100, lambda schedule: pytest.fail("no reply"))
    spoken = item("a", "user").to_json() | {"parts": [["codes", [9]]]}
    foreign = SessionSnapshot.from_dict(newer | {"pending": [spoken]})
    with pytest.raises(ValueError, match="speech code 9"):
        foreign.check(100, lambda schedule: pytest.fail("no reply"), num_codes=9)
