"""A crowd of callers in one event loop, who call at random times or all at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from websockets.asyncio.client import connect

from innervoice.tools.loadgen.load import Load
from innervoice.tools.realtime_bench.call import make_call
from innervoice.tools.realtime_bench.recordings import Recording
from innervoice.tools.realtime_bench.settings import CallSettings
from innervoice.tools.realtime_bench.turn import CallLog, CallTurn
from innervoice.tools.realtime_bench.wire import Connect

PAUSE_S = 1.0  # before a caller whose call failed calls again


@dataclass(frozen=True)
class CrowdLog:
    """All calls, in the order in which they began, and the seconds that they took.

    is_cut: it was stopped before its end, and turns that were not over are left out. num_planned: turns that the
    callers meant to hold; None: as many as fit in a time.
    """

    calls: list[CallLog]
    wall_s: float
    is_cut: bool = False
    num_planned: int | None = None

    @property
    def turns(self) -> list[CallTurn]:
        """The turns that came to an end, good or bad."""
        return [turn for call in self.calls for turn in call.turns if turn.is_over]


async def hold_calls(
    settings: CallSettings,
    recordings: Sequence[Recording],
    *,
    connect: Connect = connect,
    stop: asyncio.Event | None = None,
    on_turn: Callable[[CallTurn], None] = lambda turn: None,
) -> CrowdLog:
    """Make all calls, after those that warm the server up. stop: ends them all at once; what there is, is kept."""
    loop = asyncio.get_running_loop()
    calls: list[CallLog] = []
    begun_s = loop.time()

    async def caller(number: int, after_s: float, until_s: float) -> None:
        await asyncio.sleep(after_s)
        for attempt in count():
            log = CallLog(number, loop.time(), attempt)
            calls.append(log)
            try:
                await make_call(settings, recordings, log, until_s=until_s, connect=connect, on_turn=on_turn)
            except Exception as error:  # a caller that dies is one failure among others
                log.failure = f"caller died: {type(error).__name__}"
                log.details.append(str(error))
            has_failed = log.failure is not None or any(turn.error for turn in log.turns[-1:])
            if settings.seconds is None or loop.time() >= until_s:
                return
            await asyncio.sleep(PAUSE_S if has_failed else 0.0)

    async def all_callers() -> None:
        nonlocal begun_s
        await _warm_up(settings, recordings, connect)
        begun_s = loop.time()
        until_s = begun_s + (math.inf if settings.seconds is None else settings.seconds)
        times = Load(settings.callers, settings.arrivals, seed=settings.seed).arrivals()
        await asyncio.gather(*(caller(number, after_s, until_s) for number, after_s in enumerate(times)))

    work = asyncio.create_task(all_callers())
    stopped = asyncio.create_task((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        is_cut = not work.done()
        if not is_cut:
            work.result()
    finally:
        work.cancel()
        stopped.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
    num_planned = None if settings.seconds is not None else settings.callers * int(settings.most_turns)
    return CrowdLog(calls, loop.time() - begun_s, is_cut, num_planned)


async def _warm_up(settings: CallSettings, recordings: Sequence[Recording], connect: Connect) -> None:
    """Hold calls of one turn that are not measured; their failures will be seen again in those that are."""
    short = replace(settings, num_turns=1, barge_in=0.0, seconds=None)
    numbers = range(settings.callers, settings.callers + settings.num_warmups)
    logs = [CallLog(number, 0.0) for number in numbers]
    calls = (make_call(short, recordings, log, connect=connect) for log in logs)
    await asyncio.gather(*calls, return_exceptions=True)
