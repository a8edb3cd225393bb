"""Several utterances in a turn, closing silence left out, what was heard, interruptions again, and calls from event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from loop_probe import probed

from innervoice import AudioChunk, Done, Engine, EventLog, Ids, Message, Sampling, Session, Text
from innervoice.api.event_log import write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

REQUEST: dict[str, Any] = {
    "schedule": "interleaved",
    "sampling": Sampling(temperature=0, max_new_tokens=14, ignore_eos=True),
    "realtime": False,
}
LONG = Sampling(temperature=0, max_new_tokens=90, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="steady", vocoder_noise=False, max_sessions=8
    ) as made:
        yield made
        assert made._live_encoder is not None and made._live_encoder.num_open == 0
        made.parts.core.pool.check_integrity()
        assert made.parts.core.num_rows == 0


@pytest.fixture(scope="module")
def question(assets_dir: Path) -> np.ndarray:
    return soundfile.read(assets_dir / "question.wav", dtype="int16")[0]


def push(session: Session, samples: np.ndarray, rate: int = 16000) -> None:
    for start in range(0, len(samples), 640):
        session.push_audio(samples[start : start + 640], rate)


def spoken(samples: np.ndarray, rate: int = 16000) -> Message:
    return Message("user", (samples, rate))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


def num_prefetched(engine: Engine, session: Session) -> int:
    return engine._worker.call(lambda core: core.registry.known(session.session_id).num_prefetched)


def num_tokens(engine: Engine, session: Session) -> int:
    return engine._worker.call(lambda core: len(core.registry.known(session.session_id).sequence.ids))


def test_utterances_are_items_of_one_turn(engine: Engine, question: np.ndarray) -> None:
    halves = question[:9000], question[9000:]
    with engine.open_session(**REQUEST) as session:
        push(session, halves[0])
        assert session.commit_audio(item_id="first") == "first"
        session.append(Message("user", Text("and then")))
        push(session, halves[1])
        second = session.commit_audio()
        push(session, question[:700])
        session.clear_audio(committed=False)
        assert [item.is_pending for item in session.items()] == [True] * 3
        with session.fork() as twin:
            replies = [one.reply().reply() for one in (session, twin)]
        dialogue = [spoken(halves[0]), Message("user", Text("and then")), spoken(halves[1])]
        expected = engine.generate(dialogue, **REQUEST)
        assert [reply.ids for reply in replies] == [expected.ids] * 2
        items = session.items()
        assert [items[0].item_id, items[2].item_id] == ["first", second]
        assert items[0].num_speech_tokens == -(-9000 // 1280) and not items[3].is_pending


def test_an_utterance_is_prefetched_behind_messages_that_wait(engine: Engine, question: np.ndarray) -> None:
    long = np.resize(question, 70000)
    with engine.open_session(**REQUEST) as session:
        session.append(Message("user", Text("listen well")))
        push(session, long)
        wait_for(lambda: num_prefetched(engine, session) >= 50)
        ahead = num_prefetched(engine, session)
        session.commit_audio()
        reply = session.reply().reply()
        assert reply.usage.cached_tokens == ahead > 50
        assert (
            reply.ids == engine.generate([Message("user", Text("listen well")), spoken(long)], **REQUEST).ids
        )


@pytest.mark.parametrize("change", ["system", "once"])
def test_an_utterance_is_prefetched_after_changed_instructions(
    engine: Engine, question: np.ndarray, change: str
) -> None:
    """The history is written anew while the user speaks; it and the reply are those of a turn given at once."""
    long = np.resize(question, 70000)
    first = {"system": "Be brief."} if change == "system" else {"extra_system": "Laugh."}
    with engine.open_session(**REQUEST) as session, engine.open_session(**REQUEST) as other:
        for one in (session, other):
            one.reply(Text("hello"), **first).reply()
            if change == "system":
                one.update(system="Be long and kind.")
        push(session, long)
        wait_for(lambda: num_prefetched(engine, session) >= 50)
        ahead = num_tokens(engine, session)
        session.commit_audio()
        reply = session.reply().reply()
        expected = other.reply([spoken(long)]).reply()
        assert reply.ids == expected.ids
        assert num_tokens(engine, session) == num_tokens(engine, other)
        assert reply.usage.cached_tokens >= ahead > expected.usage.cached_tokens


@pytest.mark.parametrize(
    ("num_samples", "drop_ms", "rate"), [(30000, 500, 16000), (66000, 300, 16000), (20000, 125, 24000)]
)
def test_closing_silence_is_left_out(
    engine: Engine, question: np.ndarray, num_samples: int, drop_ms: float, rate: int
) -> None:
    """Whether the sound that is dropped was encoded already (a block is 4 s) or not."""
    samples = np.resize(question, num_samples)
    with engine.open_session(**REQUEST) as session:
        push(session, samples, rate)
        audio = session._pending.open_audio
        if num_samples > 64000:
            deadline = time.monotonic() + 60
            while audio is not None and audio.counts.encoded_tokens < 50 and time.monotonic() < deadline:
                time.sleep(0.01)
        session.commit_audio(drop_ms=drop_ms)
        kept = samples[: num_samples - round(drop_ms / 1e3 * rate)]
        assert session.reply().reply().ids == engine.generate((kept, rate), **REQUEST).ids


def test_heard_is_known_at_any_time(engine: Engine) -> None:
    with engine.open_session(schedule="interleaved", realtime=False) as session:
        assert session.heard_ms() == 0 and session.heard().history_tokens == 0
        stream = session.reply(Text("hello"), sampling=LONG)
        events = [next(stream)]
        while not isinstance(events[-1], AudioChunk):
            events.append(next(stream))
        session.ack_playback(200)
        during = session.heard()
        assert during.heard_ms >= 200 and during.speech_tokens >= 2 and during.unheard_text_tokens == 0
        whole = stream.reply()
        session.ack_playback(600)
        after = session.heard()
        assert 600 <= after.heard_ms < 1e3 * whole.audio.duration_s
        assert (
            whole.transcript.startswith(after.transcript) and after.speech_tokens < whole.usage.speech_tokens
        )
        before = session.items()
        cut = session.interrupt(600, cut="transcript")
        assert (cut.speech_tokens, cut.transcript, cut.heard_ms) == (7, cut.transcript, pytest.approx(600))
        assert before[-1].num_speech_tokens == whole.usage.speech_tokens
        assert session.items()[-1].num_speech_tokens == session.heard().speech_tokens == 7


@pytest.mark.parametrize("cut", ["speech", "transcript"])
@pytest.mark.parametrize("first", ["cancel", "interrupt", "both", "end"])
def test_a_second_interruption_cuts_as_the_only_one_would(engine: Engine, cut: Any, first: str) -> None:
    def history(session: Session) -> list[int]:
        return engine._worker.call(lambda core: list(core.registry.known(session.session_id).sequence.ids))

    def talk(session: Session, *played: float) -> tuple[Any, list[int]]:
        stream = session.reply(Text("hello"), sampling=LONG)
        if first == "end":
            stream.reply()
        else:
            events = [next(stream)]
            while sum(isinstance(event, AudioChunk) for event in events) < 2:
                events.append(next(stream))
        if first in ("cancel", "both"):
            stream.cancel()
            assert isinstance(list(stream)[-1], Done)
        for ms in played:
            heard = session.interrupt(ms, cut=cut)
        return heard, history(session)

    request: dict[str, Any] = {"schedule": "interleaved", "realtime": False}
    with engine.open_session(**request) as once, engine.open_session(**request) as twice:
        expected = talk(once, 400)
        found = talk(twice, *((400,) if first == "cancel" else (1200, 700, 400)))
        if first == "end":
            assert found == expected
        elif cut == "speech":  # a reply that still runs has drawn more or less text that is dropped
            assert replace(found[0], unheard_text_tokens=0) == replace(expected[0], unheard_text_tokens=0)
            assert found[1] == expected[1]
        assert found[0].speech_tokens == expected[0].speech_tokens == 5
        for played in (1500, 400, None):  # more restores nothing
            assert twice.interrupt(played, cut=cut).speech_tokens == 5
            assert history(twice) == found[1]
        assert twice.interrupt(0, cut=cut).speech_tokens == 0
        assert twice.reply(Text("go on"), **REQUEST).reply().ids


def test_an_event_loop_is_never_held_up(
    engine: Engine, question: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a reply waits for slow encoding, other calls of the session go through, and the loop stays free."""
    assert engine._live_encoder is not None
    encoder = engine._live_encoder._speech_encoder
    gate, step = threading.Event(), encoder.step

    def slow(streams: Any) -> None:
        gate.wait(30)
        step(streams)

    async def talk() -> tuple[list[int], list[int]]:
        session = await engine.aopen_session(**REQUEST)
        async with session, probed() as probe:
            monkeypatch.setattr(encoder, "step", slow)
            push(session, question)
            session.commit_audio()
            waiting = asyncio.create_task(session.areply())
            await asyncio.sleep(0.3)
            push(session, question[:9000])  # belongs to the next turn
            session.append(Message("user", Text("in the meantime")))
            assert len(await session.aitems()) == 2 and (await session.aheard()).speech_tokens == 0
            assert not waiting.done()
            gate.set()
            first = await (await waiting).areply()
            session.commit_audio()
            second = await (await session.areply()).areply()
            assert await session.aexport()
            assert len(probe.late_s) > 20 and probe.late_at_most_s(0.95) < 0.01
        with pytest.raises(ValueError, match="the session is closed"):
            await session.areply(Text("hello"))
        return first.ids, second.ids

    first, second = asyncio.run(talk())
    history = [spoken(question), Message("assistant", Ids(first)), Message("user", Text("in the meantime"))]
    assert first == engine.generate(history[:1], **REQUEST).ids
    assert second == engine.generate([*history, spoken(question[:9000])], **REQUEST).ids


