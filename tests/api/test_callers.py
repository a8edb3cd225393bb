"""Callers that are gone, that are interrupted while they wait, or that are the engine's own thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, EventField, OutOfCapacity, Sampling, Text

SAMPLING = Sampling(temperature=0, max_new_tokens=8, seed=1)
PROMPT = Text("How are you?")


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=3, max_model_len=512) as made:
        yield made


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_nothing_is_left(engine: Engine) -> None:
    gc.collect()
    core, worker = engine.parts.core, engine._worker
    wait_until(lambda: not (len(core.registry) or worker._queues or worker._answers or core.table.num_active))
    assert (worker._num_coming, worker._unclosed, len(core.table.columns)) == (0, [], 0)
    worker.call(lambda core: core.check_integrity())


def test_a_session_that_nothing_refers_to_is_closed(engine: Engine) -> None:
    listener = engine._live_encoder
    assert listener is not None
    for _ in range(7):
        session = engine.open_session(sampling=SAMPLING)
        session.reply(PROMPT).reply()
        session.push_audio(np.full(3000, 0.1, np.float32), 16000)
        del session
    wait_until(lambda: not listener.num_open)
    check_nothing_is_left(engine)


def test_a_reply_goes_on_without_its_session(engine: Engine) -> None:
    expected = engine.generate(PROMPT, sampling=SAMPLING).ids
    replies = [engine.open_session(sampling=SAMPLING).reply(PROMPT).reply() for _ in range(5)]
    assert [reply.ids for reply in replies] == [expected] * 5
    engine.open_session().reply(PROMPT, sampling=Sampling(max_new_tokens=400, ignore_eos=True))
    check_nothing_is_left(engine)


class Interrupted(Exception):
    """Raised by the signal."""


@contextmanager
def interrupted(after_s: float) -> Iterator[None]:
    """The block has to be interrupted, as by Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        with pytest.raises(Interrupted):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "while it is carried out"])
def test_a_call_that_is_interrupted_leaves_nothing(
    engine: Engine, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, worker = engine.parts.core, engine._worker
    expected = engine.generate(PROMPT, sampling=SAMPLING).ids
    session = engine.open_session(sampling=SAMPLING)
    calls: dict[tuple[Any, str], Callable[[], object]] = {
        (core.sessions, "open"): engine.open_session,
        (core.sessions, "fork"): session.fork,
        (core, "submit"): lambda: session.reply(PROMPT),
        (core.sessions, "close"): engine.open_session().close,
    }
    for (owner, name), call in calls.items():
        go_on, carry_out = threading.Event(), getattr(owner, name)

        def stalled(*args: Any, go_on: Any = go_on, carry_out: Any = carry_out, **options: Any) -> Any:
            """Do the same, later."""
            assert go_on.wait(20)
            return carry_out(*args, **options)

        with monkeypatch.context() as patch:
            if begun:
                patch.setattr(owner, name, stalled)
            else:
                threading.Thread(target=lambda go_on=go_on: worker.call(lambda core: go_on.wait(20))).start()
            with interrupted(0.1):
                call()
            gc.collect()
            go_on.set()
            worker.call(lambda core: None)
        assert engine.generate(PROMPT, sampling=SAMPLING).ids == expected, name
        assert session.reply(PROMPT).reply().finish_reason in ("length", "stop"), name
    session.close()
    calls.clear()
    del call, owner
    check_nothing_is_left(engine)


def test_the_engines_own_thread_is_refused(tiny_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Callable[[], object]] = []
    field = EventField("mine", "transcript", lambda event, usage: [str(call()) for call in calls])
    with Engine.from_pretrained(tiny_dir, device="cpu", threads=1, event_fields=(field,)) as engine:
        session, other = engine.open_session(), engine.stream(PROMPT, sampling=SAMPLING)
        other.reply()
        for call in (
            lambda: engine.generate(PROMPT, sampling=SAMPLING),
            lambda: session.reply(PROMPT),
            lambda: asyncio.run(engine.astream(PROMPT, sampling=SAMPLING).areply()),
            engine.open_session,
            session.export,
            lambda: next(other),
        ):
            caplog.clear()
            calls[:] = [call]
            with caplog.at_level(logging.WARNING):
                reply = engine.generate(PROMPT, sampling=SAMPLING)
            assert reply.events[0].extra == {"mine": None}
            [record] = caplog.records
            assert record.exc_info is not None and "call the engine from another thread" in str(
                record.exc_info[1]
            )
        for call in (session.close, engine.close):  # which the thread itself may ask for
            calls[:] = [call]
            assert engine.generate(PROMPT, sampling=SAMPLING).events[0].extra == {"mine": ["None"]}
        with pytest.raises(ValueError, match="the engine is closed"):
            engine.generate(PROMPT)


def test_a_closed_engine_opens_no_session_from_a_loop(tiny_dir: Path) -> None:
    engine = Engine.from_pretrained(tiny_dir, device="cpu", threads=1)
    session = engine.open_session()
    engine.close()

    async def ask() -> None:
        for call in (engine.aopen_session, lambda: session.areply(PROMPT), session.aitems, session.afork):
            with pytest.raises(ValueError, match="the engine is closed"):
                await call()

    asyncio.run(ask())


def test_a_thread_that_cannot_be_started_is_started_later(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sound = (np.full(3000, 0.1, np.float32), 16000)
    with Engine.from_pretrained(tiny_dir, device="cpu", threads=1) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for call in (lambda: engine.generate(PROMPT), engine.open_session, lambda: engine.astream(sound)):
                with pytest.raises(OutOfCapacity, match="can't start new thread"):
                    call()
        with engine.open_session(sampling=SAMPLING) as session:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", fail)
                with pytest.raises(OutOfCapacity, match="can't start new thread"):
                    session.push_audio(*sound)
            session.push_audio(*sound)
            session.commit_audio()
            assert session.reply().reply().finish_reason in ("length", "stop")
        assert (engine._worker._num_coming, engine._worker._encoding) == (0, {})
