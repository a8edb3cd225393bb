"""Feeds through an engine: threads and tasks that fill them, sessions, event logs and their replay, refusals."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import (
    Engine,
    Feed,
    FeedClosed,
    Ids,
    RequestFailed,
    Sampling,
    Schedule,
    Segment,
    Speech,
    Text,
    Transcript,
)
from innervoice.api.event_log import EventLog, write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

SAID = Segment("fed", 4, voice_as="transcript", feed="text", name="said")
SPOKEN = Schedule(cycle=(SAID, Segment("speech", 6)))
HEARD = Schedule(
    listen=(Segment("fed", 5, feed="user", name="heard"), Segment("reflection", 6, name="thought")),
    cycle=(Segment("transcript", 5), Segment("speech", 10)),
)
GREEDY = Sampling(temperature=0, max_new_tokens=40)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=512) as made:
        yield made


def filled(*items: Any) -> Feed:
    with Feed() as feed:
        for item in items:
            feed.put(item)
    return feed


def test_a_thread_that_is_slow_gives_what_all_at_once_gives(engine: Engine, tmp_path: Path) -> None:
    """A bounded feed of two ids; the reply's spoken text is what was put, and its log is made again."""
    words = ["so ", "here ", "is ", "the ", "text"]
    whole = engine.generate(Text("hi"), schedule=SPOKEN, sampling=GREEDY, feeds={"text": filled(*words)})
    feed, seen = Feed(2), []

    def write() -> None:
        with feed:
            for word in words:
                feed.put(word)
                seen.append(feed.num_unread)
                time.sleep(0.01)

    thread = threading.Thread(target=write)
    stream = engine.stream(Text("hi"), schedule=SPOKEN, sampling=GREEDY, feeds={"text": feed}, realtime=False)
    thread.start()
    log, lines, events = EventLog(), [stream.record], []
    for event in stream:
        events.append(event)
        lines += log.feed(event)
    thread.join()
    assert [i for e in events for i in getattr(e, "ids", ())] == whole.ids
    assert whole.transcript == "".join(words)
    fed = [e for e in whole.events if getattr(e, "feed", None)]
    assert {e.feed for e in fed} == {"text"} and {e.name for e in fed} == {"said"}  # type: ignore[union-attr]
    assert len(whole.audio.samples)

    write_events(tmp_path / "fed.jsonl", [line for line in lines if line])
    recording = RecordedReply.load(tmp_path / "fed.jsonl")
    tokenizer = engine.parts.requests.tokenizer
    assert b"".join(map(tokenizer.token_bytes, recording.feeds["text"])).decode() == "".join(words)
    assert replay(engine, recording).mismatch is None


def test_the_events_of_another_reply_are_text_and_codes(engine: Engine) -> None:
    """A helper's words and its sound, as they come, are what the reply says."""
    helper = list(engine.stream(Text("hello"), sampling=GREEDY, realtime=False))
    words = [event for event in helper if isinstance(event, Transcript)]
    sound = [event for event in helper if isinstance(event, Speech)]
    assert words and sound
    repeated = Schedule(
        prologue=(
            Segment("fed", feed="words", voice_as="transcript"),
            Segment("fed", feed="sound", voice_as="speech"),
        ),
        cycle=(Segment("transcript", 3), Segment("speech", 3)),
    )
    feeds = {"words": filled(*words), "sound": filled(*sound)}
    sampling = Sampling(temperature=0, max_new_tokens=100)
    reply = engine.generate(Text("say it again"), schedule=repeated, sampling=sampling, feeds=feeds)
    fed = [event for event in reply.events if getattr(event, "feed", None)]
    assert "".join(e.text for e in fed if isinstance(e, Transcript)) == "".join(e.text for e in words)
    assert [i for e in fed if isinstance(e, Speech) for i in e.ids] == [i for e in sound for i in e.ids]
    with pytest.raises(ValueError, match="outside speech ids"):
        engine.stream(
            Text("hi"),
            schedule=repeated,
            feeds={"words": filled(), "sound": filled(words[0])},
            sampling=sampling,
        )


