"""The codec's next call: the replies whose chunks it makes, as `slack` chooses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import NO_INDICES, Phase, ReplyColumns, TableIndices

_WAITING = int(Phase.WAITING)
_SPLIT_SHARE = 0.1  # of what the calls of a split one cost, how much more they may cost


@dataclass(frozen=True)
class VoicePlan:
    """The replies whose next chunk the codec makes now, and, when there are none, when to ask again."""

    indices: TableIndices = field(default_factory=NO_INDICES.copy)
    wake_s: float = math.inf


def choose_chunks(
    columns: ReplyColumns,
    ready: TableIndices,
    costs: LearnedCosts,
    settings: PlanConstants,
    now: float,
    *,
    idle: bool,
) -> VoicePlan:
    """Choose among the replies that are ready for the codec. idle: the language model has nothing to do.

    First sound and sound that runs out are made at once; beside a first sound, only chunks that would else
    come too late. Other chunks wait while a first sound is in the making, and until there are so many that a
    call's own cost no longer counts; then so many are made as take about a step, or twice as long as one of
    them. They come along with others where they cost next to nothing. Where several calls take no longer than
    one, those in need are made in several, late sound before first sound.
    """
    indices = columns.indices
    live, sounding = columns.is_live[ready], columns.has_sound[ready]
    num = len(ready)
    voice_s, step_s = costs.voice.estimate(num), costs.decode.estimate(len(indices)) * costs.stretch
    latest_s = np.where(live & sounding, columns.sound_end_s[ready], math.inf)
    latest_s -= voice_s + step_s + settings.margin_s + settings.horizon_s
    first = live & ~sounding
    if first.any():
        latest_s += settings.horizon_s  # what only would be late soon lets first sounds pass
    latest_s[first] = -math.inf
    due = (latest_s <= now) | (now - columns.served_s[ready] > settings.starve_s)
    num_due = int(np.count_nonzero(due))
    order = np.lexsort((latest_s, np.where(due, first, 2)))
    if idle or (_pays(costs, num, settings) and not _first_is_near(columns, indices)):
        patience_s = max(step_s, 2 * costs.voice.estimate(1), costs.voice.estimate(num_due))
        size = max(num_due, costs.voice.most_within(patience_s, num))
    elif num_due:
        size = max(
            num_due, costs.voice.most_within(costs.voice.estimate(num_due) * (1 + settings.plateau), num)
        )
    else:
        return VoicePlan(NO_INDICES, float(np.min(latest_s)))
    return VoicePlan(ready[order][: _undivided(costs, size, step_s)])


def _undivided(costs: LearnedCosts, size: int, step_s: float) -> int:
    """How many of so many chunks one call makes: fewer where that costs nothing, because none is heard before
    all are made.

    A call that is over within a step is not divided: a step of tokens comes behind each.
    """
    voice = costs.voice
    few = voice.most_within(max(step_s, 2 * voice.estimate(1)), size)
    if 0 < few < size and voice.estimate(size) >= (1 - _SPLIT_SHARE) * size / few * voice.estimate(few):
        return few
    return size


def _first_is_near(columns: ReplyColumns, indices: TableIndices) -> bool:
    """Whether a listener waits for the first sound of a reply that has its row."""
    waits = (
        columns.is_live[indices]
        & ~columns.has_sound[indices]
        & (columns.phase[indices] != _WAITING)
        & ~columns.is_listening[indices]
    )
    return bool(waits.any())


def _pays(costs: LearnedCosts, num: int, settings: PlanConstants) -> bool:
    """Whether waiting for more chunks saves little: a call of twice as many costs nearly twice as much."""
    return costs.voice.estimate(2 * num) >= 2 * costs.voice.estimate(num) * (1 - settings.batching_share)
