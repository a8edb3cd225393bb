"""A recording that is submitted from an event loop is encoded beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Done, Engine, Sampling

SAMPLING = Sampling(temperature=0, max_new_tokens=6, seed=1)
SECONDS = np.random.default_rng(0).normal(0, 0.1, 16000 * 5).astype(np.float32)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=2) as made:
        yield made


@pytest.fixture
def slow_encoder(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Encoding takes at least 0.3 s; the threads that it ran on."""
    encoder: Any = engine.parts.requests.speech_tokenizer
    encode, seen = encoder.encode, []

    def slow(samples: Any, rate: int) -> list[int]:
        seen.append(threading.current_thread())
        time.sleep(0.3)
        return encode(samples, rate)

    monkeypatch.setattr(type(encoder), "encode", lambda self, samples, rate: slow(samples, rate))
    return seen


def test_the_loop_goes_on_while_a_recording_is_encoded(
    engine: Engine, slow_encoder: list[threading.Thread]
) -> None:
    expected = engine.generate((SECONDS, 16000), sampling=SAMPLING).ids

    async def answer() -> tuple[list[int], int]:
        num_ticks, is_over = 0, False

        async def tick() -> None:
            nonlocal num_ticks
            while not is_over:
                await asyncio.sleep(0.01)
                num_ticks += 1

        ticking = asyncio.create_task(tick())
        before = time.monotonic()
        stream = engine.astream((SECONDS, 16000), sampling=SAMPLING, realtime=False)
        assert time.monotonic() - before < 0.2, "the loop stood still"
        reply = await stream.areply()
        is_over = True
        await ticking
        assert stream.record is not None and stream.record["sampling"]["seed"] == 1
        return reply.ids, num_ticks

    ids, num_ticks = asyncio.run(answer())
    assert ids == expected and num_ticks > 5
    assert slow_encoder[-1] is not threading.main_thread()


def test_what_is_wrong_is_said_at_the_call_or_where_it_is_read(engine: Engine, tmp_path: Path) -> None:
    async def refused() -> None:
        with pytest.raises(ValueError, match="output_rate is 7"):
            engine.astream((SECONDS, 16000), output_rate=7)
        with pytest.raises(ValueError, match="unknown schedule"):
            engine.astream((SECONDS, 16000), schedule="none")
        with pytest.raises(ValueError, match="rate is 5, expected"):
            await engine.astream((SECONDS, 5)).areply()
        with pytest.raises(FileNotFoundError):
            await engine.astream(tmp_path / "none.wav").areply()
        with pytest.raises(ValueError, match="the cache holds"):
            await engine.astream((np.zeros(8000 * 3600, np.int16), 8000)).areply()

    asyncio.run(refused())


def test_a_reply_that_is_cancelled_while_its_prompt_is_encoded_ends(
    engine: Engine, slow_encoder: list[threading.Thread]
) -> None:
    async def cancelled() -> Any:
        async with engine.astream((SECONDS, 16000), sampling=SAMPLING) as stream:
            await asyncio.sleep(0.05)
        return [event async for event in stream]

    events = asyncio.run(cancelled())
    assert isinstance(events[-1], Done) and events[-1].finish_reason == "cancelled"
    engine.astream((SECONDS, 16000), sampling=SAMPLING)  # dropped at once: its reply is cancelled
    engine.generate((SECONDS, 16000), sampling=SAMPLING)
    deadline = time.monotonic() + 10
    while engine.parts.core.has_work and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not engine.parts.core.has_work


def test_a_recording_that_holds_up_a_loop_is_warned_of_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    sound = (SECONDS[:4000], 16000)

    async def ask(*calls: Any) -> None:
        for call in calls:
            await call(sound, sampling=SAMPLING, realtime=False).areply()

    engine.generate(sound, sampling=SAMPLING)
    asyncio.run(ask(engine.astream))
    assert not caplog.records
    asyncio.run(ask(engine.stream, engine.stream))
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "a recording is encoded on the thread of an event loop"
    ]
