"""Listeners in real time on the real engine: does anybody hear a gap?

Every session speaks its question as fast as it was recorded, hears the reply out as fast as it plays, pauses, and asks again,
for --seconds; the players count how often they run dry. Then some sessions are made again, alone, with the reflection that they
were granted: their tokens must be the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.record import Record, device_name, parser, report
from bench.shapes import write_shipped_configs
from bench.stream_records import run_records, timeline
from bench.stream_sim import records as simulated

from innervoice import Engine, Sampling, Schedule, SteadySettings
from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.tools.loadgen import CallResult, LoadResult, Question, bundled_questions, converse

TINY = Path(str(resources.files("innervoice") / "assets" / "tiny"))


@dataclass(frozen=True)
class Setting:
    """What is run."""

    sessions: int
    seconds: float
    policy: str
    device: str
    model: str
    replayed: int
    seed: int = 0
    max_sessions: int | None = None
    steady: SteadySettings = field(default_factory=SteadySettings)
    max_load: float = SchedulerSettings.max_load

    @property
    def shape(self) -> str:
        """How records call it."""
        steady = f"first chunk {self.steady.first}, look-back {self.steady.look_back}, {self.steady.steps} solver steps"
        load = "" if self.max_load == SchedulerSettings.max_load else f", load up to {self.max_load:g}"
        return f"{self.sessions} sessions, {self.policy}, {self.seconds:g} s, {steady}{load}"


def real_time(setting: Setting, questions: Sequence[Question], request: dict[str, Any]) -> Iterator[Record]:
    """One population of real listeners, and some of its sessions again."""
    common = {
        "device": device_name(setting.device),
        "dtype": "float32" if setting.device == "cpu" else "bfloat16",
    }
    load: dict[str, Any] = {
        "device": setting.device,
        "dtype": common["dtype"],
        "streaming": setting.steady,
        "policy": setting.policy,
        "max_load": setting.max_load,
    }
    with (
        shipped(setting.model, load) as model,
        Engine.from_pretrained(model, max_sessions=setting.max_sessions, **load) as engine,
    ):
        converse(engine, questions, num_sessions=1, seconds=1.0, request=request)  # warm-up
        run = converse(
            engine,
            questions,
            num_sessions=setting.sessions,
            seconds=setting.seconds,
            seed=setting.seed,
            speaks=True,
            request=request,
        )
        details = {"num_starved": run.num_starved, "timeline": _timeline(run)}
        yield from run_records(
            run.metrics,
            part="real time",
            policy=setting.policy,
            sessions=setting.sessions,
            seconds=setting.seconds,
            shape=setting.shape,
            details=details,
            **common,
        )
        yield _lag(run, setting, common)
        yield _replays(engine, run, questions, setting, common)


@contextmanager
def shipped(model: str, load: dict[str, Any]) -> Iterator[str]:
    """The model, or for "9b" a directory of GLM-4-Voice's shapes with random weights, which `load` is told of."""
    if model != "9b":
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shipped_configs(Path(folder), TINY)
        load |= {"load_format": "dummy", "max_model_len": 4096}
        yield folder


def _timeline(run: LoadResult) -> Any:
    longest = max(run.calls, key=lambda one: len(one.timings.audio))
    return timeline(longest.timings)


def _lag(run: LoadResult, setting: Setting, common: dict[str, str]) -> Record:
    lags_ms = 1e3 * np.asarray(run.lags_s)
    p10, median, p90, p99 = np.percentile(lags_ms, [10, 50, 90, 99]).tolist()
    spread = {"n": len(lags_ms), "median": median, "p10": p10, "p90": p90}
    return Record(
        name="real time: event loop lag p99", shape=setting.shape, unit="ms", ours=p99, **spread, **common
    )


