"""Thousands of random bad requests beside good ones: the good ones' ids do not change, and nothing leaks."""

from __future__ import annotations

import dataclasses
import random
import time
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
SOUND = np.sin(np.arange(3000) / 9).astype(np.float32)
GOOD = Sampling(temperature=0.8, max_new_tokens=20, seed=7)


def bad_call(engine: Engine, chance: random.Random) -> None:
    """A request with one wrong value somewhere; what it begins is cancelled."""
    value = chance.choice(WRONG)
    where = chance.randrange(7)
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
    elif where == 5:
        with engine.open_session() as session:
            session.ack_playback(value)
        return
    else:
        with engine.open_session(sampling=request["sampling"]) as session:
            session.push_audio(SOUND if chance.random() < 0.5 else value, 16000)
            if chance.random() < 0.5:
                session.commit_audio()
                with session.reply(
                    **{chance.choice(dataclasses.fields(RequestOptions)).name: value}
                ) as stream:
                    next(stream)
        return
    if isinstance(prompt, list):
        prompt = Ids(prompt)
    with engine.stream(prompt, **request) as stream:
        next(stream)


def check_nothing_is_left(engine: Engine, free: int) -> None:
    """Rows, sessions, slots, pages, and the queues of the worker and the listener are as at the start."""
    engine.check_health()
    worker, listener, core = engine._worker, engine._live_encoder, engine.parts.core
    assert listener is not None
    deadline = time.monotonic() + 60
    while listener.num_open or worker._queues or worker._answers:
        assert time.monotonic() < deadline, (listener.num_open, worker._queues, worker._answers)
        time.sleep(0.01)
    worker.call(lambda core: core.check_integrity())
    assert (core.table.num_active, core.table.num_waiting, len(core.table.columns)) == (0, 0, 0)
    assert (len(core.registry), core.speech.num_open, core.pool.num_available) == (0, 0, free)
    assert (worker._encoding, worker._num_coming, len(core._outbox)) == ({}, 0, 0)
    assert not listener._waiting


def run(tiny_dir: Path, number: int) -> None:
    """Eight good streams run beside every 25 bad requests, and are read when those are over."""
    chance = random.Random(number)
    prompts = [Ids([5 + i, 40, 9, 3 * i + 1]) for i in range(8)]
    refused = (ValueError, FileNotFoundError, RequestFailed, OutOfCapacity)
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=12, max_model_len=512) as engine:
        expected = [engine.generate(prompt, sampling=GOOD).ids for prompt in prompts]
        free = engine.parts.core.pool.num_available
        num_refused = 0
        for _ in range(number // 25):
            streams = [engine.stream(prompt, sampling=GOOD, realtime=False) for prompt in prompts]
            for _ in range(25):
                try:
                    bad_call(engine, chance)
                except refused:
                    num_refused += 1
            assert [stream.reply().ids for stream in streams] == expected
        assert number / 2 < num_refused
        assert [engine.generate(prompt, sampling=GOOD).ids for prompt in prompts] == expected
        check_nothing_is_left(engine, free)


def test_bad_requests_beside_good_ones(tiny_dir: Path) -> None:
    run(tiny_dir, 100)


@pytest.mark.slow
def test_many_bad_requests_beside_good_ones(tiny_dir: Path) -> None:
    run(tiny_dir, 2000)
