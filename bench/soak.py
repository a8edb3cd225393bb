"""Short sessions, one after the other by the thousand: does memory grow, does throughput fall?

--callers sessions are open at any time; each asks once, hears the reply, and is closed. Memory and time are looked at after every
tenth of them: the last tenth is held against the second. Time is the process's own, so that neighbours do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from bench.record import Record, device_name, parser, report

from innervoice import Engine, Sampling, Schedule, SteadySettings, Text

SCHEDULE = Schedule.preset("stitch_s", transcript_budget=3, speech_budget=5, reflection_budget=3)
TENTHS = 10


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _short_session(engine: Engine, number: int, num_tokens: int) -> None:
    sampling = Sampling(
        temperature=1.0, top_k=0, top_p=1.0, seed=number, max_new_tokens=num_tokens, ignore_eos=True
    )
    session = await asyncio.to_thread(engine.open_session, schedule=SCHEDULE, sampling=sampling)
    try:
        stream = await asyncio.to_thread(session.reply, Text(f"question {number}"))
        reply = await stream.areply()
        assert len(reply.ids) == num_tokens, f"session {number} gave {len(reply.ids)} tokens"
    finally:
        await asyncio.to_thread(session.close)


async def _crowd(engine: Engine, numbers: range, callers: int, num_tokens: int) -> None:
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await _short_session(engine, number, num_tokens)

    await asyncio.gather(*(caller() for _ in range(callers)))


def records(args: argparse.Namespace) -> Iterator[Record]:
    """Memory and throughput of the last tenth against the second."""
    size = max(1, args.sessions // TENTHS)
    memory: list[int] = []
    rates: list[float] = []
    steady = SteadySettings(look_back=args.look_back, steps=args.solver_steps)
    load = {"device": args.device, "streaming": steady, "max_sessions": args.callers + 1}
    with Engine.from_pretrained(args.model, **load) as engine:
        for tenth in range(TENTHS):
            begin = time.process_time()
            asyncio.run(_crowd(engine, range(tenth * size, (tenth + 1) * size), args.callers, args.tokens))
            rates.append(size / (time.process_time() - begin))
            gc.collect()
            memory.append(resident_bytes())
        core = engine.parts.core
        core.check_integrity()
        assert core.pool.num_available == core.pool.num_pages, "pages leak"
    common = {
        "device": device_name(args.device),
        "dtype": "as stored",
        "shape": f"{TENTHS * size} sessions, {args.callers} at once, look-back {steady.look_back}, {steady.steps} solver steps",
    }
    yield Record(
        name="soak: resident memory, last tenth over second",
        ours=memory[-1] / memory[1],
        unit="ratio",
        better="lower",
        n=TENTHS * size,
        details={"resident_bytes": memory},
        **common,
    )
    yield Record(
        name="soak: sessions a CPU second, last tenth over second",
        ours=rates[-1] / rates[1],
        unit="ratio",
        better="higher",
        n=TENTHS * size,
        details={"sessions_a_cpu_second": rates},
        **common,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    made = parser(__doc__)
    made.add_argument(
        "--model",
        default=str(resources.files("innervoice") / "assets" / "tiny"),
        help="default: the packaged one",
    )
    made.add_argument("--sessions", type=int, default=None, help="in all; default 10000")
    made.add_argument("--callers", type=int, default=32, help="sessions that are open at once")
    made.add_argument("--tokens", type=int, default=8, help="tokens of a reply")
    made.add_argument(
        "--look-back", type=int, default=SteadySettings.look_back, help="mel frames that the flow sees again"
    )
    made.add_argument(
        "--solver-steps", type=int, default=SteadySettings.steps, help="steps of the flow's solver"
    )
    args = made.parse_args(arguments)
    args.sessions = args.sessions or (40 if args.quick else 10_000)
    report(records(args), args.json)


if __name__ == "__main__":
    main()
