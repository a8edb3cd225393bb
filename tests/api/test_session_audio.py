"""Pushed audio in sessions: turns, what the core is told, barge-in, forks, refusals; samples out at other rates and as int16."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from innervoice import AudioChunk, Engine, Reply, Sampling, Session, Text
from innervoice.codec.audio import read_audio, resample
from innervoice.types import to_pcm16

REQUEST: dict[str, Any] = {
    "schedule": "interleaved",
    "sampling": Sampling(temperature=0, max_new_tokens=12, ignore_eos=True),
}
SPOKEN: dict[str, Any] = {
    "schedule": "interleaved",
    "sampling": Sampling(temperature=0, max_new_tokens=60, ignore_eos=True),
}
FRAME = 320


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="steady", vocoder_noise=False, max_sessions=8
    ) as made:
        yield made
        encoder = made._live_encoder
        assert encoder is not None
        wait_until(lambda: encoder.num_open == 0)


@pytest.fixture(scope="module")
def question(assets_dir: Path) -> np.ndarray:
    return soundfile.read(assets_dir / "question.wav", dtype="int16")[0]


@pytest.fixture(scope="module")
def expected(engine: Engine, assets_dir: Path) -> list[int]:
    """Ids of the first reply to the whole recording."""
    return engine.generate(assets_dir / "question.wav", **REQUEST).ids


@pytest.fixture
def told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """History and what was told behind it, each time that it was taken; nothing when it was taken back."""
    sessions, kept = engine.parts.core.sessions, list[list[int]]()
    original = sessions.prefetch

    def prefetch(session_id: str, ids: Sequence[int]) -> None:
        original(session_id, ids)
        kept.append([*history_of(engine, session_id), *ids] if ids else [])

    monkeypatch.setattr(sessions, "prefetch", prefetch)
    return kept


def history_of(engine: Engine, session_id: str) -> list[int]:
    """On the core's thread."""
    session = engine.parts.core.registry.known(session_id)
    return session.sequence.ids[: session.num_tokens]


def push(session: Session, samples: np.ndarray, rate: int = 16000, size: int = FRAME) -> None:
    for start in range(0, len(samples), size):
        session.push_audio(samples[start : start + size], rate)


def ask(session: Session, samples: np.ndarray) -> Reply:
    push(session, samples)
    session.commit_audio()
    return session.reply().reply()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def history(engine: Engine, session: Session) -> list[int]:
    return engine._worker.call(lambda core: history_of(engine, session.session_id))


def num_fed(engine: Engine, session: Session) -> int:
    """Tokens of the history and of what was told that have their keys and values."""
    return engine._worker.call(lambda core: core.registry.known(session.session_id).sequence.num_cached)


