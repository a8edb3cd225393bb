"""Named segments, tags as text and choices through an engine: events, the log, limits, and choices against log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from chat_files import save
from family_models import make

from innervoice import Engine, Reflection, Sampling, Schedule, ScheduleError, Segment, Text, Transcript
from innervoice.api.event_log import EventLog
from innervoice.model.text import ids_within

LABELS = ("hello", "why now", "why then", "what is this")
SAMPLING = Sampling(temperature=1.5, seed=7, max_new_tokens=60)
PARTS = Schedule(
    prologue=(
        Segment("reflection", 6, name="emotion", open="so it is ", close=" and that"),
        Segment("reflection", 4, name="cause", open="<think>", close="</think>"),
        Segment("choice", choices=LABELS, name="intent"),
    ),
    cycle=(Segment("transcript", name="reply"),),
    tokens={"done": None},
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("named")
    save(folder, "chatml", marks=("<think>", "</think>"))
    make("qwen3", vocab_size=512, eos_token_id=2).save_pretrained(folder)
    with Engine.from_pretrained(folder, device="cpu") as made:
        yield made


def test_parts_come_in_order_by_name(engine: Engine) -> None:
    stream = engine.stream(Text("how are you?"), schedule=PARTS, sampling=SAMPLING)
    log, events = EventLog(), list(stream)
    lines = [line for event in events for line in log.feed(event)] + log.finish()
    tokenizer = engine.parts.requests.tokenizer
    hidden = [event for event in events if isinstance(event, Reflection)]
    names = list(dict.fromkeys(event.name for event in hidden))
    assert names == ["emotion", "cause", "intent"]

    # Tags stand among the ids of their segments, and not in the text.
    by_name = {name: [i for e in hidden if e.name == name for i in e.ids] for name in names}
    text = {name: "".join(e.text for e in hidden if e.name == name) for name in names}
    opening, close = (ids_within(tokenizer, tag) for tag in ("so it is ", " and that"))
    assert by_name["emotion"][: len(opening)] == opening
    assert by_name["emotion"][-len(close) :] == close
    assert len(by_name["emotion"]) <= len(opening) + 6 + len(close)
    assert " and that" not in text["emotion"]
    assert by_name["cause"][0] == tokenizer.special("<think>")
    assert by_name["cause"][-1] == tokenizer.special("</think>")

    # The choice is a text of the list, and the log has it.
    (chosen,) = [event.choice for event in events if isinstance(event, Reflection) and event.choice]
    assert chosen in LABELS and text["intent"] == chosen
    assert by_name["intent"] == ids_within(tokenizer, chosen)
    assert {e.name for e in events if isinstance(e, Transcript)} <= {"reply"}
    assert [line.get("choice") for line in lines if line.get("name") == "intent"] == [chosen]


def test_limits_leave_a_part_out(engine: Engine) -> None:
    short = PARTS.with_changes(limits={"emotion": 0, "cause": 1, "reply": 2})
    events = list(engine.stream(Text("how are you?"), schedule=short, sampling=SAMPLING))
    hidden = [event for event in events if isinstance(event, Reflection)]
    assert list(dict.fromkeys(event.name for event in hidden)) == ["cause", "intent"]
    assert sum(len(event.ids) for event in hidden if event.name == "cause") <= 3


def test_a_cold_choice_follows_the_log_probabilities(engine: Engine) -> None:
    """A cold draw takes the fork that the engine's log-probabilities favour."""
    schedule = Schedule(prologue=(Segment("choice", choices=LABELS),), cycle=(Segment("transcript", 1),))
    greedy = Sampling(temperature=0, max_new_tokens=20)
    reply = engine.generate(Text("how are you?"), schedule=schedule, sampling=greedy)
    chosen = next(event.choice for event in reply.events if isinstance(event, Reflection) and event.choice)
    # The first fork has the ids that texts begin with: the greedy text begins with the best of them.
    scored = engine.logprobs(Text("how are you?"), LABELS)
    first = [one.logprobs[0] for one in scored.continuations]
    assert scored.continuations[LABELS.index(chosen)].logprobs[0] == max(first)


def test_a_text_without_ids_is_refused(engine: Engine) -> None:
    empty = Schedule(prologue=(Segment("choice", choices=("",)),), cycle=(Segment("transcript", 1),))
    with pytest.raises(ScheduleError, match="has no ids, so nothing can spell it"):
        engine.generate(Text("hello"), schedule=empty)
