"""Words that were added to a tokenizer are text as any other: encoded, drawn, written; marks are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from chat_files import SHAPES, byte_level, save, sentencepiece_like
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from innervoice.model.families import llama
from innervoice.model.text import JsonTokenizer, TextStream, TiktokenTokenizer, chat_turn_ids
from innervoice.model.text.tokenizer import is_word, runs
from innervoice.schedule import Cursor, Schedule, Segment, compile_schedule

WORDS: list[str | AddedToken] = [
    "Section5A", "2012-7", "naïve", "你好", "§", "the speaker", "a<b", "()", "[",
    AddedToken("exact", normalized=False), AddedToken("alone", single_word=True), AddedToken("left", lstrip=True),
    AddedToken("right", rstrip=True), AddedToken("Ünder", normalized=True, single_word=True, lstrip=True),
]  # fmt: skip
TEXTS = [
    "under Section5A?", "Section5ASection5A 2012-7", "nai\u0308ve naïve", "你好。你好啊", "§ 12§", "and the speakers hear",
    "a<b <b a<b>", "(()) [the [", "exact inexactly", "alone, loans alone", "x left y  left", "right  now", "x \u00dcnder y",
]  # fmt: skip


def with_words(folder: Path, shape: str) -> Any:
    it = SHAPES[shape]
    made = sentencepiece_like() if shape == "llama2" else byte_level(it["special"], first=it["first"])
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=it.get("bos"), eos_token=it["eos"])
    theirs.chat_template = it["template"]
    theirs.add_tokens(WORDS)
    theirs.add_tokens([AddedToken("<think>", special=False), AddedToken("[TOOL]", special=False)])
    theirs.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 512, "eos_token_id": 2})
    )
    return theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_words_are_text_as_transformers_has_it(tmp_path: Path, shape: str) -> None:
    theirs = with_words(tmp_path, shape)
    tokenizer, vocabulary = llama.load_text(tmp_path, None)
    assert isinstance(tokenizer, JsonTokenizer)
    added = {theirs.convert_tokens_to_ids(str(word)) for word in WORDS}
    low, high = vocabulary.text
    assert {i for first, last in vocabulary.words for i in range(first, last)} == {
        i for i in added if not low <= i < high
    }
    found = set()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        found |= added & set(ids)
        prompt = [{"role": "user", "content": text}]
        whole = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert chat_turn_ids(tokenizer, text, first=True) == list(whole), text
        # The library takes the letters of an added word for bytes, where they are in the byte alphabet.
        if shape != "llama2" and text.isascii():
            assert TextStream(tokenizer).feed(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert found == added
    for mark in ("<think>", "[TOOL]"):
        assert tokenizer.special(mark) not in tokenizer.encode(f"a {mark} b")
        assert tokenizer.token_bytes(theirs.convert_tokens_to_ids(mark)) == b""
    mask = Cursor(compile_schedule(Schedule(cycle=(Segment("transcript"),)), vocabulary)).mask
    assert all(i in mask for i in added)
    assert theirs.convert_tokens_to_ids("<think>") not in mask


def test_words_amid_the_text_and_at_its_end(tmp_path: Path) -> None:
    save(tmp_path, "chatml")
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for place, name, expected in ((200, "amid", ()), (511, "behind", ((511, 512),))):
        vocab = {token: i for token, i in data["model"]["vocab"].items() if i != place}
        merges = [
            pair
            for pair in data["model"]["merges"]
            if all(token in vocab for token in (*pair, "".join(pair)))
        ]
        word = {"id": place, "content": name, **flags}
        changed = data | {"model": data["model"] | {"vocab": vocab, "merges": merges}}
        path.write_text(json.dumps(changed | {"added_tokens": [*data["added_tokens"], word]}))
        tokenizer = JsonTokenizer.from_pretrained(tmp_path)
        assert tokenizer.words == expected
        assert place in tokenizer.encode(f"xx{name}yy")
        assert tokenizer.token_bytes(place) == name.encode()


def test_words_of_a_tiktoken_file() -> None:
    ranks = {bytes([i]): i for i in range(256)}
    tokenizer = TiktokenTokenizer(ranks, {"<|user|>": 256, "2012-7": 258}, {"2012-7": 258})
    assert tokenizer.encode("in 2012-7 <|user|>") == [*b"in ", 258, *b" <|user|>"]
    assert tokenizer.words == ((258, 259),)
    assert TextStream(tokenizer).feed(tokenizer.encode("é 2012-7")) == "é 2012-7"


def test_what_is_a_word() -> None:
    words = ["2012-7", "a", "<", "a<b>c", "<open", " "]
    marks = ["<think>", "</think>", "<|im_end|>", "[INST]", "<｜User｜>", " <mask> "]
    assert all(is_word(text, is_special=False) for text in words)
    assert not any(is_word(text, is_special=False) for text in marks)
    assert not any(is_word(text, is_special=True) for text in words + marks)
    assert runs([5, 3, 4, 9]) == ((3, 6), (9, 10))
