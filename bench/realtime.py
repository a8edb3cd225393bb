"""Callers over the wire beside callers in process: the same questions, load and replies, so that the wire's cost shows.

First sessions of an engine in this process are held as bench.stream holds them, then calls of `innervoice serve` in a process of
its own by `innervoice bench realtime`: with turns that the caller commits, which is what sessions in process do, and with turns
that the server detects, of which some replies are interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.record import Record, device_name, parser, report
from bench.stream import TINY
from bench.stream_records import run_records

from innervoice import Engine, Sampling, Schedule
from innervoice.telemetry.metrics import Distribution, RunMetrics
from innervoice.tools.loadgen import bundled_questions, converse
from innervoice.tools.realtime_bench import (
    CallSettings,
    CrowdLog,
    RealtimeFigures,
    bundled_recordings,
    figures_of,
    hold_calls,
    records_of,
)
from innervoice.tools.realtime_bench.report import written_report

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Load:
    """What is asked of the engine, in process and over the wire."""

    callers: int
    seconds: float
    tokens: int
    schedule: str
    think_s: float = 0.5
    barge_in: float = 0.25

    @property
    def shape(self) -> str:
        """How records call it."""
        load = f"{self.callers} callers, {self.seconds:g} s, {self.schedule}, {self.tokens} tokens"
        return f"{load}, pauses of {self.think_s:g} s"

    def calls(self, url: str, **more: Any) -> CallSettings:
        """The same load over the wire."""
        session = {"max_output_tokens": self.tokens}
        # Sessions in process begin at random within this time, so that they do not ask all at once.
        arrivals = self.callers / min(5.0, self.seconds / 5)
        plain = {"num_warmups": 2, "timeout_s": PATIENCE_S, "think_s": self.think_s, "arrivals": arrivals}
        return CallSettings(
            url, **{"callers": self.callers, "seconds": self.seconds, "session": session} | plain | more
        )


def in_process(load: Load) -> RunMetrics:
    """Sessions of an engine in this process, which speak their questions in real time."""
    request = {
        "schedule": Schedule.preset(load.schedule),
        "sampling": Sampling(max_new_tokens=load.tokens),
    }
    questions = bundled_questions()
    with Engine.from_pretrained(TINY, device="cpu", max_sessions=2 * load.callers + 2) as engine:
        converse(engine, questions, num_sessions=2, seconds=1.0, speaks=True, request=request)  # warm-up
        run = converse(
            engine,
            questions,
            num_sessions=load.callers,
            seconds=load.seconds,
            pause_s=load.think_s,
            speaks=True,
            request=request,
        )
    return run.metrics


@contextmanager
def served(load: Load) -> Iterator[str]:
    """A server of the tiny checkpoint in a process of its own -> its address."""
    words = ["serve", "--port", "0", "--schedule", load.schedule, "--max-sessions", str(2 * load.callers + 2)]
    process = subprocess.Popen(
        [sys.executable, "-m", "innervoice.tools.cli", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None, "it is a pipe"
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line!r}")
        yield found[0].replace("http", "ws")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def over_the_wire(settings: CallSettings) -> tuple[CrowdLog, RealtimeFigures]:
    """Calls of a server."""
    log = asyncio.run(hold_calls(settings, bundled_recordings()))
    return log, figures_of(log)


def compared(load: Load, wire: RealtimeFigures, own: RunMetrics, device: str) -> Iterator[Record]:
    """The figures of both, the wire's cost being their ratio."""
    pairs: dict[str, tuple[str, Distribution, Distribution]] = {
        "first sound": ("ms", wire.replies.audio_ttfp_ms, own.audio_ttfp_ms),
        "largest underrun": ("s", wire.replies.audio_underrun_s, own.audio_underrun_s),
        "sound of a reply": ("s", wire.replies.audio_s, own.audio_s),
    }
    for name, (unit, ours, peer) in pairs.items():
        spread = {"n": ours.n, "median": ours.median, "p10": ours.p10, "p90": ours.p90}
        yield Record(
            name=f"over the wire: {name}",
            shape=load.shape,
            unit=unit,
            device=device,
            ours=ours.median,
            peer=peer.median,
            peer_p10=peer.p10,
            peer_p90=peer.p90,
            peer_name="in process",
            ratio=ours.median / peer.median if ours.median and peer.median else None,
            invalid=wire.invalid,
            details={"n in process": peer.n, "c100": [wire.replies.c100, own.c100]},
            **spread,
        )


def records(args: argparse.Namespace) -> Iterator[Record]:
    """In process, over the wire, and both compared; then detected turns with interruptions."""
    load = Load(args.callers, args.seconds, args.tokens, args.schedule, args.think_s, args.barge_in)
    device = device_name("cpu")
    own = in_process(load)
    yield from run_records(
        own,
        part="in process",
        policy="slack",
        sessions=load.callers,
        seconds=load.seconds,
        shape=load.shape,
        device=device,
    )
    with served(load) as url:
        for turns, barge_in in (("manual", 0.0), ("server", load.barge_in)):
            settings = load.calls(url, turns=turns, barge_in=barge_in)
            log, figures = over_the_wire(settings)
            # The port is another each time; the machine is what compares.
            for line in records_of(figures, log, settings):
                yield replace(Record(**line), device=device)
            if turns == "manual":
                yield from compared(load, figures, own, device)
            if args.report is not None:
                args.report.mkdir(parents=True, exist_ok=True)
                page = written_report(figures, log, settings, bundled_recordings())
                (args.report / f"{turns}.html").write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The load from the command line."""
    made = parser(__doc__)
    made.add_argument("--callers", type=int, default=None, help="default 16")
    made.add_argument("--seconds", type=float, default=None, help="for how long they ask; default 60")
    made.add_argument("--tokens", type=int, default=120, help="of a reply, at most")
    made.add_argument("--think-s", type=float, default=0.5, help="mean pause after a reply; default 0.5")
    made.add_argument("--barge-in", type=float, default=0.25, help="of detected turns; default 0.25")
    made.add_argument("--schedule", default="stitch_s", help="a preset")
    made.add_argument("--report", type=Path, default=None, metavar="DIR", help="where pages with plots go")
    args = made.parse_args(arguments)
    args.callers = args.callers or (2 if args.quick else 16)
    args.seconds = args.seconds or (3.0 if args.quick else 60.0)
    report(records(args), args.json)


if __name__ == "__main__":
    main()
