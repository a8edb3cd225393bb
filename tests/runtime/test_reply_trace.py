"""One picture of segments, sound, playback, slack and decisions: what a trace says of replies under a virtual
clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from benches import bench
from scripted_core import World, program

from innervoice import AudioChunk, Done, Engine, Sampling, Schedule, Text
from innervoice.api.request_builder import RequestOptions
from innervoice.runtime.reply_trace import LINES
from innervoice.schedule import Segment
from innervoice.telemetry.metrics import RequestTimings
from innervoice.telemetry.trace import Tracer
from innervoice.types import Event, TokenEvent, Usage

TALKS = program(Schedule((Segment("reflection", 12), Segment("transcript", 3), Segment("speech", 26))))
SCHEDULE = Schedule.preset("stitch_s", transcript_budget=3, speech_budget=13, reflection_budget=8)


@dataclass
class Picture:
    """One reply as a viewer shows it; times in seconds since the trace began.

    spans: line, name, begin, end, args.
    """

    spans: list[tuple[str, str, float, float, dict[str, Any]]] = field(default_factory=list)
    moments: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    counts: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)

    def line(self, name: str) -> list[tuple[str, float, float, dict[str, Any]]]:
        return sorted((span[1:] for span in self.spans if span[0] == name), key=lambda span: span[1:3])

    def moment(self, name: str) -> list[dict[str, Any]]:
        return [args for _, found, args in self.moments if found == name]


def pictures(tracer: Tracer, folder: Path) -> dict[str, Picture]:
    """What is below each reply's heading, as Perfetto reads it."""
    tracer.save(folder / "trace.json")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    titles = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    names = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events
        if e["name"] == "thread_name" and e["pid"] in titles
    }
    assert len(names) == len(titles) * len(LINES)
    made = {title.split()[1].rstrip(","): Picture() for title in titles.values()}
    opened: dict[tuple[int, int], list[dict[str, Any]]] = {}
    last = max(e["ts"] for e in events) / 1e6
    own = [e for e in events if e["pid"] in titles and e["ph"] != "M"]
    for e in sorted(own, key=lambda e: float(e["ts"])):
        picture, place, t = made[titles[e["pid"]].split()[1].rstrip(",")], (e["pid"], e["tid"]), e["ts"] / 1e6
        if e["ph"] == "B":
            opened.setdefault(place, []).append(e)
        elif e["ph"] == "E":
            begun = opened[place].pop()
            picture.spans.append(
                (names[place], begun["name"], begun["ts"] / 1e6, t, begun["args"] | e["args"])
            )
        elif e["ph"] == "X":
            picture.spans.append((names[place], e["name"], t, t + e["dur"] / 1e6, e["args"]))
        elif e["ph"] == "i":
            picture.moments.append((t, e["name"], e["args"]))
        elif e["ph"] == "C":
            picture.counts.setdefault(e["name"], []).append((t, e["args"]))
    for (pid, tid), rest in opened.items():
        for e in rest:
            made[titles[pid].split()[1].rstrip(",")].spans.append(
                (names[pid, tid], e["name"], e["ts"] / 1e6, last, e["args"])
            )
    return made


@dataclass(frozen=True)
class Spoken:
    """A reply under a virtual clock that began at 51 s, 1 s after its trace: events, codec calls, trace,
    figures.
    """

    events: list[Event]
    num_calls: int
    picture: Picture
    timeline: dict[str, Any]

    @property
    def usage(self) -> Usage:
        """The counts and times that the reply ended with."""
        last = self.events[-1]
        assert isinstance(last, Done)
        return last.usage


