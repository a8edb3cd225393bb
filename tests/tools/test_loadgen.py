"""Callers and their players: arrivals, starvation as metrics.py has it, limits, failures, manifests, the command line."""

from __future__ import annotations

import heapq
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice import AudioChunk, Done, Ids, OutOfCapacity, Sampling, Schedule, Text, Transcript, Usage
from innervoice.codec.audio import read_audio
from innervoice.runtime.event_queue import deliver
from innervoice.runtime.stream import Stream
from innervoice.telemetry.metrics import RequestTimings, find_underruns, summarize
from innervoice.tools.cli.main import main
from innervoice.tools.loadgen import (
    Load,
    Player,
    Question,
    bundled_questions,
    converse,
    read_manifest,
    run_load,
)

RATE = 1000
QUESTIONS = [Question("a", Text("a")), Question("b", Text("b"), {"sampling": Sampling(seed=77)})]


class Clock:
    """An event loop's clock that jumps from one alarm to the next."""

    def __init__(self) -> None:
        self.now, self._alarms, self._number = 0.0, [], 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, run: Callable[[], None]) -> Alarm:
        self._number += 1
        alarm = Alarm(run)
        heapq.heappush(self._alarms, (when, self._number, alarm))
        return alarm

    def advance(self, until: float) -> None:
        while self._alarms and self._alarms[0][0] < until:
            self.now, _, alarm = heapq.heappop(self._alarms)
            if alarm.run is not None:
                alarm.run()
        self.now = until


class Alarm:
    def __init__(self, run: Callable[[], None]) -> None:
        self.run: Callable[[], None] | None = run

    def cancel(self) -> None:
        self.run = None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=12))
def test_a_player_starves_as_the_figures_say(made: list[tuple[int, int]]) -> None:
    clock = Clock()
    player, audio = (
        Player(clock),
        [(t / 1024, n) for t, n in sorted(made)],
    )  # binary fractions: sums are exact
    for t, count in audio:
        clock.advance(t)
        player.feed(count / 1024)
    found = find_underruns(audio, 1024)
    assert (player.num_starved, player.starved_s) == (found.num_stalls, found.max_s)
    assert not player._played.is_set()
    player.finish()
    clock.advance(math.inf)
    assert player._played.is_set() and player.num_starved == found.num_stalls


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_arrivals_are_poisson(seed: int, rate: float) -> None:
    load = Load(400, rate, seed=seed)
    times = load.arrivals()
    assert times == load.arrivals() == sorted(times) and len(times) == 400
    gaps = np.diff([0.0, *times]) * rate
    assert abs(gaps.mean() - 1) < 5 / math.sqrt(400) and abs(gaps.std() - 1) < 0.6
    assert Load(3).arrivals() == [0.0] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"num_prompts": 1, "num_warmups": -1}, "num_warmups is -1"),
        ({"num_prompts": 1, "request_rate": 0}, "rate is 0"),
        ({"num_prompts": 1, "request_rate": math.nan}, "rate is nan"),
        ({"num_prompts": 1, "max_concurrency": 0}, "max_concurrency is 0"),
    ],
)
def test_a_load_of_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Load(**values)


