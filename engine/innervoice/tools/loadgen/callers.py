"""Many callers in one event loop: at random times, or one after another in dialogues.

Each reply is heard in real time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import numpy as np

from innervoice.api.engine import Engine
from innervoice.api.event_log import EventLog
from innervoice.api.session import Session
from innervoice.runtime.record import Line
from innervoice.runtime.stream import Stream
from innervoice.telemetry.metrics import RequestTimings, RunMetrics, leading_silence_s, summarize
from innervoice.tools.loadgen.player import Player
from innervoice.tools.loadgen.questions import Question
from innervoice.types import AudioChunk, Done, EngineDead, OutOfCapacity, Prompt, Samples, TokenEvent, Usage

BEAT_S = 0.005
FRAME_S = 0.1  # of speech that is pushed
Ask = Callable[[], Stream]


@dataclass(frozen=True)
class Load:
    """Requests at random times (Poisson, request_rate a second; inf: all at once), at most
    max_concurrency of them at a time.

    The first num_warmups are left out of the results, and over before the others begin. seed: of the arrivals
    and of replies that have none.
    """

    num_prompts: int
    request_rate: float = math.inf
    max_concurrency: int | None = None
    num_warmups: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.num_warmups < 0:
            raise ValueError(
                f"{self.num_prompts} prompts and {self.num_warmups} warm-ups: there must be 1 or more, and 0 or more"
            )
        if not self.request_rate > 0:
            raise ValueError(f"the request rate is {self.request_rate} a second: it must be above 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency is {self.max_concurrency}: it must be 1 or more")

    def arrivals(self) -> list[float]:
        """Seconds after the beginning; the gaps are exponential."""
        if self.request_rate == math.inf:
            return [0.0] * self.num_prompts
        random, now, times = Random(self.seed), 0.0, list[float]()
        for _ in range(self.num_prompts):
            now += random.expovariate(self.request_rate)
            times.append(now)
        return times


@dataclass(frozen=True)
class Listened:
    """What one caller got of one reply.

    log: arrivals; num_starved: of the player in real time; lines: the reply's event log.
    """

    log: RequestTimings
    question: str
    caller: int
    num_starved: int = 0
    starved_s: float = 0.0
    usage: Usage | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()

    def to_dict(self) -> Line:
        """One line of the results, which `RequestTimings.from_dict` reads too."""
        own = {
            "question": self.question,
            "caller": self.caller,
            "num_starved": self.num_starved,
            "starved_s": self.starved_s,
        }
        return self.log.to_dict() | own | {"usage": None if self.usage is None else asdict(self.usage)}


@dataclass(frozen=True)
class Run:
    """What came of a load, in the order of submission.

    lags_s: by how much a beat of 5 ms in the callers' event loop was late.
    """

    listened: list[Listened]
    lags_s: list[float]

    @property
    def metrics(self) -> RunMetrics:
        """The figures: see `metrics.py`."""
        return summarize([one.log for one in self.listened])

    @property
    def num_starved(self) -> int:
        """How often a player ran dry, in all."""
        return sum(one.num_starved for one in self.listened)

    @property
    def lag_p99_ms(self) -> float | None:
        """Of the event loop's beat."""
        return 1e3 * float(np.percentile(self.lags_s, 99)) if len(self.lags_s) >= 100 else None


