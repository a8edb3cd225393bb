"""Every field of every public call against generated values: nothing but a refusal that names the field, or a
reply; the engine answers afterwards as before. `test_every_field` has a fixed table of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innervoice import (
    Delete,
    Engine,
    EngineOptions,
    Ids,
    Insert,
    Message,
    OutOfCapacity,
    RequestFailed,
    Sampling,
    Schedule,
    Segment,
    SteadySettings,
    Text,
    Truncate,
)
from innervoice.api.request_builder import RequestOptions

SAMPLING = Sampling(temperature=0, max_new_tokens=8, seed=1)
PROMPT = Text("How are you?")
EDGES = [edge + step for edge in (0, 2**7, 2**15, 2**31, 2**32, 2**53, 2**63, 2**64) for step in (-1, 0, 1)]
INTEGERS = st.one_of(st.integers(), st.sampled_from(EDGES), st.sampled_from([-edge for edge in EDGES]))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.complex_numbers(),
    st.sampled_from([object(), int, len, Text("a"), Sampling(), np.datetime64("now"), Path("x")]),
)
NUMPY = st.one_of(
    st.floats(width=32).map(np.float32),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(st.integers(-9, 9), max_size=3).map(np.array),
)
VALUES = st.one_of(
    PLAIN,
    NUMPY,
    st.lists(PLAIN, max_size=3),
    st.lists(INTEGERS, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=4), PLAIN, max_size=2),
)


def names_of(made: type) -> st.SearchStrategy[str]:
    return st.sampled_from([field.name for field in dataclasses.fields(made)])


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=4, max_model_len=512) as made:
        yield made


def attempt(call: Callable[[], Any], name: str | None) -> None:
    """Make a call, which may refuse what it got in one sentence that has the name."""
    try:
        call()
    except (ValueError, FileNotFoundError, OutOfCapacity) as error:
        sentence = str(error)
        assert "\n" not in sentence and 0 < len(sentence) < 500, sentence
        assert name is None or name in sentence, sentence


def begin(engine: Engine, prompt: Any = PROMPT, **request: Any) -> None:
    """Begin a reply as far as its first event, and cancel it. A reply may fail, without harm to others."""
    with engine.stream(prompt, **{"sampling": SAMPLING, "timeout_s": 20.0} | request) as stream:
        try:
            next(stream)
        except RequestFailed as error:
            raise AssertionError("what the checks let through failed inside") from error


def try_request(engine: Engine, data: st.DataObject) -> None:
    name, value = data.draw(names_of(RequestOptions)), data.draw(VALUES)
    attempt(lambda: begin(engine, **{name: value}), name)


def try_sampling(engine: Engine, data: st.DataObject) -> None:
    name, value = data.draw(names_of(Sampling)), data.draw(VALUES)
    attempt(lambda: begin(engine, sampling=dataclasses.replace(SAMPLING, **{name: value})), name)


def try_schedule(engine: Engine, data: st.DataObject) -> None:
    name, value, guided = data.draw(names_of(Schedule)), data.draw(VALUES), data.draw(st.booleans())
    plain = {"cycle": [["transcript", 2], ["speech", 2]], "guided": guided}
    attempt(
        lambda: begin(engine, schedule=Schedule(**plain | {name: value})), "reflect" * (name == "reflection")
    )


def try_segment(engine: Engine, data: st.DataObject) -> None:
    name, value = data.draw(names_of(Segment)), data.draw(VALUES)
    kind = data.draw(st.sampled_from(["transcript", "speech", "reflection", "forced"]))
    plain = {"kind": kind, "budget": None, "ids": (3,) * (kind == "forced")}

    def make() -> None:
        cycle = (Segment(**plain | {name: value}), Segment("speech", 2))
        begin(engine, schedule=Schedule(cycle=cycle))

    attempt(make, "schedule")


def try_options(engine: Engine, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([EngineOptions, SteadySettings]))
    name, value = data.draw(names_of(kind)), data.draw(VALUES)
    attempt(lambda: kind(**{name: value}), name)


def try_prompt(engine: Engine, data: st.DataObject) -> None:
    value = data.draw(VALUES)
    sound = np.zeros(900, np.float32)
    forms = [value, (value, 16000), (sound, value), (sound * np.float32(3e38), 16000)]
    attempt(lambda: begin(engine, data.draw(st.sampled_from(forms))), None)
    attempt(lambda: begin(engine, Ids(value)), "id")
    attempt(lambda: begin(engine, Text(value)), None)


def try_session(engine: Engine, data: st.DataObject) -> None:
    value = data.draw(VALUES)
    with engine.open_session(sampling=SAMPLING) as session:
        for call, name in (
            (lambda: session.ack_playback(value), "played"),
            (lambda: session.interrupt(value), None),
            (lambda: session.interrupt(0, cut=value), "cut"),
            (lambda: session.inject(value), "text"),
            (lambda: session.push_audio(value, 16000), None),
            (lambda: session.push_audio(b"\0\0", value), "rate"),
            (lambda: session.commit_audio(drop_ms=value), None),
            (lambda: session.commit_audio(item_id=value), None),
            (lambda: session.clear_audio(committed=value), "committed"),
            (lambda: session.append(value), None),
            (lambda: session.append(Message(value, Text("a"))), "role"),
            (lambda: session.append(Message("user", value)), None),
            (lambda: session.append(Message("user", Text("a"), value)), "item"),
            (lambda: session.edit(value), None),
            (lambda: session.edit(Delete(value)), "item"),
            (lambda: session.edit(Insert(value)), None),
            (lambda: session.edit(Insert([Message("user", Text("a"))], value)), None),
            (lambda: session.edit(Truncate(value, 0)), "item"),
            (lambda: session.edit(Truncate("x", value)), None),
            (lambda: session.edit(Truncate("x", 0, value)), None),
        ):
            attempt(call, name)
        session.clear_audio()


TRIES = [try_request, try_sampling, try_schedule, try_segment, try_options, try_prompt, try_session]


def check(engine: Engine, one: Callable[[Engine, st.DataObject], None], number: int) -> None:
    expected = engine.generate(PROMPT, sampling=SAMPLING).ids

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        one(engine, data)

    run()
    assert engine.generate(PROMPT, sampling=SAMPLING).ids == expected
    engine._worker.call(lambda core: core.check_integrity())
    core = engine.parts.core
    assert (core.table.num_active, core.table.num_waiting, len(core.registry)) == (0, 0, 0)


@pytest.mark.parametrize("one", TRIES, ids=lambda one: one.__name__)
def test_generated_values(engine: Engine, one: Callable[[Engine, st.DataObject], None]) -> None:
    check(engine, one, 10)


@pytest.mark.slow
@pytest.mark.parametrize("one", TRIES, ids=lambda one: one.__name__)
def test_many_generated_values(engine: Engine, one: Callable[[Engine, st.DataObject], None]) -> None:
    check(engine, one, 1000)
