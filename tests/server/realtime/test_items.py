"""The item list against a plain list, and items as clients write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import ConversationItem as ItemUnion
from pydantic import TypeAdapter

from innervoice.server.errors import ApiError
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.protocol.item_input import read_input, read_item, read_metadata

ITEM: TypeAdapter[Any] = TypeAdapter(ItemUnion)
IDS = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.lists(
    st.tuples(st.just("insert"), IDS, st.none() | st.just("root") | IDS)
    | st.tuples(st.just("delete"), IDS, st.none()),
    max_size=20,
)


@settings(deadline=None)
@given(STEPS)
def test_the_list_agrees_with_a_plain_one(steps: list[tuple[str, str, str | None]]) -> None:
    items, plain = ItemList(max_items=3), list[str]()
    for step, id, previous in steps:
        is_known = previous in (None, "root", *plain)
        if step == "delete" and id not in plain:
            with pytest.raises(ApiError, match="has no item"):
                items.delete(id)
        elif step == "delete":
            items.delete(id)
            plain.remove(id)
        elif id in plain or not is_known or len(plain) == 3:
            with pytest.raises(ApiError):
                items.insert(ConversationItem(id), previous)
        else:
            place = {None: len(plain), "root": 0}.get(previous)
            place = plain.index(str(previous)) + 1 if place is None else place
            plain.insert(place, id)
            assert items.insert(ConversationItem(id), previous) == (plain[place - 1] if place else None)
        assert [item.id for item in items] == plain
        assert items.last_id == (plain[-1] if plain else None)
        assert [items.previous_of(one) for one in plain] == [None, *plain[:-1]][: len(plain)]


GIVEN = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"role": "user", "content": "hi"},
    {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAAAA=="}]},
    {"type": "message", "role": "user", "content": [{"type": "input_audio", "transcript": "hi"}]},
    {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "be brief"}]},
    {"type": "message", "role": "developer", "content": [{"type": "text", "text": "be brief"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "hello"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "hello"}]},
    {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "call_1"},
    {"type": "function_call", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "5"},
]


@pytest.mark.parametrize("item", GIVEN)
def test_items_of_clients_are_read_and_shown_in_the_strict_shape(item: dict[str, Any]) -> None:
    shown = read_item({**item, "id": "mine"}, "item", 1000).to_json()
    assert shown["id"] == "mine"
    ITEM.validate_python(shown, strict=True)
    assert (
        type(ITEM.validate_python(shown)).__name__ == type(ITEM.validate_python(shown, strict=True)).__name__
    )
    assert read_item(item, "item", 1000).id.startswith("item_")


REFUSED = [
    ({"type": "message", "role": "user", "content": [{"type": "input_image"}]}, "item.content[0].type"),
    ({"type": "message", "role": "user", "content": [{"type": "output_audio"}]}, "item.content[0].type"),
    ({"type": "message", "role": "user", "content": [{"type": "input_text"}]}, "item.content[0].text"),
    ({"type": "message", "role": "user", "content": [{"type": "input_audio"}]}, "item.content[0].audio"),
    (
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "!"}]},
        "item.content[0].audio",
    ),
    (
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]},
        "item.content[0].audio",
    ),
    ({"type": "message", "role": "nobody", "content": []}, "item.role"),
    ({"type": "message", "role": "user"}, "item.content"),
    ({"type": "mcp_call"}, "item.type"),
    ({}, "item.type"),
    ({"type": 5}, "item.type"),
    ({"type": "function_call_output", "output": "x"}, "item.call_id"),
    ({"role": "user", "content": "x" * 1001}, "item"),
]


@pytest.mark.parametrize(("item", "param"), REFUSED)
def test_a_refused_item_names_the_field(item: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_item(item, "item", 1000)
    assert caught.value.param == param


def test_references_and_metadata() -> None:
    assert read_input({"type": "item_reference", "id": "a"}, "response.input[0]", 10) == "a"
    assert read_metadata({"a": "b"}, "response.metadata") == {"a": "b"}
    for wrong in ({str(i): "" for i in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": 1}):
        with pytest.raises(ApiError, match="metadata"):
            read_metadata(wrong, "response.metadata")
