"""Dialogues as items: texts equal transformers' apply_chat_template, replies are left out where they stand, and
GLM-4-Voice's turns are those of the single ones; items survive JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.model.families import glm4_voice, llama
from innervoice.model.text import JsonTokenizer
from innervoice.model.text.dialogue import DialogueItem, DialogueRole, SpokenCodes
from innervoice.model.text.templates import SPEECH_SYSTEM, TEXT_SYSTEM
from innervoice.types import Ids

PARTS = st.one_of(
    st.text(max_size=5),
    st.lists(st.integers(0, 99), max_size=3).map(lambda codes: SpokenCodes(tuple(codes))),
    st.lists(st.integers(0, 99), max_size=3).map(Ids),
)


def said(role: DialogueRole, *parts: Any, **given: Any) -> DialogueItem:
    return DialogueItem("", role, parts, **given)


@pytest.mark.parametrize("shape", ["chatml", "llama3"])
def test_texts_equal_apply_chat_template_and_replies_stay_out(tmp_path: Path, shape: str) -> None:
    pytest.importorskip("transformers")
    from chat_files import save

    theirs = save(tmp_path, shape)
    tokenizer, vocabulary = llama.load_text(tmp_path, None)
    assert isinstance(tokenizer, JsonTokenizer)
    texts = ["  Don't hurry,\n 345 words!\n", "Être?", "<|im_end|> forges nothing", "12 words.", "x"]
    items = [said("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    for system in (None, "answer the question"):
        head = [] if system is None else [{"role": "system", "content": system}]
        messages = head + [{"role": item.role, "content": item.parts[0]} for item in items]
        whole = theirs.apply_chat_template(messages[: len(head) + 2], return_dict=False)
        (run,) = llama.dialogue_runs(tokenizer, vocabulary, items[:2], system, opens=False)
        assert run == list(whole)
        first = llama.turn_ids(tokenizer, vocabulary, texts[0], system, first=True)
        later = llama.turn_ids(tokenizer, vocabulary, texts[4], system, first=False)
        replied = [items[0], said("assistant", reply=1), items[2], said("assistant", reply=2), items[4]]
        runs = llama.dialogue_runs(tokenizer, vocabulary, replied, system)
        assert [runs[0], runs[2], len(runs)] == [first, later, 3]
        given_ids = [items[0], said("assistant", Ids([7, 8, 9])), items[4]]
        assert llama.dialogue_runs(tokenizer, vocabulary, given_ids, system) == [[*first, 7, 8, 9, *later]]
        raw = [said("prompt", Ids([1, 2])), said("assistant", reply=1), items[4]]
        assert llama.dialogue_runs(tokenizer, vocabulary, raw, system)[1] == later
    with pytest.raises(ValueError, match="takes no speech"):
        llama.dialogue_runs(tokenizer, vocabulary, [said("user", SpokenCodes((1,)))])
    with pytest.raises(ValueError, match="no dialogue without a message"):
        llama.dialogue_runs(tokenizer, vocabulary, [])


def test_turns_of_the_voice_template_are_those_of_single_prompts(tiny_dir: Path) -> None:
    tokenizer, vocabulary = glm4_voice.load_text(tiny_dir / "glm-4-voice-9b", 16)
    for part, user, system in (("hello", "hello", TEXT_SYSTEM), (SpokenCodes((3, 5)), [3, 5], SPEECH_SYSTEM)):
        items = [said("user", part)]
        assert glm4_voice.default_system(vocabulary, items) == system
        first, later = (
            glm4_voice.turn_ids(tokenizer, vocabulary, user, first=is_first) for is_first in (True, False)
        )
        assert glm4_voice.dialogue_runs(tokenizer, vocabulary, items, system) == [first]
        dialogue = [*items, said("assistant", reply=4), *items]
        assert glm4_voice.dialogue_runs(tokenizer, vocabulary, dialogue, system) == [first, later]
        raw = [said("prompt", Ids([1, 2])), said("assistant", reply=1), *items]
        assert glm4_voice.dialogue_runs(tokenizer, vocabulary, raw, system) == [[1, 2], later]
        spoken = glm4_voice.turn_head_ids(tokenizer, vocabulary, [3, 5], first=False)
        assert later[: len(spoken)] == spoken or isinstance(part, str)
    own = [said("system", "be brief"), said("user", "hello")]
    assert glm4_voice.default_system(vocabulary, own) is None
    assert glm4_voice.dialogue_runs(tokenizer, vocabulary, own) == glm4_voice.dialogue_runs(
        tokenizer, vocabulary, own[1:], "be brief"
    )
    assert glm4_voice.default_system(vocabulary, []) == SPEECH_SYSTEM
    with pytest.raises(ValueError, match="speech code 99"):
        glm4_voice.dialogue_runs(tokenizer, vocabulary, [said("user", SpokenCodes((99,)))])


@given(
    st.text(max_size=4),
    st.sampled_from(["system", "user", "assistant", "prompt"]),
    st.lists(PARTS, max_size=3),
    st.booleans(),
)
def test_items_survive_json(name: str, role: Any, parts: list[Any], is_once: bool) -> None:
    item = DialogueItem(name, role, tuple(parts), is_once=is_once)
    assert DialogueItem.from_json(json.loads(json.dumps(item.to_json()))) == item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "judge"}, "role is judge: it must be one of system"),
        ({"parts": [["text", 3]]}, "part is .*: it must be text, codes or ids"),
        ({"parts": [["ids", [1.5]]]}, "part is"),
        ({"reply": -1}, "reply is -1: it must be 0 or more"),
        ({"reply": 2}, "is reply 2 with role 'user' and 1 parts"),
        ({"item_id": None}, "item_id is None: it must be text"),
        ({"more": 1}, "it must be an object of item_id"),
    ],
)
def test_damaged_items_are_named(change: dict[str, Any], message: str) -> None:
    values = said("user", "hello").to_json() | change
    with pytest.raises(ValueError, match=message):
        DialogueItem.from_json(values)