class Scripted:
    """An engine whose replies are two chunks of 20 ms, the second after gap_s; it counts who is there."""

    def __init__(self, gap_s: float = 0.0, refuse: frozenset[str] = frozenset()) -> None:
        self.gap_s, self.refuse = gap_s, refuse
        self.seeds: list[int] = []
        self.pushed: list[tuple[float, np.ndarray]] = []
        self.now = self.most = self.sessions = 0
        self._lock = threading.Lock()

    def stream(self, prompt: Text, sampling: Sampling, **_: object) -> Stream:
        if prompt.text in self.refuse:
            raise OutOfCapacity("8 replies run and 2 wait")
        with self._lock:
            self.seeds.append(sampling.seed or 0)
            self.now += 1
            self.most = max(self.most, self.now)
        made = Stream("r", RATE, lambda: None)
        made.make_record = lambda: {"kind": "request"}
        threading.Thread(target=self._reply, args=(made,), daemon=True).start()
        return made

    def _reply(self, made: Stream) -> None:
        common = {"reply_id": "r", "t": 0.0}
        pcm = np.ones(20, np.float32)
        deliver([(made.queue, [Transcript(**common, index=0, segment=0, ids=[1, 2], text="hi")])])
        deliver([(made.queue, [AudioChunk(**common, index=1, pcm=pcm, rate=RATE, start=0)])])
        time.sleep(self.gap_s)
        with self._lock:
            self.now -= 1
        rest = AudioChunk(**common, index=2, pcm=pcm, rate=RATE, start=20)
        deliver(
            [
                (
                    made.queue,
                    [rest, Done(**common, index=3, finish_reason="stop", usage=Usage(reflection_caps=(3,)))],
                )
            ]
        )

    def open_session(self) -> Scripted:
        self.sessions += 1
        return self

    def reply(self, prompt: Text | None, **request: Any) -> Stream:
        return self.stream(Text("spoken") if prompt is None else prompt, **request)

    def push_audio(self, pcm: np.ndarray, rate: int) -> None:
        assert rate == 8000
        self.pushed.append((time.monotonic(), pcm))

    def commit_audio(self) -> None:
        assert self.pushed, "nothing was pushed"

    def close(self) -> None:
        self.sessions -= 1


def test_a_load_keeps_its_limits_and_its_warm_ups_apart() -> None:
    engine = Scripted(gap_s=0.01)
    run = run_load(engine, QUESTIONS, Load(8, max_concurrency=3, num_warmups=2, seed=100))
    assert len(run.calls) == 8 and len(engine.seeds) == 10 and engine.most <= 3 and engine.now == 0
    assert sorted(engine.seeds[2:]) == [77] * 4 + [100, 102, 104, 106]  # a question's own seed counts
    assert [one.timings.submitted_s for one in run.calls] == sorted(
        one.timings.submitted_s for one in run.calls
    )
    assert {one.question for one in run.calls} == {"a", "b"} and {one.caller for one in run.calls} == set(
        range(8)
    )
    for one in run.calls:
        assert (
            one.timings.finish_reason == "stop"
            and one.timings.error is None
            and one.timings.leading_silence_s == 0.0
        )
        assert [kind for _, kind in one.timings.tokens] == ["transcript"] * 2 and [
            n for _, n in one.timings.audio
        ] == [20, 20]
        assert [line["kind"] for line in one.lines] == ["request", "audio", "audio", "transcript", "done"]
        assert RequestTimings.from_dict(json.loads(json.dumps(one.to_dict()))) == one.timings


def test_a_gap_is_counted_and_a_refusal_is_a_failure() -> None:
    run = run_load(Scripted(gap_s=0.2, refuse=frozenset("b")), QUESTIONS, Load(4))
    assert run.num_starved == 2 and run.metrics.num_stalls == 2 and run.metrics.c100 == 0.0
    failed = [one for one in run.calls if one.timings.error]
    assert len(failed) == run.metrics.num_failed == 2 and failed[0].num_starved == 0
    assert failed[0].timings.error == "OutOfCapacity: 8 replies run and 2 wait"
    heard = next(one for one in run.calls if not one.timings.error)
    assert heard.starved_s == pytest.approx(find_underruns(heard.timings.audio, RATE).max_s, abs=0.05)


def test_dialogues_ask_again_until_the_time_is_over() -> None:
    engine = Scripted()
    run = converse(engine, QUESTIONS, num_sessions=3, seconds=0.5, seed=1, pause_s=0.01)
    turns = [sum(one.caller == number for one in run.calls) for number in range(3)]
    assert min(turns) >= 2 and engine.sessions == 0 and engine.most <= 3
    first = [one.question for one in run.calls if one.caller == 0]
    assert first[:2] == ["a", "b"] and len(
        set(engine.seeds) - {77}
    ) == engine.seeds.__len__() - engine.seeds.count(77)


