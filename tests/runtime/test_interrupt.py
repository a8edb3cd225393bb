"""Barge-in: nothing follows but the last event, the pages are free, and the next turn begins from what was
heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from innervoice import AudioChunk, Done, Engine, Ids, Sampling, Schedule, Session, Text
from innervoice.model.token_role import TokenRole

SCHEDULE = Schedule.preset("stitch_s", transcript_budget=5, speech_budget=10, reflection_budget=6)


def hot(seed: int, num: int) -> Sampling:
    return Sampling(temperature=1.1, top_k=0, top_p=0.95, seed=seed, max_new_tokens=num, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="steady", max_sessions=4) as made:
        yield made


def history(engine: Engine, session: Session) -> tuple[list[int], list[TokenRole], int]:
    def ask(core: Any) -> tuple[list[int], list[TokenRole], int]:
        row = core.registry.known(session.session_id).sequence
        return list(row.ids), list(row.roles), row.num_cached

    return engine._worker.call(ask)


@pytest.mark.parametrize("cut", ["speech", "transcript"])
@pytest.mark.parametrize("reflection", ["drop", "keep"])
def test_the_next_turn_begins_from_what_was_heard(engine: Engine, cut: Any, reflection: Any) -> None:
    core = engine.parts.core
    with engine.open_session(schedule=SCHEDULE, realtime=False) as session:
        session.reply(Text("hello"), sampling=hot(1, 20)).reply()
        before, _, _ = history(engine, session)
        stream = session.reply(Text("tell me more"), sampling=hot(2, 400))
        events = [next(stream)]
        while sum(isinstance(event, AudioChunk) for event in events) < 2:
            events.append(next(stream))
        chunks = [event for event in events if isinstance(event, AudioChunk)]
        sent_ms = 1e3 * sum(len(chunk.pcm) for chunk in chunks) / chunks[0].rate
        heard = session.interrupt(played_ms=sent_ms / 2, cut=cut, reflection=reflection)
        rest = list(stream)
        assert [type(event) for event in rest] == [Done] and rest[0].finish_reason == "interrupted"
        ids, roles, cached = history(engine, session)
        speech = engine.parts.requests.vocabulary.speech
        assert speech is not None and heard.history_tokens == len(ids) and ids[: len(before)] == before
        codes = [
            i
            for i, role in zip(ids, roles, strict=True)
            if role is TokenRole.SPOKEN and speech[0] <= i < speech[1]
        ]
        first = engine.parts.core.registry.known(session.session_id).sequence.replies.index(2)
        mine = [i for i in ids[first:] if speech[0] <= i < speech[1]]
        assert heard.speech_tokens == len(mine) == int((sent_ms / 2e3 + 256 / 22050) * 12.5) > 0 and len(
            codes
        ) > len(mine)
        if cut == "speech":
            assert cached >= len(before) and (reflection == "keep" or speech[0] <= ids[-1] < speech[1])
        else:
            assert heard.unheard_text_tokens == 0
        core.pool.check_integrity()
        assert core.table.columns.indices.size == 0  # no row, no slot: only the session's pages
        assert core.pool.num_pages - core.pool.num_available == -(-cached // core.pool.page_size)
        again = session.reply(Text("why?"), sampling=hot(3, 60)).reply()
        after, _, _ = history(engine, session)
        prompt = after[: len(after) - len(again.ids) + (again.finish_reason == "stop")]
        assert prompt[: len(ids)] == ids and again.usage.prompt_tokens == len(prompt)
    fresh = engine.generate(Ids(prompt), schedule=SCHEDULE, sampling=hot(3, 60))
    assert fresh.ids == again.ids


def test_a_reply_that_is_over_is_cut_while_it_plays(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        reply = session.reply(Text("hello"), sampling=hot(5, 120), realtime=False).reply()
        assert reply.audio.duration_s > 1
        session.ack_playback(500)
        heard = session.interrupt(cut="transcript")
        assert 6 <= heard.speech_tokens < reply.usage.speech_tokens
        assert reply.transcript.startswith(heard.transcript) and len(heard.transcript) < len(reply.transcript)
        assert session.interrupt(cut="transcript").speech_tokens <= heard.speech_tokens + 1


def test_a_reply_that_waits_leaves_no_trace(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE) as session:
        others = [
            engine.stream(Text("hi"), schedule=SCHEDULE, sampling=hot(9, 900), realtime=False)
            for _ in range(4)
        ]
        for other in others:
            next(other)
        stream = session.reply(Text("hello"), sampling=hot(5, 10))
        heard = session.interrupt()
        assert (heard.speech_tokens, heard.transcript) == (0, "")
        assert [event.kind for event in stream] == ["done"]
        for other in others:
            other.cancel()
            assert other.reply().finish_reason == "cancelled"


def test_what_reports_and_interruptions_are_refused(engine: Engine) -> None:
    with engine.open_session(schedule=SCHEDULE, realtime=False) as session:
        with pytest.raises(ValueError, match="has not replied"):
            session.interrupt()
        with pytest.raises(ValueError, match="nothing was played"):
            session.ack_playback(0)
        first = session.reply(Text("hello"), sampling=hot(5, 60))
        sent_ms = 1e3 * first.reply().audio.duration_s
        for played, message in (
            (-1, "0 or more"),
            (sent_ms + 5000, "were sent"),
            (float("nan"), "0 or more"),
        ):
            with pytest.raises(ValueError, match=message):
                session.ack_playback(played)
            with pytest.raises(ValueError, match=message):
                session.interrupt(played)
        with pytest.raises(ValueError, match="no reply 'x'"):
            session.ack_playback(1, reply_id="x")
        with pytest.raises(ValueError, match="cut is 'words'"):
            session.interrupt(cut="words")  # type: ignore[arg-type]
        session.reply(Text("more"), sampling=hot(6, 60)).reply()
        late = engine.parts.core.sessions.num_late_acks
        session.ack_playback(10, reply_id=first.reply_id)
        assert engine.parts.core.sessions.num_late_acks == late + 1
