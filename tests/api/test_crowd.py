"""Many callers at once, from threads and from tasks: each gets its own tokens, nothing hangs, nothing leaks."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from innervoice import Done, Engine, OutOfCapacity, Sampling, Schedule, Text, TokenEvent

SCHEDULE = Schedule.preset("stitch_s", transcript_budget=3, speech_budget=4, reflection_budget=3)
CALLERS = 200


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="offline", vocoder_noise=False) as made:
        yield made


@pytest.fixture(scope="module")
def expected(engine: Engine) -> dict[int, list[int]]:
    """The ids of each seed, made alone."""
    return {
        seed: engine.generate(Text("hello"), schedule=SCHEDULE, sampling=sampling(seed)).ids
        for seed in range(10)
    }


def sampling(seed: int) -> Sampling:
    return Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=seed, max_new_tokens=12)


def is_whole(engine: Engine) -> bool:
    core = engine.parts.core
    core.pool.check_integrity()
    return core.pool.num_available == core.pool.num_pages and core.num_rows == 0 and not core.has_work


def test_two_hundred_threads(engine: Engine, expected: dict[int, list[int]]) -> None:
    wrong: list[str] = []

    def caller(number: int) -> None:
        rng = random.Random(number)
        seed = number % 10
        way = rng.choice(["read", "cancel", "session", "abandon"])
        try:
            if way == "session":
                with engine.open_session(schedule=SCHEDULE) as session:
                    ids = session.reply(Text("hello"), sampling=sampling(seed)).reply().ids
            elif way == "read":
                ids = engine.generate(Text("hello"), schedule=SCHEDULE, sampling=sampling(seed)).ids
            else:
                with engine.stream(Text("hello"), schedule=SCHEDULE, sampling=sampling(seed)) as stream:
                    ids = []
                    for event in stream:
                        ids += event.ids if isinstance(event, TokenEvent) else []
                        if len(ids) >= rng.randrange(12):
                            break
                    if way == "cancel":
                        stream.cancel()
                        reason = stream.reply().finish_reason
                        if reason not in ("cancelled", "length"):
                            wrong.append(f"{number}: {reason}")
            if ids != expected[seed][: len(ids)] or (way in ("read", "session") and len(ids) != 12):
                wrong.append(f"{number}: {way} {ids}")
        except OutOfCapacity:
            pass
        except Exception as error:
            wrong.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    engine.generate(
        Text("hello"), schedule=SCHEDULE, sampling=sampling(0)
    )  # what was abandoned is over by now
    assert is_whole(engine)


def test_two_hundred_tasks(engine: Engine, expected: dict[int, list[int]]) -> None:
    async def caller(number: int) -> bool:
        rng = random.Random(number)
        seed, patience = number % 10, rng.choice([12, 12, rng.randrange(12)])
        ids: list[int] = []
        async with engine.astream(Text("hello"), schedule=SCHEDULE, sampling=sampling(seed)) as stream:
            async for event in stream:
                ids += event.ids if isinstance(event, TokenEvent) else []
                if len(ids) > patience:
                    stream.cancel()
                last = event
        return (
            isinstance(last, Done) and ids == expected[seed][: len(ids)] and (patience < 12 or len(ids) == 12)
        )

    async def crowd() -> list[bool]:
        return await asyncio.wait_for(
            asyncio.gather(*(caller(number) for number in range(CALLERS))), timeout=120
        )

    assert all(asyncio.run(crowd()))
    assert is_whole(engine)
