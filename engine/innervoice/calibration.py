"""First step times, before anybody waits: rows and chunks that mean nothing, run once and again. Reads no clock of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from innervoice.batch import Row
from innervoice.core import Core

Clock = Callable[[], float]


def calibrate(core: Core, clock: Clock, sizes: Sequence[int] | None = None, *, budget_s: float = 2.0) -> float:
    """Tell the core's scheduler what steps and codec calls of these sizes take -> seconds that this took.

    On a GPU every kernel is compiled and every graph captured before. sizes: None: 1, 2, 4, ... up to all rows, until budget_s
    is spent; each runs twice, and the second run counts. Nothing is left of it. Raises ValueError while replies run, or for a
    size that does not fit.
    """
    if core.has_work:
        raise ValueError("replies are running: warm up before the first, or when all are over")
    wrong = [size for size in sizes or () if not 1 <= size <= core.max_rows]
    if wrong:
        raise ValueError(f"a batch size is {wrong[0]}: it must be from 1 to max_sessions, {core.max_rows}")
    begin = clock()
    core.runner.warmup()
    ready = clock()
    chosen = _doubling(core.max_rows) if sizes is None else list(sizes)
    for size in chosen:
        if sizes is None and size > 1 and clock() - ready > budget_s / 2:
            break
        with _rows(core, size) as rows:
            core.costs.observe_step(size, 0, _second(clock, lambda rows=rows: _step(core, rows)))  # type: ignore[misc]
    middle = clock()
    for size in chosen if core.can_stream else ():
        if sizes is None and size > 1 and clock() - middle > budget_s / 2:
            break
        core.costs.observe_voice(size, _second(clock, lambda size=size: core.try_voice(size, uuid.uuid4().hex)))  # type: ignore[misc]
    return clock() - begin


def _second(clock: Clock, run: Callable[[], None]) -> float:
    run()
    begin = clock()
    run()
    return clock() - begin


def _doubling(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _step(core: Core, rows: Sequence[Row]) -> None:
    for row in rows:
        row.num_cached = 0
    core.runner.forward(rows)[0, 0].item()  # waits for a GPU


@contextmanager
def _rows(core: Core, num: int) -> Iterator[list[Row]]:
    """Rows of one token, in as many pages."""
    rows = [core.replies.new_row() for _ in range(num)]
    try:
        for row in rows:
            row.extend([0])
            row.table.grow(1)
        yield rows
    finally:
        for row in rows:
            row.release()