def run_load(
    engine: Engine, questions: Sequence[Question], load: Load, request: Mapping[str, Any] | None = None
) -> Run:
    """Ask the questions in turn, as the load says; request: options of those that do not say.

    Blocks until all have ended.
    """

    async def callers(pool: ThreadPoolExecutor) -> Run:
        limit = asyncio.Semaphore(load.max_concurrency or load.num_prompts + load.num_warmups)

        async def caller(number: int, after_s: float) -> Listened:
            await asyncio.sleep(after_s)
            question = questions[number % len(questions)]
            options = question.request(request or {}, load.seed + number)
            async with limit:
                return await _listen(
                    pool, lambda: engine.stream(question.prompt, **options), question.name, number, options
                )

        warmups = range(load.num_prompts, load.num_prompts + load.num_warmups)
        await asyncio.gather(*(caller(number, 0.0) for number in warmups))
        with _heartbeat() as lags_s:
            made = await asyncio.gather(*(caller(number, t) for number, t in enumerate(load.arrivals())))
        return Run(sorted(made, key=lambda one: one.log.submitted_s), lags_s)

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
) -> Run:
    """So many dialogues at once: each asks, hears the reply out in real time, waits up
    to 2 pause_s, and asks again.

    They begin at random within the first 5 s or a fifth of the time; no question is asked after `seconds`.
    speaks: recordings are pushed in real time, frame by frame, and the question is asked when its last frame
    is there; else they are there at once. Blocks until all is heard.
    """

    async def callers(pool: ThreadPoolExecutor) -> Run:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def caller(number: int) -> list[Listened]:
            random, made = Random(seed * 1_000_003 + number), list[Listened]()
            await asyncio.sleep(random.uniform(0, min(5.0, seconds / 5)))
            session = await loop.run_in_executor(pool, engine.open_session)
            try:
                while loop.time() < end:
                    turn = len(made)
                    question = questions[(number + turn) % len(questions)]
                    options = question.request(request or {}, random.getrandbits(32))
                    prompt: Prompt | None = question.prompt
                    if speaks and isinstance(prompt, tuple):
                        await _speak(pool, session, *prompt)
                        prompt = None
                    ask = lambda p=prompt, o=options: session.reply(p, **o)  # noqa: E731
                    made.append(await _listen(pool, ask, question.name, number, options))
                    if made[-1].log.error is not None:
                        break
                    await asyncio.sleep(random.uniform(0, 2 * pause_s))
            finally:
                await loop.run_in_executor(pool, session.close)
            return made

        with _heartbeat() as lags_s:
            made = await asyncio.gather(*(caller(number) for number in range(num_sessions)))
        return Run(sorted((one for own in made for one in own), key=lambda one: one.log.submitted_s), lags_s)

    return _with_pool(callers)


async def _speak(pool: ThreadPoolExecutor, session: Session, samples: Samples, rate: int) -> None:
    """Push a recording, a frame whenever it would have been spoken, and commit it."""
    loop = asyncio.get_running_loop()
    begin, size = loop.time(), round(FRAME_S * rate)
    for first in range(0, len(samples), size):
        frame = samples[first : first + size]
        await asyncio.sleep(max(0.0, begin + (first + len(frame)) / rate - loop.time()))
        await loop.run_in_executor(pool, session.push_audio, frame, rate)
    await loop.run_in_executor(pool, session.commit_audio)


async def _listen(
    pool: ThreadPoolExecutor, ask: Ask, question: str, caller: int, request: Mapping[str, Any]
) -> Listened:
    """Ask, and hear the reply to its end."""
    submitted_s, player, log = time.monotonic(), Player(), EventLog()
    audio: list[tuple[float, int]] = []
    tokens: list[tuple[float, str]] = []
    pcm: list[np.ndarray] = []
    lines: list[Line] = []
    rate, done, error = 1, None, None
    try:
        # Encoding a recording takes its time, which is the caller's, not the event loop's.
        stream, record = await asyncio.get_running_loop().run_in_executor(pool, _asked, ask)
        lines += [record] if record is not None else []
        async with stream:
            async for event in stream:
                now = time.monotonic()
                lines += log.feed(event)
                if isinstance(event, TokenEvent):
                    tokens += [(now, event.kind)] * len(event.ids)
                elif isinstance(event, AudioChunk):
                    player.feed(len(event.pcm) / event.rate)
                    audio.append((now, len(event.pcm)))
                    pcm.append(event.pcm if event.pcm.dtype == np.float32 else event.pcm / np.float32(2**15))
                    rate = event.rate
                elif isinstance(event, Done):
                    done, error = event, event.error
    except (OutOfCapacity, EngineDead, ValueError, OSError) as refused:
        error = f"{type(refused).__name__}: {refused}"
    finished_s = time.monotonic()
    player.finish()
    await player.played()
    arrived = RequestTimings(
        submitted_s=submitted_s,
        rate=rate,
        audio=tuple(audio),
        tokens=tuple(tokens),
        finished_s=finished_s,
        leading_silence_s=leading_silence_s(np.concatenate(pcm), rate) if pcm else None,
        finish_reason=None if done is None else done.finish_reason,
        error=error,
        request_id="" if done is None else done.reply_id,
    )
    usage = None if done is None else done.usage
    return Listened(arrived, question, caller, player.num_starved, player.starved_s, usage, request, lines)


def _asked(ask: Ask) -> tuple[Stream, Line | None]:
    """The stream, and the line that its event log begins with, which is made here and
    not on the event loop's time.
    """
    stream = ask()
    return stream, stream.record


@contextmanager
def _heartbeat() -> Iterator[list[float]]:
    """The lags of a beat in the running loop, while the block runs."""
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


def _with_pool(callers: Callable[[ThreadPoolExecutor], Coroutine[Any, Any, Run]]) -> Run:
    with ThreadPoolExecutor(max_workers=64, thread_name_prefix="innervoice-ask") as pool:
        return asyncio.run(callers(pool))
