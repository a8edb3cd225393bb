"""First step times, before the first reply: sequences and chunks that mean nothing, run again and again."""

from __future__ import annotations

import uuid
from collections import abc
from collections.abc import Callable
from functools import partial

from innervoice.codec.speech_codec import try_out
from innervoice.runtime.core import Core
from innervoice.runtime.warmup import most_fed, sequences, warm_up

Clock = Callable[[], float]


def calibrate(
    core: Core, clock: Clock, sizes: abc.Sequence[int] | None = None, *, budget_s: float = 2.0
) -> float:
    """Let the core's scheduler observe steps and codec calls of these sizes -> seconds that this took.

    On a GPU every kernel is compiled and every graph captured before. sizes: None: 1, 2, 4, ... up to all
    rows, until budget_s is spent; each runs twice, and the last run counts. It leaves no state behind. Raises
    ValueError while replies are in progress, or for a size that does not fit.
    """
    if core.has_work:
        raise ValueError("replies are running: warm up before the first, or when all are over")
    wrong = [size for size in sizes or () if not 1 <= size <= core.max_rows]
    if wrong:
        raise ValueError(f"a batch size is {wrong[0]}: it must be from 1 to max_sessions, {core.max_rows}")
    decoder = core.decoder

    # Steps by their number of rows, and a prompt token.
    begin = clock()
    if decoder.captures_graphs:
        warm_up(core)
    ready = clock()
    chosen = _doubling(core.max_rows) if sizes is None else list(sizes)
    for size in chosen:
        if sizes is None and size > 1 and clock() - ready > budget_s / 2:
            break
        with sequences(core, [1] * size) as rows, decoder.trial(rows) as step:
            core.costs.observe_step(size, 0, _last(clock, step))
    if decoder.captures_graphs:
        _time_prompt(core, clock)

    # Codec calls by their number of chunks.
    middle = clock()
    can_stream = core.speech.next_border(0) is not None
    for size in chosen if can_stream else ():
        if sizes is None and size > 1 and clock() - middle > budget_s / 2:
            break
        took_s = _last(clock, partial(try_out, core.speech, size, uuid.uuid4().hex))
        core.costs.observe_voice(size, took_s)
    return clock() - begin


def _last(clock: Clock, run: Callable[[], None], times: int = 2) -> float:
    for _ in range(times - 1):
        run()
    begin = clock()
    run()
    return clock() - begin


def _doubling(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _time_prompt(core: Core, clock: Clock) -> None:
    """Observe the cost of a token of a prompt as long as a step takes."""
    num = most_fed(core)
    with sequences(core, [num]) as rows:

        def feed() -> None:
            rows[0].num_cached = 0
            core.runner.forward(rows)[0, 0].item()

        took_s = _last(clock, feed)
    core.costs.observe_step(0, num, took_s)
