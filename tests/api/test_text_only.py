"""The engine on a language model without speech: hidden and visible text, free decoding equal to transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from chat_files import save
from family_models import make

from innervoice import (
    Engine,
    Feed,
    Ids,
    Sampling,
    Schedule,
    ScheduleError,
    Segment,
    Text,
    TokenEvent,
)

GREEDY = Sampling(temperature=0, max_new_tokens=24)
THINK = Schedule(
    prologue=(Segment("reflection", 8),),
    cycle=(Segment("transcript", None),),
    tokens={"open": "<think>", "close": "</think>", "done": None},
)
FREE = Schedule(cycle=(), guided=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "chatml", marks=("<think>", "</think>"))
    make("llama_tied_llama3", vocab_size=512, eos_token_id=[0, 2]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu") as made:
        yield made


def kinds(reply: Any) -> list[str]:
    return [event.kind for event in reply.events if isinstance(event, TokenEvent)]


def test_hidden_text_then_visible_text(engine: Engine) -> None:
    reply = engine.generate(Text("what does the listener hear?"), schedule=THINK, sampling=GREEDY)
    count = kinds(reply).count("reflection")
    assert kinds(reply)[:count] == ["reflection"] * count
    assert set(kinds(reply)[count:]) <= {"transcript", "end"}
    assert 2 <= count <= 10
    assert (reply.ids[0], reply.ids[count - 1]) == (360, 361)
    assert all(3 <= i < 360 for i in reply.ids[1 : count - 1])
    assert all(3 <= i < 360 or i == 2 for i in reply.ids[count:])
    assert len(reply.reflections) == 1
    assert reply.transcript
    assert len(reply.audio.samples) == 0
    assert reply.usage.reflection_tokens == count


def test_hidden_text_without_marks(engine: Engine) -> None:
    schedule = THINK.with_changes(tokens={"open": None, "close": None, "done": None})
    reply = engine.generate(Text("hello"), schedule=schedule, sampling=GREEDY)
    assert kinds(reply)[:9] == ["reflection"] * 8 + ["transcript"]
    with pytest.raises(ScheduleError, match="names no 'open' token"):
        engine.stream(Text("hello"), schedule=THINK.with_changes(tokens={}))
    with pytest.raises(ScheduleError, match="no speech codebook"):
        engine.stream(Text("hello"), schedule="interleaved")
    fed = THINK.with_changes(prologue=(Segment("fed", 2, voice_as="speech", feed="codes"),))
    with pytest.raises(ScheduleError, match="no speech codebook"):
        engine.stream(Text("hello"), schedule=fed, feeds={"codes": Feed()})
    with pytest.raises(ScheduleError, match="add a transcript"):
        engine.stream(Text("hello"), schedule=THINK.with_changes(cycle=(Segment("reflection", 3),)))


def test_free_decoding_equals_transformers(engine: Engine, folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for system in (None, "be brief"):
        head = [] if system is None else [{"role": "system", "content": system}]
        message = {"role": "user", "content": "the speaker thinks"}
        prompt = tokenizer.apply_chat_template(
            [*head, message], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        expected = theirs.generate(**prompt, max_new_tokens=24, do_sample=False)[0].tolist()
        reply = engine.generate(Text(message["content"]), schedule=FREE, sampling=GREEDY, system=system)
        length = prompt["input_ids"].shape[1]
        assert reply.usage.prompt_tokens == length
        assert reply.ids == expected[length:]
        assert reply.ids == engine.generate(Ids(expected[:length]), schedule=FREE, sampling=GREEDY).ids


def test_a_recording_is_refused(engine: Engine, assets_dir: Path) -> None:
    with pytest.raises(ValueError, match="a recording needs a speech tokenizer"):
        engine.stream(assets_dir / "question.wav", schedule=THINK)