def test_a_task_that_is_cancelled_ends_the_reply_with_the_reason(engine: Engine) -> None:
    async def main() -> str:
        feed = Feed(2, timeout_s=None)

        async def write() -> None:
            async with feed:
                while True:
                    await feed.aput([5, 6])
                    await asyncio.sleep(0.005)

        writer = asyncio.create_task(write())
        stream = engine.astream(Text("hi"), schedule=HEARD, sampling=GREEDY, feeds={"user": feed})
        async for event in stream:
            if getattr(event, "name", None) == "thought":
                writer.cancel()
                break
        with pytest.raises(RequestFailed) as error:
            await stream.areply()
        with pytest.raises(FeedClosed):
            await feed.aput(1)
        return str(error.value)

    assert "the feed 'user' of this reply failed: CancelledError" in asyncio.run(main())


def test_a_session_listens_to_sound_and_answers(engine: Engine) -> None:
    """Samples become speech ids; the next turn goes on behind them; a fork goes on with a feed of its own."""
    rate = 16000
    pcm = (0.1 * np.sin(np.arange(rate) / 20)).astype(np.float32)
    feed = Feed()
    with engine.open_session(sampling=Sampling(temperature=0, max_new_tokens=60), realtime=False) as session:
        stream = session.reply(Text("listen"), schedule=HEARD, feeds={"user": feed})
        feed.put((pcm, rate))
        while feed.num_unread:
            time.sleep(0.001)
        with session.fork() as twin:
            feed.close()
            reply = stream.reply()
            rest = twin.reply(feeds={"user": filled()}).reply()
        speech = engine.parts.requests.vocabulary.speech
        assert speech is not None
        heard = [i for e in reply.events if getattr(e, "name", None) == "heard" for i in e.ids]  # type: ignore[union-attr]
        assert len(heard) >= 10 and all(speech[0] <= i < speech[1] for i in heard)
        assert reply.ids[-len(rest.ids) :] == rest.ids
        assert session.reply(Text("and now?"), schedule="interleaved").reply().ids


def test_refusals(engine: Engine) -> None:
    def refused(message: str, **request: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            engine.stream(Text("hi"), **{"schedule": SPOKEN, "sampling": GREEDY, **request})
        assert "\n" not in str(error.value)

    refused("takes from the feed 'text', which the request lacks: give feeds={'text': Feed()}")
    refused("feeds holds 'else'", feeds={"text": Feed(), "else": Feed()})
    refused("the feed 'text' was given id 999999, outside the vocabulary", feeds={"text": filled(999999)})
    refused("the feed 'text'", feeds={"text": filled({"a": 1})})
    refused("the feed 'text' has a lone surrogate", feeds={"text": filled("so \ud800")})
    refused("give (samples, rate)", feeds={"text": filled(np.zeros(800, np.float32))})
    spoken = Schedule(prologue=(Segment("fed", 2, voice_as="speech", feed="text"),), cycle=SPOKEN.cycle[1:])
    refused("outside speech ids", schedule=spoken, feeds={"text": filled(1)})
    feed = filled("so ")
    engine.generate(Text("hi"), schedule=SPOKEN, sampling=GREEDY, feeds={"text": feed})
    refused("belongs to another reply already", feeds={"text": feed})
    with pytest.raises(FeedClosed, match="is over"):
        feed.put("more")
    full = Feed(1)
    full.put(Ids([1]))
    with pytest.raises(TimeoutError, match=r"has had no room for 0\.01 s"):
        full.put(1, timeout_s=0.01)
    for wait in (float("nan"), "1 s", -1):
        with pytest.raises(ValueError, match="timeout_s is"):
            full.put(1, timeout_s=wait)
    for wrong in ({"maxsize": 0}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="must be"):
            Feed(**wrong)
