"""Thousands of random bad requests beside good ones: the good ones' ids do not change, and nothing leaks."""

from __future__ import annotations

import dataclasses
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, Ids, OutOfCapacity, RequestFailed, Sampling, Schedule, Segment, Text
from innervoice.api.request_builder import RequestOptions

WRONG: list[Any] = [
    None, "x", "8000", b"x", True, -1, 0, 1.5, float("nan"), float("inf"), 1e308, 2**31, 2**63, 2**64, 10**400,
    np.uint64(2**64 - 1), np.float32(0.5), np.array([3, 4]), 1j, (), [], {}, [None], [-1], [2**70], object(), int,
]  # fmt: skip
GOOD = Sampling(temperature=0.8, max_new_tokens=20, seed=7)


def bad_call(engine: Engine, chance: random.Random) -> None:
    """A request with one wrong value somewhere; what it begins is cancelled."""
    value = chance.choice(WRONG)
    where = chance.randrange(6)
    request: dict[str, Any] = {"sampling": Sampling(max_new_tokens=2), "timeout_s": 5.0}
    prompt: Any = Text("How are you?")
    if where == 0:
        request[chance.choice(dataclasses.fields(RequestOptions)).name] = value
    elif where == 1:
        name = chance.choice(dataclasses.fields(Sampling)).name
        request["sampling"] = Sampling(**{name: value})
    elif where == 2:
        name = chance.choice(dataclasses.fields(Schedule)).name
        request["schedule"] = Schedule(
            **{"cycle": [["speech", 3]], "guided": chance.random() < 0.5} | {name: value}
        )
    elif where == 3:
        name = chance.choice(dataclasses.fields(Segment)).name
        request["schedule"] = Schedule(cycle=(Segment(**{"kind": "speech", "budget": 3} | {name: value}),))
    elif where == 4:
        prompt = value if chance.random() < 0.5 else (np.zeros(900, np.float32), value)
    else:
        with engine.open_session() as session:
            session.ack_playback(value)
        return
    if isinstance(prompt, list):
        prompt = Ids(prompt)
    with engine.stream(prompt, **request) as stream:
        next(stream)


def run(tiny_dir: Path, number: int) -> None:
    chance = random.Random(number)
    prompts = [Ids([5 + i, 40, 9, 3 * i + 1]) for i in range(8)]
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=12, max_model_len=512) as engine:
        core = engine.parts.core
        expected = [engine.generate(prompt, sampling=GOOD).ids for prompt in prompts]
        free = core.pool.num_available
        made = 0
        while made < number:
            streams = [engine.stream(prompt, sampling=GOOD, realtime=False) for prompt in prompts]
            for _ in range(min(250, number - made)):
                made += 1
                with suppress(ValueError, FileNotFoundError, RequestFailed, OutOfCapacity):
                    bad_call(engine, chance)
            assert [stream.reply().ids for stream in streams] == expected
        assert [engine.generate(prompt, sampling=GOOD).ids for prompt in prompts] == expected
        engine.check_health()
        engine._worker.call(lambda core: core.check_integrity())
        assert (core.table.num_active, core.table.num_waiting, len(core.table.columns)) == (0, 0, 0)
        assert (len(core.registry), core.speech.num_open, core.pool.num_available) == (0, 0, free)


def test_bad_requests_beside_good_ones(tiny_dir: Path) -> None:
    run(tiny_dir, 100)


@pytest.mark.slow
def test_many_bad_requests_beside_good_ones(tiny_dir: Path) -> None:
    run(tiny_dir, 2000)
