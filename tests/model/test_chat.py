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
from innervoice.model.text.chat_template import Piece
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
    tokenizer, vocabulary, _ = of(tmp_path, shape, marks=("<think>", "</think>"))
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
        _, vocabulary, _ = of(tmp_path / shape, shape, marks=("<think>", "</think>"))
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
            "it writes earlier turns otherwise",
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


def chat(content: str) -> str:
    """A template that writes contents so."""
    loop = "{% for m in messages %}<{{ m.role }}>" + content + ";{% endfor %}"
    return loop + "{% if add_generation_prompt %}<assistant>{% endif %}"


LOOKING = {
    "as it is": chat("{{ m.content }}"),
    "trimmed": chat("{{ m.content | trim }}"),
    "replaced": chat("{{ m.content.replace('then', 'than') }}"),
    "upper": chat("{{ m.content | upper }}"),
    "escaped": chat("{{ m.content | e }}"),
    "quoted": chat("{{ m.content | tojson }}"),
    "counted": chat("{{ m.content | length }}:{{ m.content }}"),
    "cut": chat("{{ m.content[:6] }}"),
    "split": chat("{{ m.content.split('</think>')[-1] }}"),
    "lines": chat("{% for line in m.content.split('\\n') %}{{ line }}{% endfor %}"),
    "switch anywhere": chat("{{ m.content }}{% if '/no_think' in m.content %}!{% endif %}"),
    "switch taken out": chat("{{ m.content.replace('/no_think', '') | trim }}"),
    "switch at the end": chat("{{ m.content }}{% if m.content.endswith('/no_think') %}!{% endif %}"),
    "switch at the start": chat("{{ m.content }}{% if m.content.startswith('/no_think') %}!{% endif %}"),
    "reply cut": chat("{% if m.role == 'assistant' %}{{ m.content.split('then')[-1] }}{% else %}{{ m.content }}{% endif %}"),
}  # fmt: skip
SAID = [
    "hello", " then ask one.\n", "/no_think", "why? /no_think", "/no_think why?", 'say "no" <b>\n& more', "a</think>b",
    "user <assistant> assistant", "\ue000\ue001 private \uf8f0reply\uf8f1",
]  # fmt: skip


@pytest.mark.parametrize("name", LOOKING)
def test_what_a_template_makes_of_words_is_kept_or_refused(name: str) -> None:
    """Turns together are the rendering of the dialogue itself; templates that cannot be cut are refused."""
    made, plain = template(LOOKING[name]), LOOKING[name] in list(LOOKING.values())[:2]
    num_equal = 0
    for said in SAID:
        for system in (None, said):
            dialogue = messages(system, [said, said, said])
            head, last = dialogue[:-2], dialogue[-1]
            try:
                first = made.turn(said, system, first=True)
                ours = text_of(first) + said.strip()
                ours += text_of(made.turn(said, system, first=False, earlier=dialogue[-3:-1]))
            except ValueError:
                continue
            num_equal += 1
            rendered = made._template.render(messages=[*dialogue[:-1], last], add_generation_prompt=True)
            assert "".join(ours.split()) == "".join(rendered.split())
            assert text_of(first) == made._template.render(messages=head, add_generation_prompt=True)
            assert [p.text for p in first if p.text == said.strip()] == [
                p.text for p in first if not p.is_template and p.text == said.strip()
            ]
    assert num_equal == 2 * len(SAID) or not plain


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_the_words_of_this_dialogue_count() -> None:
    """A template that shortens some replies is refused for a dialogue with such a reply alone."""
    made = template(LOOKING["reply cut"])
    for reply, is_cut in (("one.", False), ("one, then two.", True)):
        earlier = messages(None, ["hi", reply])
        assert text_of(made.turn("go on", None, first=False)) == ";<user>go on;<assistant>"
        if not is_cut:
            assert made.turn("go on", None, first=False, earlier=earlier)
            continue
        with pytest.raises(ValueError, match="it writes earlier turns otherwise"):
            made.turn("go on", None, first=False, earlier=earlier)
    whole = made.dialogue(messages(None, ["hi", "one.", "go on"]))
    assert text_of(whole) == "<user>hi;<assistant>one.;<user>go on;<assistant>"
    assert [piece.text for piece in whole if not piece.is_template] == ["hi", "one.", "go on"]


def test_a_prompt_that_history_leaves_out_is_refused_later() -> None:
    """What stands before a reply while it is made has to stand there afterwards."""
    think = chat("{{ m.content }}") + "{% if add_generation_prompt %}<think>{% endif %}"
    assert text_of(template(think).turn("hi", None, first=True)) == "<user>hi;<assistant><think>"
    with pytest.raises(ValueError, match="it writes earlier turns otherwise"):
        template(think).turn("hi", None, first=False)


def test_template_variables() -> None:
    source = (
        chat("{{ m.content }}") + "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    )
    made = template(source, bos_token="<s>")
    assert made.variables == {"enable_thinking"}
    given = {"enable_thinking": False}
    assert text_of(made.turn("hi", None, first=True, variables=given)) == "<user>hi;<assistant><no>"
    assert (
        text_of(made.turn("hi", None, first=True, variables={"enable_thinking": True}))
        == "<user>hi;<assistant>"
    )
    with pytest.raises(ValueError, match=r"no variable 'thinking': it reads enable_thinking"):
        made.turn("hi", None, first=True, variables={"thinking": True})
    with pytest.raises(ValueError, match=r"no variable 'messages'"):
        made.turn("hi", None, first=True, variables={"messages": []})


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
    scoped = template(
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.content }}{{ x }}{% endgeneration %}"
        "{{ x }}{% endfor %}"
    )
    assert "".join(piece.text for piece in scoped.turn("hi", None, first=True)) == "hi21"
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
    config.write_text(json.dumps({"bos_token": "<s>"}))
    (tmp_path / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<b>"}}))
    for listed, bos in (({}, "<b>"), ({"added_tokens_decoder": {}}, "<s>")):
        config.write_text(json.dumps({"bos_token": "<s>"} | listed))
        read = ChatTemplate.read(tmp_path)
        assert read is not None
        assert text_of(read.turn("hi", None, first=True)) == bos + "hi"
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
        ({"model": {"vocab": None}}, "vocab is None, expected dict"),
        ({"model": {"vocab": {"a": "0"}}}, "token 'a' has the id '0'"),
        ({"model": {"vocab": {"a": [0]}}}, "token 'a' has the id [0]"),
        ({"model": {"vocab": {"a": -1}}}, "token 'a' has the id -1"),
        ({"model": {"vocab": {"a": 0}, "merges": None}}, "merges is None, expected list"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a", None]]}}, "['a', None] among the merges is no pair"),
        ({"model": {"vocab": {"a": 0}, "merges": [7]}}, "7 among the merges is no pair"),
        ({"model": {"vocab": {"a": 0}, "unk_token": {}}}, "unk_token is {}, expected text"),
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
