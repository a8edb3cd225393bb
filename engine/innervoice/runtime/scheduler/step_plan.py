"""The next step, and the codec's next call: pure functions of the table, the learned costs and the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.admission import admit_rows, num_pages, take_back
from innervoice.runtime.scheduler.codec_plan import VoicePlan
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.draft import DraftStep
from innervoice.runtime.scheduler.policies import SchedulerSettings
from innervoice.runtime.scheduler.table import (
    NO_INDICES,
    Columns,
    Phase,
    ReplyColumns,
    TableIndices,
    more_rows,
)

# Plain numbers: numpy compares with an enum's member many times slower.
_PREFILL, _DECODE = int(Phase.PREFILL), int(Phase.DECODE)


@dataclass(frozen=True)
class StepPlan:
    """One step. preempt: replies that give their pages back before it; admit: those that get a row.

    decode: replies that draw a token; prefill: (reply, tokens to feed), and one with no more to feed then
    draws as well. caps: hidden-token caps of the replies at cap_indices, for the reflection that is open
    (never higher than it has) or, where none is, for the next. wake_s: with nothing to do, when to plan
    again.
    """

    admit: list[int] = field(default_factory=list)
    preempt: list[int] = field(default_factory=list)
    decode: TableIndices = field(default_factory=NO_INDICES.copy)
    prefill: list[tuple[int, int]] = field(default_factory=list)
    cap_indices: TableIndices = field(default_factory=NO_INDICES.copy)
    caps: TableIndices = field(default_factory=NO_INDICES.copy)
    wake_s: float = math.inf


def plan_step(
    columns: ReplyColumns, costs: LearnedCosts, settings: SchedulerSettings, now: float, pages_free: int
) -> StepPlan:
    """The next step. pages_free: pages that can be had without taking them from a running reply."""
    rows = columns.rows
    runs = (rows.phase == _PREFILL) | (rows.phase == _DECODE)
    admit = admit_rows(rows, costs, settings, runs, pages_free)
    if admit:
        runs[admit] = True
    is_fed = rows.prompt_left == 0
    able = runs & ~(rows.is_blocked | (rows.is_waiting & is_fed))
    draws = able & is_fed & ~rows.is_listening
    made = settings.planner.draft(rows, costs, settings, now, able, draws)
    return _finish(rows, settings, made, admit, runs, pages_free)


def plan_voice(
    columns: ReplyColumns, costs: LearnedCosts, settings: SchedulerSettings, now: float, *, idle: bool
) -> VoicePlan:
    """Plan the codec's next call, by the policy. idle: the language model has nothing to do."""
    indices = columns.indices
    ready = indices[columns.chunks_ready[indices] > 0]
    if not len(ready):
        return VoicePlan(ready)
    return settings.planner.codec(columns, ready, costs, settings, now, idle=idle)


def _finish(
    rows: Columns,
    settings: SchedulerSettings,
    made: DraftStep,
    admit: list[int],
    runs: NDArray[np.bool_],
    pages_free: int,
) -> StepPlan:
    """Make the plan of a drafted step.

    Where its pages cannot be had, they are taken back from others, and rows taken out, until they can.
    """
    most = len(made.decode) + more_rows(rows, made.decode)
    for table_index, num in made.prefill:
        most += num // settings.page_size + 2 * (1 + int(rows.more_rows[table_index]))
    if most <= pages_free:
        return StepPlan(admit, [], made.decode, made.prefill, made.cap_rows, made.caps, made.wake_s)
    filled, takes = rows.context - rows.prompt_left, np.zeros(len(rows.phase), np.bool_)
    filled[made.decode] += 1
    takes[made.decode] = True
    for table_index, num in made.prefill:
        filled[table_index] += num + (
            num == rows.prompt_left[table_index] and not rows.is_listening[table_index]
        )
        takes[table_index] = True
    need = np.maximum(num_pages(filled, settings) - rows.pages, 0) * takes
    missing = int(need.sum()) - pages_free
    if missing <= 0:
        return StepPlan(admit, [], made.decode, made.prefill, made.cap_rows, made.caps, made.wake_s)
    victims, gone = take_back(rows, settings, np.flatnonzero(runs), need, missing)
    return StepPlan(
        [table_index for table_index in admit if not gone[table_index]],
        [table_index for table_index in victims if table_index not in admit],
        made.decode[~gone[made.decode]],
        [pair for pair in made.prefill if not gone[pair[0]]],
        made.cap_rows,
        made.caps,
        made.wake_s,
    )
