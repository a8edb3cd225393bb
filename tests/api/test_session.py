"""Dialogues: turns that compute only what is new, shared pages, forks, exports, and what a session refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innervoice import (
    Done,
    Engine,
    OutOfCapacity,
    Reflection,
    Reply,
    Sampling,
    Schedule,
    Session,
    Text,
    TokenEvent,
)
from innervoice.model.text import TiktokenTokenizer

SCHEDULE = Schedule.preset("stitch_s", transcript_budget=5, speech_budget=6, reflection_budget=7)
QUESTIONS = ["hello", "how are you?", "tell me more", "why is that so?", "thank you"]


def hot(seed: int, num: int = 24) -> Sampling:
    return Sampling(temperature=1.2, top_k=0, top_p=0.95, seed=seed, max_new_tokens=num)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="reference", vocoder_noise=False, max_sessions=16
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def no_leak(engine: Engine) -> Iterator[None]:
    """Every test gives back every page."""
    yield
    core, pool = engine.parts.core, engine.parts.core.pool
    pool.check_integrity()
    assert core.num_rows == 0
    assert pool.num_available == pool.num_pages


def ask(session: Session, turn: int, **request: Any) -> Reply:
    return session.reply(Text(QUESTIONS[turn % len(QUESTIONS)]), sampling=hot(turn), **request).reply()


def test_a_dialogue_of_twenty_turns_computes_only_what_is_new(engine: Engine, tiny_dir: Path) -> None:
    tokenizer = TiktokenTokenizer.from_pretrained(tiny_dir / "glm-4-voice-9b")
    with engine.open_session(schedule=SCHEDULE) as session:
        history, ended = 0, False
        for turn in range(20):
            reply = ask(session, turn)
            usage = reply.usage
            question = tokenizer.encode("\n" + QUESTIONS[turn % 5])
            if turn:
                # The last token of a reply is drawn and not fed; it goes in with the next turn.
                assert usage.cached_tokens == history - (not ended)
                assert usage.prompt_tokens - history == len(question) + 2 + len(
                    tokenizer.encode("streaming_transcription\n")
                )
            # An end of turn is taken back: the next turn's template begins with it.
            ended = reply.finish_reason == "stop"
            history = usage.prompt_tokens + usage.total_new_tokens - ended


def test_the_second_turn_sees_what_one_long_prompt_would_show(engine: Engine) -> None:
    """The ids of turn two equal those of a fresh reply to the whole history given as ids."""
    from innervoice import Ids

    with engine.open_session(schedule=SCHEDULE) as session:
        ask(session, 0)
        second = ask(session, 1)
        history = engine._worker.call(lambda core: list(core.registry.known(session.session_id).sequence.ids))
    prompt = Ids(history[: second.usage.prompt_tokens])
    assert engine.generate(prompt, schedule=SCHEDULE, sampling=hot(1)).ids == second.ids


@pytest.mark.parametrize("weight", [1.0, 1.2])
def test_ids_are_the_same_with_sharing_on_and_off_alone_and_in_a_crowd(
    engine: Engine, tiny_dir: Path, weight: float
) -> None:
    schedule = SCHEDULE.with_changes(reflection_weight=weight)

    def dialogue(on: Engine, start: int, **request: Any) -> list[list[int]]:
        with on.open_session(schedule=schedule, **request) as session:
            return [ask(session, start + turn).ids for turn in range(3)]

    alone = [dialogue(engine, start) for start in range(16)]
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="offline", vocoder_noise=False, share_prefixes=False
    ) as unshared:
        assert [dialogue(unshared, start) for start in range(3)] == alone[:3]
        assert unshared.parts.core.pool.num_cached == 0
    sessions = [engine.open_session(schedule=schedule) for _ in range(16)]
    crowd: list[list[list[int]]] = [[] for _ in sessions]
    for turn in range(3):
        texts = [(Text(QUESTIONS[(start + turn) % 5]), hot(start + turn)) for start in range(16)]
        streams = [
            s.reply(text, sampling=sampling) for s, (text, sampling) in zip(sessions, texts, strict=True)
        ]
        for ids, stream in zip(crowd, streams, strict=True):
            ids.append(stream.reply().ids)
    for session in sessions:
        session.close()
    assert crowd == alone


def test_equal_system_prompts_are_stored_once(engine: Engine) -> None:
    pool, system = engine.parts.core.pool, "you are a patient listener. " * 12
    sessions = [engine.open_session(schedule=SCHEDULE, system=system) for _ in range(8)]
    streams = [
        s.reply(Text(q), sampling=hot(i))
        for i, (s, q) in enumerate(zip(sessions, QUESTIONS * 2, strict=False))
    ]
    replies = [stream.reply() for stream in streams]
    lengths = [reply.usage.prompt_tokens + reply.usage.total_new_tokens for reply in replies]
    private = sum(-(-n // 16) for n in lengths)
    held = pool.num_pages - pool.num_available
    system_pages = (min(r.usage.prompt_tokens for r in replies) - 40) // 16
    assert held <= private - 7 * system_pages
    with engine.open_session(schedule=SCHEDULE, system=system) as late:
        assert ask(late, 0).usage.cached_tokens >= 16 * system_pages
    for session in sessions:
        session.close()


def test_a_fork_goes_its_own_way_and_leaves_the_first_alone(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE) as first, engine.open_session(schedule=SCHEDULE) as control:
        ask(first, 0), ask(control, 0)
        with first.fork() as second:
            replies = [first.reply(Text("yes"), sampling=hot(7)), second.reply(Text("no"), sampling=hot(7))]
            ids = [stream.reply().ids for stream in replies]
            assert control.reply(Text("yes"), sampling=hot(7)).reply().ids == ids[0]
            assert ids[0] != ids[1]
            assert second.reply(Text("and?"), sampling=hot(8)).reply().usage.prompt_tokens > 0


def test_an_export_continues_with_identical_ids_elsewhere(engine: Engine, tiny_dir: Path) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        ask(session, 0), ask(session, 1)
        data = session.export()
        expected = ask(session, 2).ids
    with (
        Engine.from_pretrained(tiny_dir, device="cpu", streaming="offline", vocoder_noise=False) as other,
        other.open_session(restore=data, schedule=SCHEDULE) as restored,
    ):
        assert ask(restored, 2).ids == expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 50),
    after=st.integers(1, 30),
    way=st.sampled_from(["fork", "export"]),
    weight=st.sampled_from([1.0, 1.15]),
)
def test_a_reply_cut_out_anywhere_continues_with_identical_ids_and_sound(
    engine: Engine, seed: int, after: int, way: str, weight: float
) -> None:
    schedule = SCHEDULE.with_changes(reflection_weight=weight)
    with engine.open_session(schedule=schedule) as session:
        ask(session, seed)
        stream = session.reply(Text("go on"), sampling=hot(seed, 40))
        seen = 0
        for event in stream:
            seen += len(event.ids) if isinstance(event, TokenEvent) else 0
            if seen >= after:
                break
        twin = (
            session.fork()
            if way == "fork"
            else engine.open_session(restore=session.export(), schedule=schedule)
        )
        whole = stream.reply()
        with twin:
            paused = engine._worker.call_sessions(lambda sessions: sessions.history(twin.session_id)).paused
            if paused is None:  # the reply was over before the cut
                return
            told = paused.num_tokens
            rest = twin.reply().reply()
            assert rest.ids == whole.ids[told:]
            assert rest.finish_reason == whole.finish_reason
            assert np.array_equal(rest.audio.samples, whole.audio.samples[paused.num_samples :])
            assert (
                twin.reply(Text("and then?"), sampling=hot(3)).reply().ids
                == session.reply(Text("and then?"), sampling=hot(3)).reply().ids
            )


def test_a_new_turn_may_replace_an_unfinished_reply(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        stream = session.reply(Text("hello"), sampling=hot(1, 500))
        for _ in range(10):
            next(stream)
        twin = session.fork()
        stream.cancel()
        assert stream.reply().finish_reason == "cancelled"
        with twin:
            assert len(twin.reply(Text("stop that"), sampling=hot(2)).reply().ids) == 24
        assert len(session.reply(Text("go on"), sampling=hot(2)).reply().ids) == 24


def test_turns_of_speech_pushed_in_frames(engine: Engine, assets_dir: Path) -> None:
    samples, rate = soundfile.read(assets_dir / "question.wav", dtype="int16")
    with engine.open_session(schedule=SCHEDULE) as session, engine.open_session(schedule=SCHEDULE) as whole:
        for start in range(0, len(samples), 1000):
            frame = samples[start : start + 1000]
            session.push_audio(frame if start % 2000 else frame.tobytes(), rate)
        session.commit_audio()
        ids = session.reply(sampling=hot(0)).reply().ids
        assert whole.reply(assets_dir / "question.wav", sampling=hot(0)).reply().ids == ids
        session.push_audio(samples[:8000], rate)
        session.clear_audio()
        with pytest.raises(ValueError, match="nothing was pushed"):
            session.commit_audio()
        with pytest.raises(ValueError, match="nothing to reply to"):
            session.reply()


def test_injected_text_begins_the_next_reply(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        session.inject("it is raining")
        reply = ask(session, 0)
        assert reply.reflections[0] == "it is raining"
        forced = [e for e in reply.events if isinstance(e, Reflection) and e.segment == 0]
        assert all(e.forced for e in forced)
        assert forced[0].ids == [391]
        assert forced[-1].ids == [392]
        assert ask(session, 1).reflections[0] != "it is raining"
        with pytest.raises(ValueError, match="the text to inject is empty"):
            session.inject("")


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_audio_files_out_and_in(engine: Engine, tmp_path: Path, kind: str) -> None:
    audio = engine.generate(
        Text("hello"), schedule="interleaved", sampling=Sampling(temperature=0, max_new_tokens=60)
    ).audio
    audio.save(tmp_path / f"reply.{kind}")
    samples, rate = soundfile.read(tmp_path / f"reply.{kind}", dtype="float32")
    assert rate == 22050
    assert len(samples) == len(audio.samples)
    assert np.abs(samples - audio.samples).max() < (0.5 if kind == "ogg" else 1e-4)
    assert len(engine.generate(tmp_path / f"reply.{kind}", sampling=Sampling(max_new_tokens=3)).ids) == 3
    assert [p.name for p in tmp_path.iterdir()] == [f"reply.{kind}"]


def test_too_many_sessions_are_refused_with_the_numbers(engine: Engine) -> None:
    sessions = [engine.open_session() for _ in range(16)]
    with pytest.raises(OutOfCapacity, match="all 16 sessions are in use"):
        engine.open_session()
    with pytest.raises(OutOfCapacity):
        sessions[0].fork()
    waiting = engine.stream(Text("hello"), sampling=hot(0, 4))  # single replies wait for a place
    sessions[0].close()
    assert len(waiting.reply().ids) == 4
    for session in sessions:
        session.close()


def test_what_a_session_refuses(engine: Engine, tiny_dir: Path) -> None:
    session = engine.open_session(schedule=SCHEDULE)
    stream = session.reply(Text("hello"), sampling=hot(0, 400))
    with pytest.raises(ValueError, match="still replying"):
        session.reply(Text("hello?"))
    stream.cancel()
    stream.reply()
    with pytest.raises(TypeError, match="unknown request option 'tempo'"):
        session.reply(Text("hello"), tempo=3)
    session.push_audio(np.zeros(10, np.float32), 16000)
    with pytest.raises(ValueError, match="the rate changed"):
        session.push_audio(np.zeros(10, np.float32), 8000)
    session.close()
    session.close()
    for attempt in (lambda: session.reply(Text("hello")), session.fork, session.export):
        with pytest.raises(ValueError, match="the session is closed"):
            attempt()
    with (
        Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=256) as small,
        small.open_session() as narrow,
    ):
        ids = (
            narrow.reply(Text("hello"), sampling=Sampling(temperature=0, max_new_tokens=60, ignore_eos=True))
            .reply()
            .ids
        )
        assert len(ids) == 60
        with pytest.raises(ValueError, match=r"\d+ more than the cache holds .* max_model_len above \d+"):
            narrow.reply(Text("and now a rather long question"))
        other = small.open_session()
        assert len(other.reply(Text("hello"), sampling=hot(0, 5)).reply().ids) == 5


def test_foreign_and_damaged_exports_are_refused(engine: Engine, tiny_dir: Path, tmp_path: Path) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        ask(session, 0)
        data = session.export()
    for damaged, message in (
        (b"", "no exported session"),
        (b"RIFF" + data, "no exported session"),
        (data[:-1], "damaged"),
        (data.replace(b'"ids": [375', b'"ids": [376'), "damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.open_session(restore=damaged)
    alone = tiny_dir / "glm-4-voice-9b"
    with (
        Engine.from_pretrained(alone, device="cpu") as other,
        pytest.raises(ValueError, match="another model"),
    ):
        other.open_session(restore=data)
    header, checksum, body = data.split(b"\n", 2)
    assert header.startswith(b"innervoice session")
    assert len(checksum) == 64
    assert len(json.loads(body)["ids"]) > 24


def test_a_closed_session_ends_its_reply(engine: Engine) -> None:
    session = engine.open_session()
    stream = session.reply(Text("hello"), sampling=hot(0, 900))
    next(stream)
    session.close()
    last = list(stream)[-1]
    assert isinstance(last, Done)
    assert last.finish_reason == "cancelled"
    assert engine.parts.core.num_rows == 0
