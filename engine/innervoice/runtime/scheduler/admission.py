"""Admission of replies that wait for pages, and preemption of others when there are too few."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.policies import SchedulerSettings
from innervoice.runtime.scheduler.policy import SpokenLoad
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import Columns, Phase, TableIndices, more_rows

_FREE, _WAITING = int(Phase.FREE), int(Phase.WAITING)


def admit_rows(
    rows: Columns, costs: LearnedCosts, settings: SchedulerSettings, runs: NDArray[np.bool_], pages_free: int
) -> list[int]:
    """Replies that get their rows now, in order of priority and arrival; none overtakes one that does not fit.

    A reply takes a row for each of its contexts, with pages for its whole prompt beside those that are promised to
    others, and one for each that runs. A user who still speaks takes no row, and a reply whose reader does not read
    takes none of the machine's time.
    """
    waiting = np.flatnonzero(rows.phase == _WAITING)
    if not len(waiting):
        return []
    if len(waiting) > 1:
        waiting = waiting[np.lexsort((rows.order[waiting], -rows.priority[waiting]))]
    held = np.flatnonzero(runs)
    holds = (rows.phase != _FREE) & (rows.phase != _WAITING) & ~rows.is_listening
    num_rows = int(np.count_nonzero(holds)) + more_rows(rows, holds)
    pages_free -= int(np.maximum(num_pages(rows.context[held] + 1, settings) - rows.pages[held], 1).sum())
    idle = rows.is_listening | rows.is_blocked | rows.is_waiting
    load = SpokenLoad.of(rows, held[rows.is_live[held] & ~idle[held]])
    policy, chosen = settings.planner, list[int]()
    for index in waiting.tolist():
        needed = num_pages(int(rows.context[index]) + 1, settings) - int(rows.pages[index])
        live = bool(rows.is_live[index])
        load.next_rows = 1 + int(rows.more_rows[index])
        too_many = live and not policy.has_room(load, costs, settings)
        does_not_fit = num_rows + load.next_rows > settings.max_rows
        if does_not_fit or (needed > pages_free and num_rows > 0) or too_many:
            break
        chosen.append(index)
        num_rows += load.next_rows
        pages_free -= needed
        load.num += live
        load.more_rows += live * (load.next_rows - 1)
    return chosen


def take_back(
    rows: Columns, settings: SchedulerSettings, running: TableIndices, need: TableIndices, missing: int
) -> tuple[list[int], NDArray[np.bool_]]:
    """Rows that give their pages back, and all that leave the step.

    The last one is never taken; it waits if it does not fit.
    """
    victims, gone = list[int](), np.zeros(len(need), np.bool_)
    order = settings.planner.victims(rows, running)
    for index in order[:-1].tolist():
        if missing <= 0:
            break
        if rows.pages[index] > 0 or need[index] > 0:
            victims.append(index)
            missing -= int(rows.pages[index] + need[index])
    gone[victims] = True
    if missing > 0:
        gone[order[-1]] = True
    return victims, gone


def num_pages(num_tokens: Any, settings: PlanConstants) -> Any:
    """Pages for so many tokens, one number or an array."""
    return -(-num_tokens // settings.page_size)