def test_a_recording_is_spoken_in_real_time() -> None:
    engine, sound = Scripted(), np.linspace(-1, 1, 9000, dtype=np.float32)
    spoken = [Question("spoken", (sound, 8000))]
    run = converse(engine, spoken, num_sessions=1, seconds=1.0, pause_s=0.01, speaks=True)
    assert [one.question for one in run.calls] == ["spoken"]
    assert np.array_equal(np.concatenate([pcm for _, pcm in engine.pushed]), sound)
    assert [len(pcm) for _, pcm in engine.pushed] == [800] * 11 + [200]
    assert engine.pushed[-1][0] - engine.pushed[0][0] >= 1.0
    assert run.calls[0].timings.submitted_s >= engine.pushed[-1][0]


def test_a_manifest_is_read(tmp_path: Path, assets_dir: Path) -> None:
    sound = str(assets_dir / "question.wav")
    lines = [
        {
            "text": "How are you?",
            "schedule": "stitch_s",
            "sampling": {"seed": 3, "stop_token_ids": [5]},
            "name": "first",
        },
        {"ids": [1, 2], "schedule": Schedule.preset("interleaved").to_dict(), "timeout_s": 5},
        {"audio": sound, "system": "Be brief."},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second, third = read_manifest(path)
    assert first.prompt == Text("How are you?") and first.name == "first"
    assert first.request({"schedule": "interleaved", "system": "x"}, 9) == {
        "schedule": "stitch_s",
        "system": "x",
        "sampling": Sampling(seed=3, stop_token_ids=(5,)),
    }
    assert second.prompt == Ids([1, 2]) and second.options["schedule"] == Schedule.preset("interleaved")
    assert second.request({}, 9)["sampling"] == Sampling(seed=9) and second.name == "questions.jsonl:3"
    samples, rate = third.prompt
    assert rate == 16000 and np.array_equal(samples, read_audio(sound)[0])
    assert [question.name for question in bundled_questions()] == ["dog.flac", "birthday.flac", "miles.flac"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        ("[]", "line 1: a question is a JSON object"),
        ("{}", "line 1: a question has one of audio, text, ids, and this has none"),
        ('{"text": "a", "ids": [1]}', "this has text, ids"),
        ('{"text": "a"}\n{"text": "a", "speed": 2}', "line 2: unknown key 'speed'"),
        ('{"text": "a", "sampling": {"heat": 2}}', "line 1: .*heat"),
        ('{"audio": "none.wav"}', "none.wav"),
        ("{", "line 1: "),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_manifest(path)
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_manifest(tmp_path / "none")


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load on the tiny checkpoint, its figures again from what was saved, and one of its replies made again."""
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text('{"text": "hello"}\n{"ids": [65, 66, 67]}\n')
    words = [
        "--manifest",
        "questions.jsonl",
        "--num-prompts",
        "3",
        "--num-warmups",
        "0",
        "--max-new-tokens",
        "30",
    ]
    words += ["--schedule", "stitch_s", "--device", "cpu", "--dtype", "float32", "--events", "logs"]
    assert main(["bench", "stream", *words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    logs = [
        RequestTimings.from_dict(json.loads(line)) for line in Path("requests.jsonl").read_text().splitlines()
    ]
    assert figures["num_requests"] == 3 and figures["num_failed"] == 0 and figures["c100"] is not None
    assert figures["audio_ttfp_ms"]["median"] == summarize(logs).audio_ttfp_ms.median
    assert main(["bench", "metrics", "requests.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "first_chunk_s" in shown and "speech.itl_ms" in shown and "nan" not in shown
    assert main(["bench", "metrics", "nope.jsonl"]) == 2
    assert "no log nope.jsonl: name a file that innervoice bench stream wrote" in capsys.readouterr().err
    assert len(list(Path("logs").iterdir())) == 3
    assert main(["replay", "logs/00001.jsonl"]) == 0
    assert capsys.readouterr().out.startswith("the same: ")