@pytest.fixture(scope="module")
def spoken(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    """The tiny model, whose steps take 30 ms of the virtual clock and its codec calls 0.6 s."""
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=3, max_new_tokens=120, ignore_eos=True)
    clock = [50.0]
    with (
        Engine.from_pretrained(tiny_dir, device="cpu", dtype="float32", streaming="steady") as engine,
        pytest.MonkeyPatch.context() as patch,
    ):
        core, tracer = engine.parts.core, engine._tracer
        patch.setattr(tracer, "_clock_ns", lambda: round(1e9 * clock[0]))
        tracer.start()
        clock[0] += 1.0
        options = RequestOptions(schedule=SCHEDULE, sampling=sampling)
        core.submit(engine.parts.requests.request(Text("hello"), options, clock[0]), clock[0])
        events: list[Event] = []
        num_calls = 0
        while core.has_work:
            work = core.step_tokens(clock[0])
            clock[0] += 0.03 if work.rows or work.prompt_tokens else 0.001
            events += core.drain(clock[0])
            calls = core.step_speech(clock[0]).chunks  # of one reply: the last one may give two pieces
            clock[0] += 0.6 * calls
            num_calls += calls
            events += core.drain(clock[0])
        tracer.stop()
        (picture,) = pictures(tracer, tmp_path_factory.mktemp("trace")).values()
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    timings = RequestTimings(
        51.0,
        chunks[0].rate,
        tuple((51.0 + c.t, len(c.pcm)) for c in chunks),
        tuple((51.0 + t.t, t.kind) for t in tokens for _ in t.ids),
    )
    return Spoken(events, num_calls, picture, bench("stream_records").timeline(timings))


def test_the_line_of_segments_agrees_with_the_events(spoken: Spoken) -> None:
    tokens = [event for event in spoken.events if isinstance(event, TokenEvent)]
    segments = [
        (kind, list(some)) for (kind, _), some in groupby(tokens, lambda token: (token.kind, token.segment))
    ]
    drawn = [(name, args["tokens"], end) for name, _, end, args in spoken.picture.line("segments")]
    assert [(kind, len(some)) for kind, some in segments] == [(name, num) for name, num, _ in drawn]
    assert [end for *_, end in drawn] == pytest.approx([1.0 + some[-1].t for _, some in segments])


def test_the_line_of_sound_agrees_with_the_timeline(spoken: Spoken) -> None:
    line = spoken.picture.line("sound")
    assert [end - 1.0 for _, _, end, _ in line] == pytest.approx(
        [t for t, _ in spoken.timeline["audio"]], abs=1e-4
    )
    assert [args["sound_s"] for *_, args in line] == pytest.approx([s for _, s in spoken.timeline["audio"]])
    assert all(end - begin == pytest.approx(0.6) for _, begin, end, _ in line)


def test_the_line_of_playback_shows_every_stall(spoken: Spoken) -> None:
    line = spoken.picture.line("playback")
    dry_s, silences = spoken.timeline["audio"][0][0], []
    for t, sound_s in spoken.timeline["audio"]:
        silences += [(dry_s, t)] if t > dry_s + 1e-4 else []
        dry_s = max(dry_s, t) + sound_s
    stalls = [(begin - 1.0, end - 1.0) for name, begin, end, _ in line if name == "stall"]
    assert len(stalls) >= 1 and sum(stalls, ()) == pytest.approx(sum(silences, ()), abs=1e-4)
    plays = [span for span in line if span[0] == "plays"]
    assert len(plays) == len(stalls) + 1 and plays[-1][2] == pytest.approx(1.0 + dry_s, abs=1e-4)
    assert all(next_[1] == pytest.approx(one[2]) for one, next_ in pairwise(line))


def test_reflections_show_their_caps(spoken: Spoken) -> None:
    caps = [args for name, *_, args in spoken.picture.line("segments") if name == "reflection"]
    assert len(caps) >= 2
    assert all(args["used"] <= args["cap"] for args in caps if args["cap"] is not None)
    assert sum(args["tokens"] for args in caps) == spoken.usage.reflection_tokens
    assert [args["used"] for args in caps if args["ended"] == "by its cap"] == [
        cap for cap in spoken.usage.reflection_caps if 0 < cap < 99
    ]


def test_every_codec_call_has_its_reason(spoken: Spoken) -> None:
    reasons = [args["reason"] for args in spoken.picture.moment("sound is made")]
    assert len(reasons) == spoken.num_calls and reasons[0] == "its first sound"
    assert any("dry" in reason for reason in reasons[1:])


