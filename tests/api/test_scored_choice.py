"""Choices by total log-probability through an engine: against `Engine.logprobs`, beside other replies, in a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from innervoice import Engine, Ids, Reflection, Sampling, Schedule, Segment, TokenEvent
from innervoice.api.event_log import EventLog, write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

PATHS = ((5, 6, 7), (5, 9), (8,), (12, 13, 14, 15), (12, 13, 20))
SAMPLING = Sampling(temperature=0, max_new_tokens=40, logprobs=True)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=512, max_sessions=2) as made:
        yield made


def scored(kind: str = "reflection", weight: float = 1.0) -> Schedule:
    pick = Segment("choice", choices=PATHS, name="way", voice_as=kind, pick="scored")
    return Schedule(
        prologue=(Segment("reflection", 4), pick, pick_again(pick)),
        cycle=(Segment("transcript", 3), Segment("speech", 4)),
        reflection_weight=weight,
    )


def pick_again(segment: Segment) -> Segment:
    return Segment("choice", choices=segment.choices, voice_as="transcript", pick="scored", name="again")


@pytest.mark.parametrize("weight", [1.0, 1.3])
def test_the_likeliest_text_is_chosen_and_its_log_probabilities_are_those_of_the_model(
    engine: Engine, weight: float, tmp_path: Path
) -> None:
    prompts = [[1, 2, 3, 30 + n] * 9 for n in range(4)]
    streams = [
        engine.stream(Ids(ids), schedule=scored(weight=weight), sampling=SAMPLING, realtime=False)
        for ids in prompts
    ]
    records = [stream.record for stream in streams]
    replies = [stream.reply() for stream in streams]
    for prompt, reply in zip(prompts, replies, strict=True):
        before: list[int] = list(prompt)
        for name in ("way", "again"):
            tokens = [e for e in reply.events if isinstance(e, TokenEvent)]
            place = next(i for i, e in enumerate(tokens) if e.name == name)
            part = [e for e in tokens if e.name == name]
            before = [*prompt, *(i for e in tokens[:place] for i in e.ids)]
            if weight == 1.0:
                found = engine.logprobs(Ids(before), [Ids(path) for path in PATHS]).continuations
                best = max(found, key=lambda one: one.total)
                assert tuple(i for e in part for i in e.ids) == best.ids
                assert [e.logprobs[0] for e in part if e.logprobs] == pytest.approx(best.logprobs, abs=1e-4)
                assert (part[-1].choice == str(list(best.ids)) and part[0].choice is None) or len(part) == 1
            assert isinstance(part[0], Reflection) is (name == "way")
    log = EventLog()
    lines = [line for event in replies[0].events for line in log.feed(event)] + log.finish()
    write_events(tmp_path / "scored.jsonl", [line for line in (records[0], *lines) if line])
    assert replay(engine, RecordedReply.load(tmp_path / "scored.jsonl")).mismatch is None


def test_texts_that_do_not_fit_the_model_are_not_compared(engine: Engine) -> None:
    pick = Segment("choice", choices=((5,), (8, *[9] * 600)), pick="scored")
    schedule = Schedule(prologue=(pick,), cycle=(Segment("transcript", 3), Segment("speech", 4)))
    reply = engine.generate(Ids([1, 2, 3]), schedule=schedule, sampling=SAMPLING, realtime=False)
    assert (reply.finish_reason, reply.ids) == ("length", [])
    engine.parts.core.check_integrity()


def test_a_cancelled_reply_leaves_no_page_and_sessions_go_on(engine: Engine) -> None:
    with engine.open_session(sampling=SAMPLING, realtime=False) as session:
        first = session.reply(Ids([1, 2, 3] * 20), schedule=scored()).reply()
        again = session.reply(Ids([4, 5]), schedule=scored()).reply()
        assert first.ids and again.ids
        stream = session.reply(Ids([4, 5]), schedule=scored())
        stream.cancel()
        stream.reply()
    engine.parts.core.check_integrity()
