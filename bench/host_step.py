"""The host's work of a step with 128 rows, and a plan of 256 sessions: CPU time with a stub of the model,
device and codec.

`python -m bench.host_step`. Everything is deterministic: the world of tests/support/scripted_core.py under
its virtual clock, with logits from a table. What the stubs take is subtracted, so that a step is the loop's
own work: plan, page tables, the draw on the host or the host's end of a device step, cursors, events, and the
bookkeeping of sound.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
import torch
from bench.record import ROOT, Record, Times, device_name, parser, report

from innervoice.runtime.scheduler import ReplyColumns, plan_step, plan_voice
from innervoice.schedule import Schedule, Segment

sys.path.insert(0, str(ROOT / "tests" / "support"))
import scripted_core

STEP_S = 0.05  # virtual seconds a step
WARMUP = 20
PROMPT = [3, 5, 7, 9, 11, 13]
SCHEDULE = Schedule((Segment("transcript", 3), Segment("speech", 6), Segment("reflection", 12)))


class Stopwatch:
    """CPU seconds of this thread that went into stubs since the last `taken`."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self._spent_s += time.thread_time() - begin

        return timed

    def taken(self) -> float:
        """What was spent, which begins again from 0."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s


class StubRunner(scripted_core.ScriptedRunner):
    """Logits [48] by a sequence's last token, from a table."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages, steady=True)
        noise = np.random.default_rng(7).standard_normal((48, 48))
        noise[:, 24:] -= 9.0  # text goes on while it may
        noise[:, [scripted_core.MUTE, 44, 46, 47]] -= 9.0
        self._table = torch.from_numpy(3.0 * noise).float()

    def forward(self, rows: Any, outputs: object = None) -> torch.Tensor:
        last = [row.ids[row.end - 1] for row in rows]
        for row in rows:
            row.num_cached = row.end
        return self._table[last]

    def logits(self, pages: Any, num_tokens: int) -> torch.Tensor:
        index = num_tokens - 1
        return self._table[self.pages[pages[index // scripted_core.PAGE]][index % scripted_core.PAGE]]


def make_world(rows: int, tokens: int, watch: Stopwatch, *, overlapped: bool) -> scripted_core.World:
    """Rows replies of so many tokens, in their first step."""
    length = len(PROMPT) + tokens + 2
    pages = rows * (length // scripted_core.PAGE + 2)
    settings = {"frontier_s": 1e9, "max_batch": rows, "prefill_chunk": len(PROMPT) * rows}
    world = scripted_core.World(
        pages, rows, max_model_len=length, settings=settings, stepped=overlapped, runner=StubRunner(pages)
    )
    stubs: list[tuple[Any, str]] = [(world.runner, "forward"), (world.voice, "step"), (world.voice, "ready")]
    if overlapped:
        device = device_of(world)
        stubs += [(device, name) for name in ("step", "read", "begin", "set_pages", "order")]
    for owner, name in stubs:
        setattr(owner, name, watch.wrap(getattr(owner, name)))
    program = scripted_core.program(SCHEDULE)
    for number in range(rows):
        world.submit(f"r{number}", [*PROMPT[:-1], number % 20], program, 4 * number, most=tokens)
    return world


def step(world: scripted_core.World) -> None:
    """What the worker does in a step."""
    core = world.core
    core.step_tokens(world.now)
    world.now += STEP_S
    core.drain(world.now)
    core.step_speech(world.now)
    core.drain(world.now)


def time_steps(rows: int, steps: int, *, overlapped: bool) -> Times:
    """Seconds of each step in which all rows draw."""
    watch = Stopwatch()
    world = make_world(rows, steps + WARMUP + 8, watch, overlapped=overlapped)
    seconds = []
    for number in range(WARMUP + steps):
        watch.taken()
        begin = time.thread_time()
        step(world)
        took_s = time.thread_time() - begin - watch.taken()
        if number >= WARMUP:
            seconds.append(took_s)
    return Times(tuple(seconds), WARMUP)


def time_plans(sessions: int, plans: int) -> Times:
    """Seconds of a plan of a step and one of the codec, for sessions in the middle of their replies."""
    world = make_world(sessions, 100, Stopwatch(), overlapped=False)
    for _ in range(60):
        step(world)
    core, columns = world.core, columns_of(world)
    seconds = []
    for _ in range(WARMUP + plans):
        begin = time.thread_time()
        plan_step(columns, core.costs, core.settings, world.now, core.pool.num_available)
        plan_voice(columns, core.costs, core.settings, world.now, idle=False)
        seconds.append(time.thread_time() - begin)
    return Times(tuple(seconds[WARMUP:]), WARMUP)


def columns_of(world: scripted_core.World) -> ReplyColumns:
    """The scheduler's columns of a world."""
    return world.core.table.columns


def device_of(world: scripted_core.World) -> Any:
    """The scripted device of a world."""
    return world.core.decoder.device_step


def measure(*, quick: bool) -> dict[tuple[str, str], Times]:
    """Times by (name, shape)."""
    steps, plans = (20, 20) if quick else (150, 600)
    gc.disable()
    try:
        return {
            ("host_step", "128 rows, drawn by the host"): time_steps(128, steps, overlapped=False),
            ("host_step", "128 rows, overlapped"): time_steps(128, steps, overlapped=True),
            ("plan", "256 sessions"): time_plans(256, plans),
        }
    finally:
        gc.enable()


def records(*, quick: bool) -> Iterator[Record]:
    """A record a case."""
    for (name, shape), times in measure(quick=quick).items():
        yield Record.of(name, shape, times, device="cpu", details={"device_name": device_name("cpu")})


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    report(records(quick=args.quick), args.json)


if __name__ == "__main__":
    main()
