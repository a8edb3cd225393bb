"""Life and death of engine and replies on the tiny checkpoint: cancel, time out, fail, close, side by side."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_requests import SHORT_REFLECTION, greedy

from innervoice import (
    Done,
    Engine,
    EngineDead,
    Ids,
    OutOfCapacity,
    RequestFailed,
    Text,
    TokenEvent,
)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="offline", vocoder_noise=False) as made:
        yield made


def test_the_reply_ends_when_the_cache_is_full(tiny_dir: Path) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=200) as small:
        reply = small.generate(Text("hello"), sampling=greedy(500))
        assert reply.finish_reason == "length"
        assert reply.usage.prompt_tokens + len(reply.ids) == 200
        with pytest.raises(ValueError, match="the cache holds 200"):
            small.generate(Ids([1] * 200))


def test_as_many_sessions_as_were_asked_for(tiny_dir: Path) -> None:
    for asked, most in ((None, 16), (40, 40)):
        with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=asked) as engine:
            sessions = [engine.open_session() for _ in range(most)]
            with pytest.raises(OutOfCapacity, match=f"all {most} sessions are in use"):
                engine.open_session()
            for session in sessions:
                session.close()


def test_a_broken_voice_ends_its_reply_alone(tiny_dir: Path, prompts: dict[str, Any]) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="steady") as steady:
        request = {"schedule": SHORT_REFLECTION, "sampling": greedy(60), "realtime": False}
        expected = steady.generate(prompts["text"], **request)
        voice = steady.parts.core.speech
        assert voice is not None
        step, broken = voice.step, {"key": ""}

        def break_one(keys: Any) -> Any:
            chunks = step(keys)
            if chunks and not broken["key"]:
                broken["key"] = chunks[0][0]
                voice.errors[broken["key"]] = "the codec made no numbers"  # type: ignore[index]
                chunks = [
                    (broken["key"], np.zeros(0, np.float32), True),
                    *(c for c in chunks if c[0] != broken["key"]),
                ]
            return chunks

        voice.step = break_one  # type: ignore[method-assign]
        first, second = (steady.stream(prompts["text"], **request) for _ in range(2))
        with pytest.raises(RequestFailed, match="the codec made no numbers"):
            first.reply()
        assert np.array_equal(second.reply().audio.samples, expected.audio.samples)


def test_cancel_frees_everything(engine: Engine, prompts: dict[str, Any]) -> None:
    stream = engine.stream(prompts["text"], sampling=greedy(2000))
    next(stream)
    stream.cancel()
    stream.cancel()
    events = list(stream)
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "cancelled"
    assert engine.parts.core.pool.num_available == engine.parts.core.pool.num_pages


def test_a_timeout_ends_the_reply(engine: Engine, prompts: dict[str, Any]) -> None:
    reply = engine.generate(prompts["text"], sampling=greedy(8000), timeout_s=0.2)
    assert reply.finish_reason == "timeout"


def test_async_and_threaded_readers(engine: Engine, prompts: dict[str, Any]) -> None:
    expected = engine.generate(prompts["text"], sampling=greedy(20)).ids

    async def read() -> list[int]:
        async with engine.astream(prompts["text"], sampling=greedy(20)) as stream:
            return [i async for e in stream if isinstance(e, TokenEvent) for i in e.ids]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(read() for _ in range(5)))

    assert asyncio.run(all_of_them()) == [expected] * 5
    results: list[list[int]] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(engine.generate(prompts["text"], sampling=greedy(20)).ids)
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 5


def test_two_engines_live_side_by_side(engine: Engine, tiny_dir: Path, prompts: dict[str, Any]) -> None:
    expected = engine.generate(prompts["text"], sampling=greedy(25)).ids
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=1) as other:
        streams = [
            each.stream(prompts["text"], sampling=greedy(25)) for each in (engine, other, engine, other)
        ]
        assert [stream.reply().ids for stream in streams] == [expected] * 4
    assert engine.generate(prompts["text"], sampling=greedy(25)).ids == expected


def test_a_row_of_nan_fails_alone_and_by_name(tiny_dir: Path, prompts: dict[str, Any]) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu") as broken:
        expected = broken.generate(prompts["text"], sampling=greedy(15)).ids
        broken.parts.core.runner.model.weights.embedding[7] = float("nan")
        good = broken.stream(prompts["text"], sampling=greedy(15))
        bad = broken.stream(Ids([7, 8]), sampling=greedy(15))
        with pytest.raises(RequestFailed, match="not numbers"):
            bad.reply()
        assert good.reply().ids == expected


def test_a_dead_core_tells_every_reader(tiny_dir: Path) -> None:
    engine = Engine.from_pretrained(tiny_dir, device="cpu")

    def explode(*_: Any) -> None:
        raise RuntimeError("the machine is on fire")

    engine.parts.core.runner.forward = explode  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineDead, match="the machine is on fire"):
        engine.generate(Text("hello"))
    with pytest.raises(EngineDead, match="the machine is on fire"):
        engine.check_health()
    with pytest.raises(EngineDead):
        engine.generate(Text("hello"))
    engine.close()


def test_what_is_loaded_is_not_walked_by_the_garbage_collection_until_it_is_closed(tiny_dir: Path) -> None:
    """Two engines, closed in the order of their opening, one of them twice; what a closed one leaves is collected."""
    first = Engine.from_pretrained(tiny_dir, device="cpu")
    second = Engine.from_pretrained(tiny_dir, device="cpu")
    held = gc.get_freeze_count()
    assert held > 10_000
    core = weakref.ref(first.parts.core)
    first.close()
    first.close()
    del first
    assert gc.get_freeze_count() > 10_000
    second.close()
    gc.collect()
    assert core() is None


def test_a_closed_engine_refuses_and_close_ends_what_runs(tiny_dir: Path) -> None:
    engine = Engine.from_pretrained(tiny_dir, device="cpu")
    stream = engine.stream(Text("hello"), sampling=greedy(5000))
    engine.close()
    assert stream.reply().finish_reason == "cancelled"
    with pytest.raises(ValueError, match="closed"):
        engine.generate(Text("hello"))
    engine.close()
    patient = Engine.from_pretrained(tiny_dir, device="cpu")
    stream = patient.stream(Text("hello"), sampling=greedy(10))
    patient.close(drain_s=30)
    assert stream.reply().finish_reason == "length"


def test_trace_shows_every_stage(engine: Engine, assets_dir: Path, tmp_path: Path) -> None:
    with engine.trace(tmp_path / "trace.json"):
        engine.generate(assets_dir / "question.wav", sampling=greedy(20))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"speech_tokenizer", "forward", "sample", "voice step", "decode reply", "admitted"} <= {
        e["name"] for e in events
    }
    assert all({"name", "ph", "ts", "pid", "tid"} <= e.keys() for e in events)
    with pytest.raises(OSError, match="cannot be written"), engine.trace(tmp_path / "no" / "trace.json"):
        pass
    with engine.trace(tmp_path / "second.json"), pytest.raises(ValueError, match="recorded already"):
        engine.trace(tmp_path / "third.json").__enter__()
    assert json.loads((tmp_path / "second.json").read_text())["traceEvents"] == []