def test_what_is_left_at_the_reply_does_not_grow_with_the_turn(
    engine: Engine, told: list[list[int]], assets_dir: Path
) -> None:
    """In every turn, the prompt begins with what was told and fed; a block and the template's end are left."""
    reading = read_audio(assets_dir / "reading.wav")[0]
    with engine.open_session(system="be brief", **REQUEST) as session:
        for turn, seconds in enumerate((9, 21, 5)):
            samples = np.resize(reading, 16000 * seconds)
            push(session, samples)
            complete = 50 * ((16000 * seconds - 40) // 64000)
            head = engine.parts.requests.spoken_head([], "be brief", first=turn == 0)
            num = len(history(engine, session)) + len(head) + complete
            wait_until(lambda num=num: bool(told) and len(told[-1]) == num == num_fed(engine, session))
            session.commit_audio()
            usage = session.reply().reply().usage
            prompt = history(engine, session)[: usage.prompt_tokens]
            assert all(prompt[: len(ids)] == ids for ids in told)
            assert usage.cached_tokens == num
            assert 0 < usage.prompt_tokens - num <= 50 + 20
            told.clear()


def test_a_shout_that_revises_what_was_fed_leaves_the_reply_as_it_is(
    engine: Engine, told: list[list[int]]
) -> None:
    noise = np.random.default_rng(5).standard_normal(3 * 64000 + 9000).astype(np.float32)
    samples = noise * np.repeat(np.float32([0.1, 1e-5, 1e-5, 1.0]), 64000)[: len(noise)]
    expected = engine.generate((samples, 16000), **REQUEST).ids
    with engine.open_session(**REQUEST) as session:
        push(session, samples[: 3 * 64000 + 640])
        head = len(engine.parts.requests.spoken_head([], None, first=True))
        wait_until(lambda: bool(told) and len(told[-1]) == head + 150 == num_fed(engine, session))
        push(session, samples[3 * 64000 + 640 :])
        session.commit_audio()
        (committed,) = session._pending.audio_of(session._pending.items)
        codes, listened = committed.codes(), committed.counts
        reply = session.reply().reply()
    incidents = engine.stats().incidents
    assert incidents["encoded_again"] == listened.recomputed_tokens and incidents["encoded_ahead"] >= 150
    first_changed = next(i for i, code in enumerate(told[-1][head:]) if code - 405 != codes[i])
    assert first_changed >= 50 and listened.recomputed_tokens >= 100
    assert reply.ids == expected
    assert reply.usage.cached_tokens == head + first_changed


def test_a_turn_pushed_during_a_reply_is_told_when_the_reply_is_over(
    engine: Engine, told: list[list[int]], question: np.ndarray
) -> None:
    with engine.open_session(schedule="interleaved") as session:
        stream = session.reply(
            Text("hello"), sampling=Sampling(temperature=0, max_new_tokens=1500, ignore_eos=True)
        )
        next(stream)
        push(session, np.resize(question, 70000))
        wait_until(
            lambda: (audio := session._pending.open_audio) is not None and audio.counts.encoded_tokens == 50
        )
        assert told == []
        stream.cancel()
        stream.reply()
        before = history(engine, session)
        push(session, question[:FRAME])
        wait_until(lambda: told != [])
        assert told[-1][: len(before)] == before
        assert (
            len(told[-1]) == len(before) + len(engine.parts.requests.spoken_head([], None, first=False)) + 50
        )
        session.commit_audio()
        assert len(session.reply(**REQUEST).reply().ids) == 12


def test_cleared_audio_is_forgotten(
    engine: Engine, told: list[list[int]], question: np.ndarray, expected: list[int]
) -> None:
    with engine.open_session(**REQUEST) as session:
        push(session, question[:9000])
        wait_until(lambda: told != [])
        session.clear_audio()
        wait_until(lambda: told[-1] == [])
        push(session, question[:5000], 8000)
        session.commit_audio()
        session.clear_audio()
        session.clear_audio()
        with pytest.raises(ValueError, match="nothing to reply to"):
            session.reply()
        assert ask(session, question).ids == expected


def test_a_fork_has_the_audio_pushed_so_far(
    engine: Engine, question: np.ndarray, expected: list[int]
) -> None:
    with engine.open_session(**REQUEST) as session:
        push(session, question[:20000])
        with session.fork() as twin:
            push(twin, question[20000:])
            push(session, question[::-1])
            twin.commit_audio()
            with twin.fork() as third:
                assert twin.reply().reply().ids == third.reply().reply().ids == expected


def test_a_prompt_leaves_committed_audio_to_a_later_reply(engine: Engine, question: np.ndarray) -> None:
    with engine.open_session(**REQUEST) as session:
        push(session, question)
        session.commit_audio()
        assert len(session.reply(Text("hello")).reply().ids) == 12
        usage = session.reply().reply().usage
        assert usage.prompt_tokens > -(-len(question) // 1280)


def test_refusals_change_nothing(engine: Engine, question: np.ndarray, expected: list[int]) -> None:
    with engine.open_session(**REQUEST) as session:
        refused: list[tuple[Any, Any, str]] = [
            (np.zeros(0, np.float32), 16000, "frame holds 0 samples"),
            (b"", 16000, "frame holds 0 samples"),
            (b"abc", 16000, "3 bytes are no whole number of int16 samples"),
            (np.float32([0, np.inf]), 16000, "frame: sample 1 is inf"),
            (np.zeros(9, np.complex64), 16000, "samples are complex64"),
            (np.zeros((2, 2, 2), np.float32), 16000, r"shape \[2, 2, 2\]"),
            ([0.0, 0.1], 16000, "of type list"),
            *(
                (np.zeros(9, np.float32), rate, "expected a whole number of Hz")
                for rate in (0, -1, 999, 10**9, 16000.5, True, None)
            ),
            (np.zeros(16000 * 700, np.float32), 16000, "a prompt has at most"),
        ]
        for begun in (False, True):
            if begun:
                push(session, question[:10000])
            for pcm, rate, message in refused:
                with pytest.raises(ValueError, match=message):
                    session.push_audio(pcm, rate)
            assert (session._pending.open_audio is not None) == begun
        with pytest.raises(ValueError, match="the rate changed from 16000 to 48000 Hz"):
            session.push_audio(question[:10], 48000)
        push(session, question[10000:])
        session.commit_audio(item_id="first")
        push(session, question[:800])
        for call, message in (
            ({"item_id": "first"}, "item_id 'first' is in use in this session"),
            ({"item_id": ""}, "item_id is '': use text of at least one character"),
            ({"drop_ms": -1}, "drop_ms is -1: it must be"),
            ({"drop_ms": 50}, "the turn has 50 ms: nothing would be left"),
        ):
            with pytest.raises(ValueError, match=message):
                session.commit_audio(**call)
        session.clear_audio(committed=False)
        with pytest.raises(ValueError, match="nothing was pushed"):
            session.commit_audio()
        with pytest.raises(ValueError, match="output_format is 'mp3': use float32 or int16"):
            session.reply(output_format="mp3")
        assert session.reply().reply().ids == expected
        session.push_audio(question[:10], 16000)
        session.commit_audio()
        session.push_audio(question[:10], 16000)
    for attempt in (lambda: session.push_audio(question[:10], 16000), session.commit_audio):
        with pytest.raises(ValueError, match="the session is closed: open a new one"):
            attempt()
    session.clear_audio()


def test_sessions_that_are_spoken_to_at_once(engine: Engine, question: np.ndarray, assets_dir: Path) -> None:
    reading = np.resize(soundfile.read(assets_dir / "reading.wav", dtype="int16")[0], 90000)
    waves = [np.roll(reading, 5000 * i) for i in range(4)] + [
        question,
        question[::2],
        question[:1],
        question[5000:],
    ]
    expected = [engine.generate((wave, 16000), **REQUEST).ids for wave in waves]
    sessions = [engine.open_session(**REQUEST) for _ in waves]
    ids: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i: ids.update({i: ask(sessions[i], waves[i]).ids}))
        for i in range(len(waves))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert [ids[i] for i in range(len(waves))] == expected


def test_a_silent_first_channel_of_a_whole_turn_is_warned_of(
    engine: Engine, question: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    right = np.stack([0 * question, question], 1)
    for frames, num in (
        ([right[:4000], right[4000:9000]], 1),
        ([right[:4000], right[4000:9000].astype(np.float32) / 32768], 1),
        ([right[:4000], right[4000:9000, ::-1]], 0),
        ([question[:4000], right[4000:9000]], 0),
        ([question[:9000]], 0),
    ):
        caplog.clear()
        with engine.open_session() as session, caplog.at_level("WARNING", "innervoice"):
            for frame in frames[:-1]:
                session.push_audio(frame, 16000)
            with session.fork() as twin:
                twin.push_audio(frames[-1], 16000)
                assert not caplog.records
                twin.commit_audio()
                assert len(caplog.records) == num
                twin.push_audio(question[:9000], 16000)
                twin.commit_audio()
        assert len(caplog.records) == num
        assert not num or "the first of 2 channels is silent and number 2 is not" in caplog.text


def test_without_a_speech_tokenizer_audio_is_refused(tiny_dir: Path) -> None:
    with (
        Engine.from_pretrained(tiny_dir / "glm-4-voice-9b", device="cpu") as mute,
        mute.open_session() as session,
    ):
        with pytest.raises(ValueError, match="needs a speech tokenizer, and none was loaded"):
            session.push_audio(np.zeros(9, np.float32), 16000)
        with pytest.raises(ValueError, match="nothing was pushed"):
            session.commit_audio()


@pytest.fixture(scope="module")
def native(engine: Engine) -> np.ndarray:
    audio = engine.generate(Text("hello"), **SPOKEN).audio
    assert audio.rate == 22050 and audio.samples.dtype == np.float32
    return audio.samples


@pytest.mark.parametrize(("rate", "output_format"), [(48000, "float32"), (8000, "int16"), (22050, "int16")])
def test_chunks_at_another_rate_and_as_int16_are_those_of_the_whole(
    engine: Engine, native: np.ndarray, tmp_path: Path, rate: int, output_format: str
) -> None:
    reply = engine.generate(Text("hello"), output_rate=rate, output_format=output_format, **SPOKEN)
    events = [event for event in reply.events if isinstance(event, AudioChunk)]
    whole = resample(native, 22050, rate)
    assert len(events) > 1 and all(
        event.pcm.dtype == output_format and event.rate == rate for event in events
    )
    assert np.array_equal(reply.audio.samples, to_pcm16(whole) if output_format == "int16" else whole)
    assert np.array_equal(np.concatenate([event.to_pcm16() for event in events]), to_pcm16(whole))
    assert reply.audio.duration_s == reply.usage.audio_s == len(whole) / rate
    reply.audio.save(tmp_path / "reply.wav")
    assert np.array_equal(soundfile.read(tmp_path / "reply.wav", dtype="int16")[0], to_pcm16(whole))


@pytest.mark.parametrize("rate", [0, 999, 384_001])
def test_output_rates_that_sound_has_not_are_refused(engine: Engine, rate: int) -> None:
    with pytest.raises(ValueError, match=f"output_rate is {rate}: it must be 1000 to 384000 Hz"):
        engine.generate(Text("hello"), output_rate=rate)
