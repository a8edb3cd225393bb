"""A text model that thinks between marks of its own: template variables, the warning, and the marks as a reflection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from chat_files import save
from family_models import make

from innervoice import Engine, Ids, Sampling, Schedule, Segment, Text
from innervoice.model.text import asks_to_think
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.tools.cli.inputs import read_template

TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
GREEDY = Sampling(temperature=0, max_new_tokens=12)
OFF = {"enable_thinking": False}
THINK = Schedule(
    prologue=(Segment("reflection", 4),),
    cycle=(Segment("transcript"),),
    tokens={"open": "<think>", "close": "</think>", "done": None},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    save(folder, "chatml", marks=("<think>", "</think>"), template=TEMPLATE)
    make("qwen3", vocab_size=512, eos_token_id=2).save_pretrained(folder)
    return folder


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu") as made:
        yield made


def prompt_of(engine: Engine, **request: Any) -> int:
    return engine.generate(Text("hello"), sampling=GREEDY, **request).usage.prompt_tokens


def test_template_variables_reach_the_prompt(engine: Engine, folder: Path) -> None:
    plain, off = prompt_of(engine), prompt_of(engine, template=OFF)
    tokenizer = engine.parts.requests.tokenizer
    thoughts = [
        tokenizer.require_special("<think>"),
        *tokenizer.encode("\n\n"),
        tokenizer.require_special("</think>"),
    ]
    assert off == plain + len(thoughts) + len(tokenizer.encode("\n\n"))
    assert prompt_of(engine, template={"enable_thinking": True}) == prompt_of(engine, template={}) == plain
    with engine.open_session(template=OFF) as session:
        assert session.reply(Text("hello"), sampling=GREEDY).reply().usage.prompt_tokens == off
    with Engine.from_pretrained(folder, device="cpu", template=OFF) as quiet:
        assert prompt_of(quiet) == off
        assert prompt_of(quiet, template={"enable_thinking": True}) == plain


def test_a_session_writes_its_earlier_turns_as_the_template_does_now(engine: Engine) -> None:
    """The empty thoughts stand before the reply that is made, and before no earlier one."""
    tokenizer = engine.parts.requests.tokenizer
    thoughts = [tokenizer.require_special(mark) for mark in ("<think>", "</think>")]
    said = ["hello", "and you?", "why?"]
    with engine.open_session(template=OFF) as session:
        for number, text in enumerate(said, 1):
            session.reply(Text(text), sampling=GREEDY).reply()
            ids = list(SessionSnapshot.from_bytes(session.export(), engine.model_id).ids)
            assert [i for i in ids if i in thoughts] == thoughts
            written = [i for word in said[:number] for i in tokenizer.encode(word)]
            assert len(ids) > len(written) + (number - 1) * 3


def test_a_session_holds_its_template_to_what_was_really_said(tmp_path: Path) -> None:
    """A switch in an earlier question is written anew; a reply that the template would cut is refused."""
    loop = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + CONTENT + '<|im_end|>\\n' }}{%- endfor %}"
    loop += "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}SWITCH{%- endif %}"
    switch = "{%- if messages[-1].content.endswith('/off') %}{{- 'now ' }}{%- endif %}"
    halved = "(m.content if m.role == 'user' else m.content[1:])"
    for content, more in (("m.content", switch), (halved, "")):
        theirs = save(tmp_path, "chatml", template=loop.replace("CONTENT", content).replace("SWITCH", more))
        make("qwen3", vocab_size=512, eos_token_id=2).save_pretrained(tmp_path)
        with Engine.from_pretrained(tmp_path, device="cpu") as made, made.open_session() as session:
            first = session.reply(Text("hello /off"), sampling=GREEDY).reply()
            if content is halved:
                with pytest.raises(ValueError, match="chat template fails for this dialogue"):
                    session.reply(Text("why?"), sampling=GREEDY)
                continue
            session.reply(Text("why?"), sampling=Sampling(temperature=0, max_new_tokens=1)).reply()
            ids = list(SessionSnapshot.from_bytes(session.export(), made.model_id).ids)
            head = [{"role": "user", "content": "hello /off"}]
            opening = theirs.apply_chat_template(head, add_generation_prompt=True, return_dict=False)
            now = made.parts.requests.tokenizer.encode("now ")
            assert list(opening)[-len(now) :] == now
            assert ids[: len(opening) - len(now)] == list(opening)[: -len(now)]
            assert ids[len(opening) - len(now) :][: len(first.ids)] == first.ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"enable_thinkin": False},
            "the chat template has no variable 'enable_thinkin': it reads enable_thinking",
        ),
        ({"messages": []}, "has no variable 'messages'"),
        ({"enable_thinking": object()}, r"template\.enable_thinking is a object: it must be a JSON value"),
        ({3: 4}, "template holds 3: use a string"),
        ("enable_thinking", "template is 'enable_thinking': use a mapping or None"),
    ],
)
def test_wrong_variables_are_refused_at_the_edge(
    engine: Engine, folder: Path, template: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.generate(Text("hello"), template=template)
    with pytest.raises(ValueError, match=message):
        Engine.from_pretrained(folder, device="cpu", template=template)


def test_a_model_without_a_template_takes_no_variables(tiny_dir: Path) -> None:
    with (
        Engine.from_pretrained(tiny_dir, device="cpu") as made,
        pytest.raises(ValueError, match="leave template out"),
    ):
        made.generate(Text("hello"), template=OFF)


@pytest.mark.parametrize(
    ("request_options", "is_warned"),
    [
        ({}, True),
        ({"template": OFF}, False),
        ({"template": {"enable_thinking": True}}, True),
        ({"schedule": THINK}, False),
        ({"schedule": THINK.with_changes(reflection="off")}, True),
        ({"schedule": Schedule(cycle=(), guided=False)}, False),
    ],
)
def test_masked_thoughts_are_warned_of_once(
    engine: Engine, caplog: pytest.LogCaptureFixture, request_options: dict[str, Any], is_warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "innervoice"):
        for _ in range(2):
            engine.generate(Text("hello"), sampling=GREEDY, **request_options)
    assert caplog.text.count("masks that") == int(is_warned)


def test_the_models_marks_open_and_close_a_reflection(engine: Engine) -> None:
    tokenizer = engine.parts.requests.tokenizer
    reply = engine.generate(Text("hello"), sampling=GREEDY, schedule=THINK)
    assert reply.ids[0] == tokenizer.require_special("<think>")
    assert tokenizer.require_special("</think>") in reply.ids[1:6]
    assert len(reply.reflections) == 1
    assert reply.usage.reflection_tokens >= 2


def test_what_asks_to_think(engine: Engine, folder: Path, tmp_path: Path) -> None:
    tokenizer = engine.parts.requests.tokenizer
    opened, closed = tokenizer.require_special("<think>"), tokenizer.require_special("</think>")
    assert asks_to_think(tokenizer, [5], {})
    assert asks_to_think(tokenizer, [5, opened, 6], OFF)
    assert not asks_to_think(tokenizer, [5], OFF)
    assert not asks_to_think(tokenizer, [opened, closed, 5], {})
    assert asks_to_think(tokenizer, [closed, opened, 5], {})
    assert engine.generate(Ids([5, 6]), sampling=GREEDY, template=OFF).usage.prompt_tokens == 2
    plain = save(tmp_path, "chatml")
    assert "<think>" not in plain.get_vocab()
    assert not asks_to_think(engine.parts.requests.family.load_text(tmp_path, None)[0], [5], {})


def test_variables_of_the_command_line() -> None:
    words = ["enable_thinking=false", "style=brief", 'names=["a"]', "empty=", "number=3"]
    expected = {"enable_thinking": False, "style": "brief", "names": ["a"], "empty": "", "number": 3}
    assert read_template(words) == expected
    assert read_template(()) is None
    for wrong in ("enable_thinking", "=3"):
        with pytest.raises(ValueError, match=r"--template is .*: write NAME=VALUE"):
            read_template([wrong])
