"""tokenizer.json and chat templates: ids equal transformers' apply_chat_template, text forges nothing, failures say why."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from chat_files import SHAPES, save

from innervoice.model.families import llama
from innervoice.model.text import ChatTemplate, JsonTokenizer, TextStream, chat_turn_ids
from innervoice.types import Vocabulary

TEXTS = [
    "hello there",
    "  Don't hurry,\n 345 words!\n",
    "Être où? 你好。🙂",
    "x",
    "a\n\nb  c\t",
    "the listener 1234",
]
REPLIES = ["the speaker thinks", "Être?", "12 words."]
SYSTEMS = [None, "answer the question", " then ask one.\n"]


def of(folder: Path, shape: str, **options: Any) -> tuple[JsonTokenizer, Vocabulary, Any]:
    theirs = save(folder, shape, **options)
    tokenizer, vocabulary = llama.load_text(folder, None)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer, vocabulary, theirs


def messages(system: str | None, texts: list[str]) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)
    ]


def whole(theirs: Any, system: str | None, texts: list[str]) -> list[int]:
    ids = theirs.apply_chat_template(messages(system, texts), add_generation_prompt=True, return_dict=False)
    return list(ids)


@pytest.mark.parametrize("shape", SHAPES)
def test_turns_equal_apply_chat_template(tmp_path: Path, shape: str) -> None:
    tokenizer, vocabulary, theirs = of(tmp_path, shape)
    for system in SYSTEMS if shape != "llama2" else [None]:
        for text in TEXTS:
            first = llama.turn_ids(tokenizer, vocabulary, text, system, first=True)
            assert first == whole(theirs, system, [text])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_dialogue_equals_apply_chat_template(tmp_path: Path, shape: str, system: str | None) -> None:
    """What transformers writes of the whole dialogue is the ids of the turns with those of the replies between."""
    tokenizer, vocabulary, theirs = of(tmp_path, shape)
    if shape == "llama2" and system is not None:
        with pytest.raises(ValueError, match="System text is not supported"):
            llama.turn_ids(tokenizer, vocabulary, "x", system, first=True)
        return
    # What a model writes itself between the opening and its words.
    lead = {"glm": "\n", "llama2": " "}.get(shape, "")
    ids: list[int] = []
    said: list[str] = []
    for text, reply in zip(TEXTS, REPLIES, strict=False):
        said.append(text)
        ids += llama.turn_ids(tokenizer, vocabulary, text, system, first=not ids)
        assert ids == whole(theirs, system, said), said
        said.append(reply)
        ids += tokenizer._later_encoder.encode(lead + reply, add_special_tokens=False).ids


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_text_and_its_bytes(tmp_path: Path, shape: str) -> None:
    tokenizer, _, theirs = of(tmp_path, shape)
    for text in [*TEXTS, "", "e\u0301"]:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        low, high = tokenizer.text_range
        assert all(low <= i < high for i in ids)
        # transformers drops a sentencepiece word's space at the start of what it decodes.
        decoded = TextStream(tokenizer).feed(ids)
        assert (decoded.removeprefix(" ") if shape == "llama2" else decoded) == theirs.decode(ids)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("a\ud800b"))).decode().strip() == "a\ufffdb"


@pytest.mark.parametrize("shape", SHAPES)
def test_text_cannot_forge_added_tokens(tmp_path: Path, shape: str) -> None:
    tokenizer, vocabulary, _ = of(tmp_path, shape, thinking=True)
    names = [*SHAPES[shape].get("special", ("<s>", "</s>", "<unk>")), "<think>", "</think>"]
    added = {tokenizer.require_special(name) for name in names}
    harmless = llama.turn_ids(tokenizer, vocabulary, "hello", None, first=True)
    for forged in (*names, "hi" + "".join(names) + " there", names[0][1:] + names[1][:-1]):
        ids = llama.turn_ids(tokenizer, vocabulary, forged, None, first=True)
        assert [i for i in ids if i in added] == [i for i in harmless if i in added]
        assert not added & set(tokenizer.encode(forged))
        assert TextStream(tokenizer).feed(tokenizer.encode(forged)).removeprefix(" ") == forged
    if shape == "chatml":
        ids = llama.turn_ids(tokenizer, vocabulary, "hello", "<|im_end|>", first=True)
        assert [i for i in ids if i in added] == [i for i in harmless if i in added]


def test_vocabularies(tmp_path: Path) -> None:
    expected = {
        "chatml": ((3, 360), 2, (0, 2)),
        "llama3": ((0, 360), 364, (364,)),
        "glm": ((0, 360), 364, (360, 364)),
    }
    for shape, (text, end, eos) in expected.items():
        _, vocabulary, _ = of(tmp_path / shape, shape, thinking=True)
        assert vocabulary == Vocabulary(size=512, text=text, speech=None, end_of_turn=end, eos=eos)
    names = {"reflection": {"open": "<think>", "close": "</think>", "done": None}}
    (tmp_path / "chatml" / "schedule.json").write_text(json.dumps(names))
    tokenizer, vocabulary = llama.load_text(tmp_path / "chatml", None)
    assert (vocabulary.open, vocabulary.close, vocabulary.done) == (360, 361, None)
    assert tokenizer.token_bytes(360) == tokenizer.token_bytes(0) == tokenizer.token_bytes(511) == b""
    with pytest.raises(ValueError, match=r"no token '<\|audio_0\|>'"):
        llama.load_text(tmp_path / "chatml", 64)
    with pytest.raises(ValueError, match=r"tokenizer\.json has no added token '<\|nobody\|>'"):
        tokenizer.require_special("<|nobody|>")
    with pytest.raises(ValueError, match="this model takes no speech"):
        llama.turn_ids(tokenizer, vocabulary, [1, 2], None, first=True)


def test_a_byte_and_a_word_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer, vocabulary, _ = of(tmp_path, "llama2")
    assert vocabulary.text[0] == 3
    assert tokenizer.token_bytes(3 + 10) == b"\n"
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("the é")] == [b" the", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.encode("<s>") != [1]


# Templates that fail.


def template(source: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate(source, tokens, Path("chat_template.jinja"), now=lambda: datetime(2026, 2, 3))


LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[7].content.nothing }}", "chat template fails for this dialogue ("),
        ("{{ raise_exception('only odd days') }}", "(only odd days)"),
        ("{{ 1 / 0 }}", "(division by zero)"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
        ("nothing", "it does not write every message once, as it is"),
        (LOOP + "{{ messages[-1].content }}", "it does not write every message once, as it is"),
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "it does not write every message once",
        ),
        ("{{ messages[-1].content }}", "earlier turns otherwise"),
        ("{{ messages | length }}" + LOOP, "earlier turns otherwise"),
        ("{% for m in messages %}{{ m.content }}[{{ loop.index }}]{% endfor %}", "earlier turns otherwise"),
        (
            LOOP + "{% if messages | length > 2 %}{{ messages[-3].content }}{% endif %}",
            "it repeats earlier turns",
        ),
    ],
)
def test_templates_that_fail(source: str, message: str) -> None:
    def both_turns() -> None:
        for first in (True, False):
            template(source).turn("hello", None, first=first)

    with pytest.raises(
        ValueError, match=r"^chat_template\.jinja: .*: change it, or give a prompt as Ids$"
    ) as error:
        both_turns()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_system_text_must_be_written() -> None:
    users = template("{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }};{% endfor %}")
    assert "".join(piece.text for piece in users.turn("hi", None, first=True)) == "user:hi;"
    with pytest.raises(ValueError, match="does not write every message"):
        users.turn("hi", "be brief", first=True)
    assert "".join(piece.text for piece in users.turn("hi", "", first=True)) == "user:hi;"


def test_what_templates_are_written_for() -> None:
    source = (
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ {'ü': [1]} | tojson }}\n{% for m in messages %}\n"
        "  {% if loop.index > 9 %}{% break %}{% endif %}\n{% generation %}{{ m.content }}{% endgeneration %};\n{% endfor %}\n"
    )
    pieces = template(source, bos_token="<s>").turn(" hi ", None, first=True)
    assert [(p.text, p.is_template) for p in pieces] == [
        ('<s>03 Feb 2026 {"ü": [1]}\n ', True),
        ("hi", False),
        (" ;\n", True),
    ]
    with pytest.raises(ValueError, match=r"the chat template is not valid \(.*unknown tag 'nope'"):
        template("{% nope %}")


def test_where_the_template_is_read_from(tmp_path: Path) -> None:
    assert ChatTemplate.read(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    named = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": LOOP + "{{ eos_token }}"},
    ]
    config.write_text(
        json.dumps({"chat_template": named, "eos_token": {"content": "</s>"}, "pad_token": None})
    )
    read = ChatTemplate.read(tmp_path)
    assert read is not None
    assert "".join(piece.text for piece in read.turn("hi", None, first=True)) == "<user>hi</s>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    read = ChatTemplate.read(tmp_path)
    assert read is not None
    assert "".join(piece.text for piece in read.turn("hi", None, first=True)) == "hi!"
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(ValueError, match="chat_template is 5, expected text"):
        ChatTemplate.read(tmp_path)


def test_without_a_template(tmp_path: Path) -> None:
    save(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer, vocabulary = llama.load_text(tmp_path, None)
    assert vocabulary.end_of_turn == 0
    with pytest.raises(
        ValueError, match=r"has no chat template, neither .*: add it, or give a prompt as Ids"
    ):
        chat_turn_ids(tokenizer, "hi", first=True)


def test_broken_template_leaves_ids_usable(tmp_path: Path) -> None:
    tokenizer, vocabulary, _ = of(tmp_path, "chatml", template="{{ raise_exception('closed') }}")
    assert (vocabulary.end_of_turn, tokenizer.encode("hello") != []) == (0, True)


# tokenizer.json files that are refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "a model of type 'Unigram' is not supported"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "the vocabulary has no text tokens"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
            "cannot be read as a tokenizer",
        ),
        ({"model": None}, "model is None, expected dict"),
        ({"added_tokens": [{"id": 9, "content": "x", "single_word": True}]}, "'x' has single_word"),
        ({"added_tokens": [{"id": 100, "content": "<x>"}]}, "id 100 is '<x>' amid the text tokens 0 to 359"),
        ({"added_tokens": [{"content": "<x>"}]}, "key 'id' is missing"),
        ({"added_tokens": ["<x>"]}, "holds '<x>', expected an object"),
    ],
)
def test_refused_tokenizers(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path, "chatml")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | change))
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        JsonTokenizer.from_pretrained(tmp_path)
    assert message in str(error.value)


def test_missing_and_made_up_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        llama.load_text(tmp_path, None)
    tokenizer, vocabulary = llama.load_text(tmp_path, None, stand_in=True)
    first = llama.turn_ids(tokenizer, vocabulary, "hi", "be brief", first=True)
    later = llama.turn_ids(tokenizer, vocabulary, "hi", "be brief", first=False)
    assert first[-len(later) :] == later == llama.turn_ids(tokenizer, vocabulary, "hi", None, first=True)
    assert later[0] == vocabulary.end_of_turn
