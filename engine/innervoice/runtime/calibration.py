"""First step times, before anybody waits: rows and chunks that mean nothing, run once and again. Reads no clock of its own."""

from __future__ import annotations

import uuid
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from innervoice.model.sequence import Sequence
from innervoice.runtime.core import Core

Clock = Callable[[], float]


def calibrate(
    core: Core, clock: Clock, sizes: abc.Sequence[int] | None = None, *, budget_s: float = 2.0
) -> float:
    """Tell the core's scheduler what steps and codec calls of these sizes take -> seconds that this took.

    On a GPU every kernel is compiled and every graph captured before. sizes: None: 1, 2, 4, ... up to all rows, until budget_s
    is spent; each runs twice, a codec call on a GPU three times, and the last run counts. Nothing is left of it. Raises
    ValueError while replies run, or for a size that does not fit.
    """
    if core.has_work:
        raise ValueError("replies are running: warm up before the first, or when all are over")
    wrong = [size for size in sizes or () if not 1 <= size <= core.max_rows]
    if wrong:
        raise ValueError(f"a batch size is {wrong[0]}: it must be from 1 to max_sessions, {core.max_rows}")
    begin = clock()
    if core.stepping is not None:
        core.stepping.stepper.warmup()
    ready = clock()
    chosen = _doubling(core.max_rows) if sizes is None else list(sizes)
    for size in chosen:
        if sizes is None and size > 1 and clock() - ready > budget_s / 2:
            break
        with _rows(core, size) as rows, _trial(core, rows) as step:
            core.costs.observe_step(size, 0, _last(clock, step))
    if core.stepping is not None:
        _try_prompts(core, clock)
    middle = clock()
    for size in chosen if core.can_stream else ():
        if sizes is None and size > 1 and clock() - middle > budget_s / 2:
            break
        again = 2 if core.stepping is None else 3  # the second call of a size captures its graph
        took_s = _last(clock, partial(core.try_voice, size, uuid.uuid4().hex), again)
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


@contextmanager
def _trial(core: Core, rows: abc.Sequence[Sequence]) -> Iterator[Callable[[], None]]:
    """A function that takes a step of the rows as the core takes its steps, and waits for it."""
    if core.stepping is not None:
        with core.stepping.trial(rows) as step:
            yield step
        return

    def forward() -> None:
        for row in rows:
            row.num_cached = 0
        core.runner.forward(rows)[0, 0].item()

    yield forward


def _try_prompts(core: Core, clock: Clock) -> None:
    """Prompts of one length and another: what they need is compiled, and what a token of a whole piece costs is known."""
    most = min(
        core.settings.prefill_chunk,
        core.replies.max_model_len - 1,
        core.pool.num_available * core.pool.page_size,
    )
    for num in sorted({min(n, most) for n in (1, 2, 15, 16, 17, 32, 33, most)}):
        with _rows(core, 1, num) as rows:

            def feed(rows: list[Sequence] = rows) -> None:
                rows[0].num_cached = 0
                core.runner.forward(rows, ())[0, 0].item()

            took_s = _last(clock, feed)
    core.costs.observe_step(0, num, took_s)


@contextmanager
def _rows(core: Core, num: int, num_tokens: int = 1) -> Iterator[list[Sequence]]:
    """Rows of one token, or more."""
    rows = [core.replies.new_row() for _ in range(num)]
    try:
        for row in rows:
            row.extend([0] * num_tokens)
            row.table.grow(num_tokens)
        yield rows
    finally:
        for row in rows:
            row.release()