def test_slack_and_decisions_span_the_reply(spoken: Spoken) -> None:
    assert all(-2.0 < args["seconds"] < 9.0 for _, args in spoken.picture.counts["slack"])
    names = [name for _, name, _ in spoken.picture.moments]
    assert names[:2] == ["submitted", "admitted"]
    assert names[-1] == "length"


def test_decisions_say_why(tmp_path: Path) -> None:
    """Eight listeners on few pages and rows: some wait, some give their pages back, those ahead rest at the
    frontier.
    """
    world = World(num_pages=40, max_rows=3, settings={"frontier_s": 2.0, "first_audio_stretch": 3.0})
    world.tracer.start()
    for seed in range(6):
        world.submit(f"r{seed}", [seed] * (8 + 5 * seed), TALKS, seed, most=120)
    world.submit("late", [1], TALKS, 9, most=120, priority=-1, is_live=False)
    world.run()
    world.tracer.stop()
    made = pictures(world.tracer, tmp_path)
    assert made.keys() == world.received.keys()
    decisions = {name: [span[0] for span in picture.line("decisions")] for name, picture in made.items()}
    every = {state for states in decisions.values() for state in states}
    assert {"waits for a row", "waits behind others", "paused at the frontier"} <= every, every
    rests = [
        (b, e, a)
        for p in made.values()
        for n, b, e, a in p.line("decisions")
        if n == "paused at the frontier"
    ]
    assert all(end > begin and args["ahead_s"] > 2.0 for begin, end, args in rests)
    preempted = [args for picture in made.values() for args in picture.moment("preempted")]
    assert len(preempted) == world.core.admission.num_preempted >= 1
    assert all("others need pages" in args["reason"] and args["pages"] > 0 for args in preempted)
    assert sum(len(picture.moment("admitted again")) for picture in made.values()) == len(preempted)
    lowered = [
        args
        for picture in made.values()
        for args in picture.moment("cap granted") + picture.moment("cap lowered")
    ]
    assert lowered and all(args["used"] <= args["cap"] for args in lowered if args["cap"] is not None)
    assert {args["reason"] for args in made["late"].moment("sound is made")} == {"no player waits for it"}
    for name, received in world.received.items():
        assert sum(args["tokens"] for *_, args in made[name].line("segments")) == len(received.ids)
        assert sum(args["sound_s"] for *_, args in made[name].line("sound")) == pytest.approx(
            sum(s for _, s in received.sound)
        )
    events = world.tracer._events
    assert max(e["args"]["rows"] for e in events if e["name"] == "batch") == 3
    assert all(json.dumps(e) for e in events)


def test_what_began_before_the_trace_or_is_cut_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    world = World()
    world.submit("before", [1, 2], TALKS, 1, most=150)
    world.submit("over", [1, 2], TALKS, 2, most=3)
    for _ in range(40):
        world.step()
    assert (
        world.received["over"].done is not None
        and world.received["before"].sound
        and not world.received["before"].done
    )
    num_before = len(world.received["before"].ids)
    world.tracer.start()
    for _ in range(3):
        world.step()
    world.core.cancel("before")
    world.step()
    world.tracer.stop()
    made = pictures(world.tracer, tmp_path)
    assert made.keys() == {"before"}
    picture = made["before"]
    assert (
        sum(args["tokens"] for *_, args in picture.line("segments"))
        == len(world.received["before"].ids) - num_before
    )
    ((name, begin, end, _),) = picture.line("playback")
    assert name == "plays" and 0 <= begin < end <= world.now - 100  # cancelled: no more is heard
    assert picture.moment("cancelled")
    world.tracer.start()  # another trace begins empty
    assert world.tracer._events == []
    world.submit("again", [1, 2], TALKS, 1, most=20)
    world.run()
    assert pictures(world.tracer, tmp_path).keys() == {"again"}


def test_nothing_is_kept_while_no_trace_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for name in ("planned", "chosen", "event", "granted", "submitted", "admitted"):
        monkeypatch.setattr(world.core.trace, name, None)  # called, it would break
    world.submit("one", [1, 2], TALKS, 1)
    world.run()
    assert world.received["one"].done is not None and world.tracer._events == []
