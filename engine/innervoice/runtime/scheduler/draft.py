"""A step as a policy wants it, before pages are counted; the prompts that it feeds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.table import Columns, TableIndices


class DraftStep(NamedTuple):
    """A step as it would be if pages were endless. Fields as those of `StepPlan`."""

    decode: TableIndices
    prefill: list[tuple[int, int]]
    cap_rows: TableIndices
    caps: TableIndices
    wake_s: float = math.inf


def feed_prompts(rows: Columns, budget: int, waiting: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Share so many prompt tokens among the replies that wait for theirs: (table index, tokens) each.

    Prompts of replies that wait to draw come before those of users who still speak; then priority and arrival
    count.
    """
    prompts, fed = np.flatnonzero(waiting), list[tuple[int, int]]()
    if len(prompts) > 1:
        prompts = prompts[
            np.lexsort((rows.order[prompts], -rows.priority[prompts], rows.is_listening[prompts]))
        ]
    for index in prompts.tolist():
        num = min(budget, int(rows.prompt_left[index]))
        if num == 0:
            break
        fed.append((index, num))
        budget -= num
    return fed
