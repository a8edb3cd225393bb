"""Many callers in one event loop: at random times, or one after another in sessions.

Each reply is heard in real time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

from innervoice.api.engine import Engine
from innervoice.api.session import Session
from innervoice.runtime.record import Line
from innervoice.runtime.stream import Stream
from innervoice.tools.loadgen.hearing import Hearing
from innervoice.tools.loadgen.load import Load
from innervoice.tools.loadgen.questions import Question
from innervoice.tools.loadgen.results import CallResult, LoadResult
from innervoice.types import EngineDead, OutOfCapacity, Prompt, Samples

BEAT_S = 0.005
FRAME_S = 0.1  # of speech that is pushed
Ask = Callable[[], Stream]


def run_load(
    engine: Engine, questions: Sequence[Question], load: Load, request: Mapping[str, Any] | None = None
) -> LoadResult:
    """Ask the questions in turn, as the load says; request: options of questions without their own.

    Blocks until all end.
    """

    async def callers(pool: ThreadPoolExecutor) -> LoadResult:
        limit = asyncio.Semaphore(load.max_concurrency or load.num_prompts + load.num_warmups)

        async def call(number: int, after_s: float) -> CallResult:
            await asyncio.sleep(after_s)
            question = questions[number % len(questions)]
            options = question.request(request or {}, load.seed + number)
            async with limit:
                ask = partial(engine.stream, question.prompt, **options)
                return await _hear(pool, ask, question.name, number, options)

        warmups = range(load.num_prompts, load.num_prompts + load.num_warmups)
        await asyncio.gather(*(call(number, 0.0) for number in warmups))
        with _heartbeat() as lags_s:
            made = await asyncio.gather(*(call(number, t) for number, t in enumerate(load.arrivals())))
        return _in_order(made, lags_s)

    return _with_pool(callers)


def converse(
    engine: Engine,
    questions: Sequence[Question],
    *,
    num_sessions: int,
    seconds: float,
    seed: int = 0,
    pause_s: float = 0.5,
    speaks: bool = False,
    request: Mapping[str, Any] | None = None,
) -> LoadResult:
    """Hold so many sessions at once: each asks, hears the reply out in real time, waits up to 2 pause_s, and
    asks again.

    They begin at random within the first 5 s or a fifth of the time; no question is asked after `seconds`.
    speaks: recordings are pushed in real time, frame by frame, and the question is asked when its last frame
    is there; else they are there at once. Blocks until all is heard.
    """

    async def callers(pool: ThreadPoolExecutor) -> LoadResult:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def turn(session: Session, caller: int, number: int, random: Random) -> CallResult:
            question = questions[(caller + number) % len(questions)]
            options = question.request(request or {}, random.getrandbits(32))
            prompt: Prompt | None = question.prompt
            if speaks and isinstance(prompt, tuple):
                await _speak(pool, session, *prompt)
                prompt = None
            ask = partial(session.reply, prompt, **options)
            return await _hear(pool, ask, question.name, caller, options)

        async def call(number: int) -> list[CallResult]:
            random = Random(seed * 1_000_003 + number)
            made: list[CallResult] = []
            await asyncio.sleep(random.uniform(0, min(5.0, seconds / 5)))
            session = await loop.run_in_executor(pool, engine.open_session)
            try:
                while loop.time() < end:
                    made.append(await turn(session, number, len(made), random))
                    if made[-1].timings.error is not None:
                        break
                    await asyncio.sleep(random.uniform(0, 2 * pause_s))
            finally:
                await loop.run_in_executor(pool, session.close)
            return made

        with _heartbeat() as lags_s:
            made = await asyncio.gather(*(call(number) for number in range(num_sessions)))
        return _in_order((one for own in made for one in own), lags_s)

    return _with_pool(callers)


def _in_order(made: Iterable[CallResult], lags_s: list[float]) -> LoadResult:
    return LoadResult(sorted(made, key=lambda one: one.timings.submitted_s), lags_s)


async def _speak(pool: ThreadPoolExecutor, session: Session, samples: Samples, rate: int) -> None:
    """Push a recording, each frame when it would have been spoken, and commit it."""
    loop = asyncio.get_running_loop()
    begin, size = loop.time(), round(FRAME_S * rate)
    for first in range(0, len(samples), size):
        frame = samples[first : first + size]
        await asyncio.sleep(max(0.0, begin + (first + len(frame)) / rate - loop.time()))
        await loop.run_in_executor(pool, session.push_audio, frame, rate)
    await loop.run_in_executor(pool, session.commit_audio)


async def _hear(
    pool: ThreadPoolExecutor, ask: Ask, question: str, caller: int, request: Mapping[str, Any]
) -> CallResult:
    """Ask, and hear the reply to its end."""
    hearing = Hearing()
    try:
        # Encoding a recording takes its time, which is the caller's, not the event loop's.
        stream, record = await asyncio.get_running_loop().run_in_executor(pool, _asked, ask)
        hearing.begin(record)
        async with stream:
            async for event in stream:
                hearing.add(event)
    except (OutOfCapacity, EngineDead, ValueError, OSError) as refused:
        hearing.error = f"{type(refused).__name__}: {refused}"
    return await hearing.played(question, caller, request)


def _asked(ask: Ask) -> tuple[Stream, Line | None]:
    """The stream, and the first line of its event log, which is made here and not on the event loop's time."""
    stream = ask()
    return stream, stream.record


@contextmanager
def _heartbeat() -> Iterator[list[float]]:
    """Measure the lags of a beat in the running loop, while the block runs."""
    lags_s: list[float] = []

    async def beat() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(BEAT_S)
            lags_s.append(max(0.0, time.perf_counter() - begin - BEAT_S))

    task = asyncio.get_running_loop().create_task(beat())
    try:
        yield lags_s
    finally:
        task.cancel()


def _with_pool(callers: Callable[[ThreadPoolExecutor], Coroutine[Any, Any, LoadResult]]) -> LoadResult:
    with ThreadPoolExecutor(max_workers=64, thread_name_prefix="innervoice-ask") as pool:
        return asyncio.run(callers(pool))
