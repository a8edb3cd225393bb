"""Replies that end before they begin: what they were to answer waits for the next one, and nothing else is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from innervoice import Engine, Message, Sampling, Session, Text
from innervoice.runtime.scheduler import StepPlan

REQUEST: dict[str, Any] = {
    "schedule": "interleaved",
    "sampling": Sampling(temperature=0, max_new_tokens=14, ignore_eos=True),
    "realtime": False,
}


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", vocoder_noise=False, max_sessions=8) as made:
        yield made
        core, pool = made.parts.core, made.parts.core.pool
        pool.check_integrity()
        assert core.num_rows == 0
        assert pool.num_available == pool.num_pages


@contextmanager
def held_up(engine: Engine) -> Iterator[None]:
    """No request is admitted while the block runs; calls of sessions are."""
    core = engine.parts.core
    plan = core._plan
    core._plan = lambda now: StepPlan()  # type: ignore[method-assign]
    try:
        yield
    finally:
        core._plan = plan  # type: ignore[method-assign]


def ask(session: Session, **more: Any) -> list[int]:
    return session.reply([], **REQUEST, **more).reply().ids


def say(session: Session) -> None:
    session.append(Message("user", Text("how are you?"), item_id="typed"))
    session.inject("it rains")


def speak(session: Session, sound: np.ndarray) -> None:
    session.push_audio(sound, 16000)
    session.commit_audio(item_id="spoken")


ENDS: dict[str, Callable[[Session, Any], Any]] = {
    "cancel": lambda session, stream: stream.cancel(),
    "interrupt": lambda session, stream: session.interrupt(),
    "interrupt it": lambda session, stream: session.interrupt(0, cut="transcript", reply_id=stream.reply_id),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_an_unbegun_reply_was_to_answer_waits_for_the_next(
    engine: Engine, assets_dir: Path, end: str, is_first: bool
) -> None:
    sound, _ = soundfile.read(assets_dir / "question.wav", dtype="float32")
    with engine.open_session() as session, engine.open_session() as other:
        for one in (session, other):
            if not is_first:
                one.reply(Text("hello"), **REQUEST).reply()
            say(one)
            speak(one, sound)
        before = [(item.item_id, item.is_pending) for item in session.items()]
        with held_up(engine):
            stream = session.reply([], **REQUEST)
            assert [(item.item_id, item.is_pending) for item in session.items()] == before
            twin = session.fork()
            exported = session.export()
            ENDS[end](session, stream)
            assert stream.reply().ids == []
        assert [(item.item_id, item.is_pending) for item in session.items()] == before
        expected = ask(other)
        assert ask(session) == expected
        assert [item.is_pending for item in session.items()] == [False] * (len(before) + 1)
        with twin:
            assert ask(twin) == expected
        with engine.open_session(restore=exported) as restored:
            assert [item.item_id for item in restored.items()][-1] == "typed"


def test_an_interruption_of_an_unbegun_reply_leaves_the_one_before(engine: Engine) -> None:
    with engine.open_session() as session:
        first = session.reply(Text("hello"), **REQUEST)
        first.reply()
        before = session.items()
        with held_up(engine):
            stream = session.reply(Text("and then?"), **REQUEST)
            stream.cancel()
            stream.reply()
        heard = session.interrupt(0, cut="transcript", reply_id=stream.reply_id)
        assert (heard.speech_tokens, heard.transcript) == (0, "")
        assert session.items() == before
        with pytest.raises(ValueError, match="no reply 'nobody' to interrupt"):
            session.interrupt(0, reply_id="nobody")
        session.interrupt(0, cut="transcript", reply_id=first.reply_id)
        assert session.items()[-1].num_speech_tokens == 0