def _replays(
    engine: Engine, run: LoadResult, questions: Sequence[Question], setting: Setting, common: dict[str, str]
) -> Record:
    """Turns whose tokens differ when their session is made again alone: on a CPU none; on a GPU those where
    rounding, which depends on the rows that share a product, decided between two ids, unless the engine is `invariant`.
    """
    prompts = {question.name: question.prompt for question in questions}
    num_turns = num_wrong = 0
    for caller in range(min(setting.replayed, setting.sessions)):
        turns = [one for one in run.calls if one.caller == caller]
        with engine.open_session() as session:
            for turn in turns:
                assert turn.usage is not None, f"turn {num_turns} failed: {turn.timings.error}"
                caps = {"reflection_caps": turn.usage.reflection_caps, "realtime": False}
                made = session.reply(prompts[turn.question], **dict(turn.request) | caps).reply()
                num_turns, num_wrong = num_turns + 1, num_wrong + (made.ids != _ids(turn))
    details = {"sessions": setting.replayed, "turns": num_turns}
    return Record(
        name="real time: turns that differ alone",
        shape=setting.shape,
        unit="turns",
        ours=num_wrong,
        n=num_turns,
        details=details,
        **common,
    )


def _ids(turn: CallResult) -> list[int]:
    return [i for line in turn.lines for i in line.get("ids", ())]


def records(args: argparse.Namespace) -> Iterator[Record]:
    """All populations that were asked for, policy by policy."""
    request = {
        "schedule": Schedule.preset("stitch_s", reflection_budget=args.reflection),
        "sampling": Sampling(
            temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=600, max_audio_s=args.audio, ignore_eos=True
        ),
    }
    steady = SteadySettings(first=args.first_chunk, look_back=args.look_back, steps=args.solver_steps)
    for policy in args.policy.split(","):
        for sessions in map(int, args.sessions.split(",")):
            setting = Setting(
                sessions,
                args.seconds,
                policy,
                args.device,
                args.model,
                args.replayed,
                max_sessions=2 * sessions + 2,
                steady=steady,
                max_load=args.max_load,
            )
            yield from real_time(setting, bundled_questions(), request)


def main(arguments: Sequence[str] | None = None) -> None:
    """LoadResult from the command line."""
    made = parser(__doc__)
    made.add_argument(
        "--model",
        default=str(TINY),
        help="9b: GLM-4-Voice's shapes, random weights; default: the packaged one",
    )
    made.add_argument(
        "--sessions", default=None, help="numbers of sessions, with commas between them; default 32"
    )
    made.add_argument("--seconds", type=float, default=None, help="for how long they ask; default 60")
    made.add_argument("--policy", default="slack", help="policies, with commas between them")
    made.add_argument("--audio", type=float, default=8.0, help="seconds of sound of a reply")
    made.add_argument(
        "--reflection", type=int, default=60, help="the schedule's cap of a reflection, in tokens"
    )
    made.add_argument(
        "--replayed", type=int, default=None, help="sessions that are made again alone; default 4"
    )
    made.add_argument(
        "--first-chunk", type=int, default=SteadySettings.first, help="codes of a reply's first chunk"
    )
    made.add_argument(
        "--look-back", type=int, default=SteadySettings.look_back, help="mel frames that the flow sees again"
    )
    made.add_argument(
        "--solver-steps", type=int, default=SteadySettings.steps, help="steps of the flow's solver"
    )
    made.add_argument(
        "--max-load",
        type=float,
        default=SchedulerSettings.max_load,
        help="share of the time that speech may take: more waits",
    )
    made.add_argument("--threads", type=int, default=None, help="CPU threads")
    made.add_argument(
        "--simulate",
        default=None,
        nargs="?",
        const="all",
        metavar="PART",
        help="instead, listeners under a virtual clock",
    )
    args = made.parse_args(arguments)
    if args.simulate is not None:
        report(simulated(quick=args.quick, part=args.simulate), args.json)
        return
    args.sessions = args.sessions or ("2" if args.quick else "32")
    args.seconds = args.seconds or (3.0 if args.quick else 60.0)
    args.replayed = (1 if args.quick else 4) if args.replayed is None else args.replayed
    args.audio = min(args.audio, 2.0) if args.quick else args.audio
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report(records(args), args.json)


if __name__ == "__main__":
    main()
