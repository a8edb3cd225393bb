"""A reply made again from its event log: the same tokens and samples, or the first place where it differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import AudioChunk, Engine, Ids, Sampling, Schedule, Session, Text
from innervoice.api.event_log import EventLog, Line, write_events
from innervoice.runtime.event_queue import deliver
from innervoice.runtime.stream import Stream
from innervoice.tools.cli.main import main
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay
from innervoice.types import Event, Heard, crc32

SCHEDULE = Schedule.preset("stitch_s", transcript_budget=3, speech_budget=8, reflection_budget=6)
Made = tuple[list[Line], list[Event]]
SAMPLING = Sampling(temperature=1.2, top_k=0, top_p=1.0, seed=5, max_new_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", dtype="float32", streaming="steady") as made:
        yield made


def record(engine: Engine, until: Callable[[Event], bool] = lambda event: False, **request: Any) -> Made:
    """The event log of a reply and its events; cancelled once `until` holds."""
    log, events = EventLog(), list[Event]()
    request = {"schedule": SCHEDULE, "sampling": SAMPLING, "realtime": False} | request
    with engine.stream(Text("hello"), **request) as stream:
        lines = [stream.record or {}]
        for event in stream:
            events.append(event)
            lines += log.feed(event)
            if until(event):
                stream.cancel()
    return lines, events


@pytest.fixture(scope="module")
def whole(engine: Engine) -> Made:
    """A reply that ran to its length."""
    return record(engine)


def recording(folder: Path, lines: list[Line]) -> RecordedReply:
    write_events(folder / "events.jsonl", lines)
    return RecordedReply.load(folder / "events.jsonl")


class Prerecorded:
    """An engine that gives the same events, whatever it is asked."""

    def __init__(self, model_id: str, events: list[Event]) -> None:
        self.model_id, self._events = model_id, events

    def stream(self, *_: object, **__: object) -> Stream:
        made = Stream("r", 22050, lambda: None)
        deliver([(made.queue, self._events)])
        return made


def test_a_reply_is_made_again(engine: Engine, whole: Made, tmp_path: Path) -> None:
    kept = recording(tmp_path, whole[0])
    assert whole[0][0]["kind"] == "request" and kept.prompt_ids and kept.sampling == SAMPLING
    assert len(kept.chunks) >= 2 and len(kept.tokens) == 40 and kept.reason == "length"
    made = replay(engine, kept)
    assert made.mismatch is None and made.num_samples == kept.num_samples > 0


def test_caps_and_rate_are_made_again(engine: Engine, whole: Made, tmp_path: Path) -> None:
    """Caps of the usage, which the scheduler granted while the reply ran, go before those of the request."""
    lines, _ = record(engine, reflection_caps=[2, 0, 4], output_rate=16000)
    kept = recording(tmp_path, lines)
    assert kept.reflection_caps == (2, 0) and kept.output_rate == 16000 == kept.chunks[0].rate
    assert kept.tokens != recording(tmp_path, whole[0]).tokens
    lines[0]["reflection_caps"], lines[-1]["usage"]["reflection_caps"] = [], [2, 0]
    assert recording(tmp_path, lines) == kept
    assert replay(engine, kept).mismatch is None


def test_a_cancelled_reply_is_made_again_as_far_as_it_came(engine: Engine, tmp_path: Path) -> None:
    lines, _ = record(engine, until=lambda event: isinstance(event, AudioChunk))
    kept = recording(tmp_path, lines)
    assert kept.reason == "cancelled" and 0 < len(kept.tokens) < 40 and len(kept.chunks) >= 1
    assert replay(engine, kept).mismatch is None


def test_a_log_that_breaks_off_is_made_again_as_far_as_it_goes(whole: Made, tmp_path: Path) -> None:
    lines, events = whole
    kept = recording(tmp_path, lines[: len(lines) // 2])
    assert kept.reason is None and 0 < len(kept.tokens) < 40
    assert replay(Prerecorded(kept.model, events), kept).mismatch is None


def test_the_first_difference_is_told(whole: Made, tmp_path: Path) -> None:
    kept = recording(tmp_path, whole[0])
    tokens, chunks = list(kept.tokens), list(kept.chunks)

    def told(**changes: Any) -> str:
        return replay(Prerecorded(kept.model, whole[1]), replace(kept, **changes)).mismatch or ""

    assert told() == ""
    other = replace(tokens[7], id=tokens[7].id + 1)
    assert told(tokens=(*tokens[:7], other, *tokens[8:])).startswith(f"token 7 is {tokens[7].id} (")
    assert f"recorded is {other.id} ({other.kind}, segment" in told(tokens=(*tokens[:7], other, *tokens[8:]))
    assert told(tokens=(*tokens, tokens[0])).startswith("token 40 is missing")
    assert told(tokens=tuple(tokens[:-1])).startswith("1 more tokens than the 39")
    wrong = replace(chunks[1], crc32=chunks[1].crc32 ^ 1)
    assert told(chunks=(chunks[0], wrong, *chunks[2:])).startswith(
        f"chunk 1 of the sound (samples {chunks[1].start} to "
    )
    assert "more samples than" in told(chunks=tuple(chunks[:-1]))
    assert "were made" in told(chunks=(*chunks, replace(chunks[0], start=kept.num_samples)))
    assert told(reason="stop") == "the reply ended with length, recorded is stop"


def test_a_recording_of_another_model_is_refused(engine: Engine, whole: Made, tmp_path: Path) -> None:
    kept = recording(tmp_path, whole[0])
    with pytest.raises(ValueError, match="the log is of the model feed"):
        replay(engine, replace(kept, model="feed"))


def turn(
    session: Session, prompt: str | None, look: Callable[[Event], object] = lambda event: None, **request: Any
) -> list[Line]:
    """The event log of a turn, whose events somebody looks at as they come."""
    log = EventLog()
    request = {"schedule": SCHEDULE, "sampling": SAMPLING} | request
    stream = session.reply(None if prompt is None else Text(prompt), **request)
    lines = [stream.record or {}]
    for event in stream:
        lines += log.feed(event)
        look(event)
    return lines


def is_remade(engine: Engine, folder: Path, lines: list[Line]) -> RecordedReply:
    kept = recording(folder, json.loads(json.dumps(lines)))
    made = replay(engine, kept)
    assert (
        made.mismatch is None
        and made.num_tokens >= len(kept.tokens) > 0
        and made.num_samples >= kept.num_samples
    )
    return kept


@pytest.mark.parametrize("weight", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_turns_are_made_again_with_their_history(engine: Engine, tmp_path: Path, weight: float) -> None:
    """Listeners in real time, so that the caps that were granted count; what was thought before weighs on, where it is to."""
    schedule = replace(SCHEDULE, reflection_weight=weight)
    with engine.open_session(schedule=schedule) as session:
        session.inject("think twice")
        logs = [
            turn(session, text, schedule=schedule, realtime=True)
            for text in ("hello", "tell me more", "why is that so?")
        ]
    kept = [is_remade(engine, tmp_path, lines) for lines in logs]
    assert [len(one.history.ids) > 0 for one in kept if one.history] == [False, True, True]
    assert kept[0].schedule.prologue and not kept[1].schedule.prologue and kept[2].num_samples > 0
    last = kept[2].history
    assert last is not None and len(last.weights) == 3 and set(last.replies) == {0, 1, 2}
    other = replace(last, ids=[10] * len(last.ids), weights=[0.0] * 3)
    assert replay(engine, replace(kept[2], history=other)).mismatch is not None, (
        "the history counts for nothing"
    )


@pytest.mark.parametrize(("cut", "reflection"), [
    ("speech", "keep"), ("transcript", "drop"),
    pytest.param("speech", "drop", marks=pytest.mark.slow), pytest.param("transcript", "keep", marks=pytest.mark.slow),
])  # fmt: skip
def test_turns_around_an_interruption_are_made_again(
    engine: Engine, tmp_path: Path, cut: Any, reflection: Any
) -> None:
    long, heard = replace(SAMPLING, max_new_tokens=400), list[Heard]()
    with engine.open_session() as session:

        def interrupt(event: Event) -> None:
            if isinstance(event, AudioChunk) and event.start > 0 and not heard:
                heard.append(session.interrupt(600, cut=cut, reflection=reflection))

        turn(session, "hello", realtime=True)
        broken = turn(session, "go on", interrupt, sampling=long, realtime=True)
        after = turn(session, "what was that?", realtime=True)
    assert heard[0].speech_tokens > 0
    assert is_remade(engine, tmp_path, broken).reason == "interrupted"
    kept = is_remade(engine, tmp_path, after)
    assert kept.history is not None and len(kept.history.ids) == heard[0].history_tokens


@pytest.mark.parametrize(
    "num_read", [12, *(pytest.param(num, marks=pytest.mark.slow) for num in (3, 4, 5, 30))]
)
def test_the_rest_of_a_reply_that_was_cut_out_is_made_again(
    engine: Engine, tmp_path: Path, num_read: int
) -> None:
    long = replace(SAMPLING, max_new_tokens=60)
    with engine.open_session() as session:
        first = session.reply(Text("hello"), schedule=SCHEDULE, sampling=long, realtime=True).bounded(
            num_read
        )
        next(first)
        with session.fork() as twin:
            lines = turn(twin, None, realtime=True)
        first.cancel()
    kept = is_remade(engine, tmp_path, lines)
    assert kept.history is not None and kept.history.paused is not None and kept.prompt_ids == ()
    assert kept.history.paused.num_tokens + len(kept.tokens) == 60


def test_a_turn_without_its_history_is_refused(whole: Made, tmp_path: Path) -> None:
    lines, _ = whole
    with pytest.raises(ValueError, match="a turn of a session"):
        recording(tmp_path, [lines[0] | {"is_turn": True}, *lines[1:]])


def test_the_checksum_is_of_every_bit() -> None:
    pcm = np.linspace(-1, 1, 100, dtype=np.float32)
    changed = pcm.copy()
    changed[50] = np.nextafter(changed[50], np.float32(2))
    assert crc32(pcm) == crc32(pcm.copy()[::1]) == crc32(pcm.astype(">f4")) != crc32(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not begin with a request"),
        ('{"kind": "done"}\n', "does not begin with a request"),
        ("no json\n", "line 1 is not JSON"),
        ("[]\n", "an object with a kind"),
        ('{"kind": "request", "is_turn": false}\n', "no event log of this version"),
    ],
)
def test_what_is_no_event_log_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        RecordedReply.load(path)


def test_a_file_that_is_no_text_or_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(b"RIFF\xff\xff")
    with pytest.raises(
        ValueError, match=r"question\.wav is no event log, .*: name the file that --events wrote"
    ):
        RecordedReply.load(path)
    with pytest.raises(FileNotFoundError, match="no event log"):
        RecordedReply.load(tmp_path / "none")


def test_from_the_command_line(
    engine: Engine,
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--model",
        str(tiny_dir),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--streaming",
        "steady",
        "--seed",
        "7",
    ]
    words += ["--schedule", "stitch_s", "--max-new-tokens", "24", "--events", "events.jsonl"]
    assert main(["generate", "--text", "hello", *words]) == 0
    capsys.readouterr()
    assert main(["replay", "events.jsonl", "--out", "again.wav"]) == 0
    assert capsys.readouterr().out.startswith("the same: ")
    assert Path("again.wav").read_bytes() == Path("reply.wav").read_bytes()
    lines = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
    assert lines[0]["engine"]["model"] == str(tiny_dir) and Ids(lines[0]["prompt_ids"]).ids
    with engine.open_session() as session:
        turns = [turn(session, text) for text in ("hello", "tell me more")]
    write_events("turn.jsonl", turns[1])
    assert (
        main(["replay", "turn.jsonl", "--model", str(tiny_dir), "--device", "cpu", "--dtype", "float32"]) == 0
    )
    assert capsys.readouterr().out.startswith("the same: 40 tokens, ")
    lines[0]["sampling"]["seed"] = 8
    write_events("other.jsonl", lines)
    assert main(["replay", "other.jsonl"]) == 2
    assert "other.jsonl was not reproduced: token " in capsys.readouterr().err
    lines[0]["engine"]["turbo"] = True
    write_events("other.jsonl", lines)
    assert main(["replay", "other.jsonl"]) == 2
    assert "options of another version: unknown engine option 'turbo'" in capsys.readouterr().err