def test_calls_of_an_event_loop_keep_their_order(engine: Engine) -> None:
    async def talk() -> list[str]:
        async with await engine.aopen_session(**REQUEST) as session:
            stream = await session.areply([Message("user", Text("hello"), item_id="a")])
            await stream.areply()
            made = [
                session.aappend(Message("user", Text(f"word {number}"), item_id=f"b{number}"))
                for number in range(6)
            ]
            await asyncio.gather(*made)
            twin = await session.afork()
            await twin.aclose()
            waiting = asyncio.create_task(engine.aopen_session())
            await asyncio.sleep(0)
            waiting.cancel()
            return [item.item_id for item in await session.aitems()]

    ids = asyncio.run(talk())
    assert [ids[0], *ids[2:]] == ["a", *(f"b{number}" for number in range(6))]
    deadline = time.monotonic() + 20
    while engine.parts.core.num_rows and time.monotonic() < deadline:  # the session that its task gave up
        time.sleep(0.01)
    assert engine.parts.core.num_rows == 0


def test_turns_after_edits_are_recorded_and_made_again(engine: Engine, tmp_path: Path) -> None:
    from innervoice import Delete, Insert

    request = REQUEST | {"sampling": Sampling(temperature=1.0, seed=3, max_new_tokens=20)}
    with engine.open_session(system="be kind", **request) as session:
        session.reply([Message("user", Text("hello"), item_id="a")]).reply()
        session.edit(Delete("a"), Insert([Message("system", Text("sing"))]))
        streams = [session.reply([], instructions="be terse", extra_system="say it twice")]
        streams[0].reply()
        session.update(system="be brief")
        streams.append(session.reply([Message("assistant", Text("well")), Message("user", Text("so?"))]))
        for number, stream in enumerate(streams):
            log, events = EventLog(), stream.reply().events
            lines = [line for event in events for line in log.feed(event)]
            assert stream.record is not None
            write_events(tmp_path / f"{number}.jsonl", [stream.record, *lines, *log.finish()])
    for number in range(len(streams)):
        made = replay(engine, RecordedReply.load(tmp_path / f"{number}.jsonl"))
        assert made.mismatch is None and made.num_tokens > 10
