"""The policy `slack`: the earliest playback deadline first, and reflection by the sound that is left.

Why it holds. As long as the weights' way from memory limits a step, many rows cost little more than few, so
all draw in every step unless a reply would miss its deadline by that. Work is moved in time, not added: a reply
reflects while its unplayed sound covers the next chunk with a margin, and what it could not do early, because
its first chunk was short or the machine was busy, it does later. Once it is frontier_s ahead of its listener
it rests, and those with less sound go faster; so a burst meets buffers of seconds. What gives way first is
reflection: its cap is what the sound leaves beside the next chunk, and that chunk costs more as the load
grows. A first sound narrows the step to fewer rows, fewest while its prompt is fed, but never below the pace
of all that is heard, and never at the cost of sound that runs out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.codec_plan import VoicePlan, choose_chunks
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.deadlines import Outlook, choose, grant, look_ahead
from innervoice.runtime.scheduler.draft import DraftStep, feed_prompts
from innervoice.runtime.scheduler.policy import Policy, SpokenLoad
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import Columns, ReplyColumns, TableIndices

_LEAST_PREFILL = 32  # prompt tokens of a step for one that has waited too long, however urgent the others are


class SlackPolicy(Policy):
    """Earliest playback deadline first; generation rests at the frontier, and reflection has what the
    deadlines leave.
    """

    name = "slack"
    others = "others have less slack"

    def has_room(self, load: SpokenLoad, costs: LearnedCosts, settings: PlanConstants) -> bool:
        """Return whether the machine would keep pace with one more; it does with the first."""
        return load.num == 0 or load.with_one_more(costs) <= settings.max_load

    def draft(
        self,
        rows: Columns,
        costs: LearnedCosts,
        settings: PlanConstants,
        now: float,
        able: NDArray[np.bool_],
        draws: NDArray[np.bool_],
    ) -> DraftStep:
        """Let replies at the frontier rest, feed prompts within the others' slack, then choose who draws and
        grant caps.
        """
        ahead_s = rows.sound_end_s + rows.unvoiced_s
        rests = (
            draws
            & (ahead_s > now + settings.frontier_s)
            & ~rows.is_reflecting
            & rows.has_sound
            & rows.is_live
        )
        wake_s = math.inf
        if rests.any():
            wake_s = float(np.min(ahead_s[rests])) - settings.frontier_s
            draws = draws & ~rests
        outlook = look_ahead(rows, draws, costs, settings, now)
        drawing = np.flatnonzero(draws)
        waiting = able & (rows.prompt_left > 0)
        budget = _prefill_len(costs, settings, now, outlook, waiting) if waiting.any() else 0
        prefill = feed_prompts(rows, budget, waiting)
        feeds_first = any(
            rows.is_live[table_index] and not rows.is_listening[table_index] for table_index, _ in prefill
        )
        chosen = choose(costs, settings, now, outlook, drawing, able, feeds_first=feeds_first)
        return DraftStep(chosen, prefill, drawing, grant(settings, outlook)[drawing], wake_s)

    def victims(self, rows: Columns, running: TableIndices) -> TableIndices:
        """Sort by who needs pages least: unread replies, those that wait for ids, low priority, no listener, most unplayed sound,
        latest arrival.
        """
        latest = -rows.order[running]
        sound = -(rows.sound_end_s[running] + rows.unvoiced_s[running])
        idle = rows.is_blocked[running] | rows.is_waiting[running]
        keys = (latest, sound, rows.is_live[running], rows.priority[running], ~idle)
        return running[np.lexsort(keys)]

    def codec(
        self,
        columns: ReplyColumns,
        ready: TableIndices,
        costs: LearnedCosts,
        settings: PlanConstants,
        now: float,
        *,
        idle: bool,
    ) -> VoicePlan:
        """Make first and late sound at once, and the rest when that costs little."""
        return choose_chunks(columns, ready, costs, settings, now, idle=idle)

    def why_left_out(
        self, columns: ReplyColumns, table_index: int, settings: PlanConstants, ahead_s: float
    ) -> tuple[str, Mapping[str, object]]:
        """Name the frontier, or the others' smaller slack."""
        if (
            columns.is_live[table_index]
            and ahead_s > settings.frontier_s
            and not columns.is_reflecting[table_index]
        ):
            return "paused at the frontier", {"ahead_s": round(ahead_s, 3), "frontier_s": settings.frontier_s}
        return super().why_left_out(columns, table_index, settings, ahead_s)

    def why_preempted(self, columns: ReplyColumns, table_index: int, ahead_s: float) -> str:
        """Name the reason why others need the pages more."""
        if columns.is_blocked[table_index]:
            return "others need pages, and its reader is behind"
        if not columns.is_live[table_index]:
            return "others need pages, and it has no listener"
        return f"others need pages, and its sound lasts {ahead_s:.3f} s, or its priority is low"


def _prefill_len(
    costs: LearnedCosts, settings: PlanConstants, now: float, outlook: Outlook, waiting: NDArray[np.bool_]
) -> int:
    """Prompt tokens that a step may feed: they take at most half of what the listener with the least sound
    can spare.

    A prompt that has waited too long is fed a few nevertheless.
    """
    rows, most = outlook.rows, settings.prefill_chunk
    if costs.prefill_token_s <= 0:
        return most
    spare_s = outlook.left_s - rows.spoken_left * costs.decode.estimate(outlook.num_rows)
    heard = rows.has_sound & ~rows.is_waiting
    least_s = float(np.min(spare_s, initial=math.inf, where=heard)) + settings.margin_s
    num = int(min(max(0.5 * least_s / costs.prefill_token_s, 0), most))
    if num < _LEAST_PREFILL and (rows.served_s[waiting] < now - settings.starve_s).any():
        return min(_LEAST_PREFILL, most)
    return num
