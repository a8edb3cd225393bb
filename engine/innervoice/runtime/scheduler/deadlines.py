"""Replies in time: how soon each must have its next sound, what that leaves for reflection, and who must draw
now.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.settings import PlanConstants
from innervoice.runtime.scheduler.table import NO_INDICES, Columns, TableIndices, first_rows, more_rows
from innervoice_kernels.sampling.cursor_columns import UNLIMITED


class Outlook(NamedTuple):
    """All replies, in time, as if those that could draw did so in every step.

    rows: what is known of them; draws: which of them could draw; num_rows: of a step that they take. step_s: from one such
    step to the next. left_s: until the tokens of the next chunk must be there; room_s: what is left of that beside
    its spoken tokens and a margin; token_s: how long each of these tokens may take. All three are +inf for
    those that cannot draw or that have no listener.
    """

    rows: Columns
    draws: NDArray[np.bool_]
    num_rows: int
    step_s: float
    left_s: NDArray[np.float64]
    room_s: NDArray[np.float64]
    token_s: NDArray[np.float64]


def look_ahead(
    rows: Columns, draws: NDArray[np.bool_], costs: LearnedCosts, settings: PlanConstants, now: float
) -> Outlook:
    """Look at all replies in time. Sound that is ready for the codec counts as unplayed.

    A first sound is due first_audio_stretch times its floor after the question; the floor is what a reply
    takes that is alone.
    """
    num, more = int(np.count_nonzero(draws)), more_rows(rows, draws)
    step_s = costs.between_steps_s(num, more)
    now += costs.voice.estimate(min(4, num))
    left_s = rows.sound_end_s + rows.ready_s - (now + settings.margin_s)
    tokens = rows.spoken_left
    cost_s = tokens * (step_s * (1 + settings.margin_share))
    listens = draws & rows.is_live
    first = np.flatnonzero(listens & ~rows.has_sound)
    if len(first):
        hides = np.maximum(rows.hidden_cap[first] - rows.hidden_count[first], 0) * rows.is_reflecting[first]
        tokens = tokens.copy()
        tokens[first] += hides
        drawn = rows.num_drawn[first] + tokens[first]
        alone_s = costs.first_audio_s(rows.prompt_len[first], drawn, rows.more_rows[first])
        left_s[first] = rows.submitted_s[first] + settings.first_audio_stretch * alone_s - now
        cost_s[first] = tokens[first] * step_s
    left_s[~listens] = math.inf
    room_s, token_s = left_s - cost_s, left_s / np.maximum(tokens, 1)
    return Outlook(rows, draws, num + more, step_s, left_s, room_s, token_s)


def grant(settings: PlanConstants, outlook: Outlook) -> TableIndices:
    """Hidden-token caps: what the unplayed sound pays for beside the next chunk's cost, from floor to most.

    cap = clip(floor((room - reserve) / step), floor, most), counted from the beginning of an open reflection,
    which is only ever lowered. A reply whose sound has not begun, or that has no listener, has what its
    schedule allows; it pays with its first sound, as its schedule asks.
    """
    rows, most = outlook.rows, outlook.rows.hidden_most
    opened = rows.is_reflecting
    count = rows.hidden_count * opened
    pace = 1 / outlook.step_s if outlook.step_s > 0 else 1e9
    cap = np.floor(np.minimum((outlook.room_s - settings.reserve_s) * pace, UNLIMITED)) + count
    if settings.reflection_rate is not None:
        sound_s = rows.sound_total_s + rows.unvoiced_s + rows.chunk_s
        cap = np.minimum(cap, np.ceil(settings.reflection_rate * sound_s) - rows.hidden_total + count)
    cap = np.where(rows.is_live & rows.has_sound, np.maximum(cap, rows.hidden_floor), most)
    return np.minimum(cap, np.where(opened, np.minimum(most, rows.hidden_cap), most)).astype(np.int64)


def choose(
    costs: LearnedCosts,
    settings: PlanConstants,
    now: float,
    outlook: Outlook,
    drawing: TableIndices,
    able: NDArray[np.bool_],
    *,
    feeds_first: bool = False,
) -> TableIndices:
    """Choose the replies that draw: all, or those with the least room, as few as the most urgent of them asks
    for.

    But no fewer than have run out of room or have waited too long, than a step takes along at little cost,
    and, once the reserve of any listener is half spent, than keep pace with what all listeners hear. feeds_first:
    the step feeds the prompt of a reply whose listener waits for a first sound. Prompts are bound by arithmetic, where
    every row makes the step longer: none comes along.
    """
    most = min(settings.max_batch, outlook.num_rows)
    if most == 0:
        return NO_INDICES
    allowed_s = float(np.min(outlook.token_s)) / costs.stretch
    if not feeds_first and most == outlook.num_rows and costs.decode.estimate(most) <= allowed_s:
        return drawing
    rows, room_s = outlook.rows, outlook.room_s[drawing]
    urgent = room_s < 0
    starved = rows.served_s[drawing] < now - settings.starve_s
    short = rows.has_sound[drawing] & (room_s < 0.5 * settings.reserve_s)
    pace = costs.decode.least_at(_demand(settings, rows, able) * costs.stretch, most) if short.any() else 1
    needy = urgent | starved
    size = max(pace, int(np.count_nonzero(needy)) + more_rows(rows, drawing[needy]), 1)
    if not feeds_first:
        size = max(size, costs.decode.most_within(allowed_s, most))
        size = max(size, costs.decode.most_within(costs.decode.estimate(size) * (1 + settings.plateau), most))
    return first_rows(rows, drawing[_rank(rows, drawing, room_s, urgent, starved)], min(size, most))


def _rank(
    rows: Columns,
    indices: TableIndices,
    room_s: NDArray[np.float64],
    urgent: NDArray[np.bool_],
    starved: NDArray[np.bool_],
) -> TableIndices:
    """Who waited too long, then priority, then those whose sound runs out, then the least room, then arrival."""
    key = np.minimum(room_s, 1e6 + 1e-3 * rows.order[indices])  # those without a listener: by arrival
    key[urgent] -= 1e6
    priority = rows.priority[indices]
    if priority.any() or starved.any():
        return np.lexsort((key, -priority, ~starved))
    return np.argsort(key, kind="stable")


def _demand(settings: PlanConstants, rows: Columns, able: NDArray[np.bool_]) -> float:
    """Rows a second of the tokens that listeners hear, and of hidden ones that the settings ask for."""
    listens = able & rows.is_live
    rates = rows.spoken_rate[listens] * (1 + rows.more_rows[listens])
    return float(rates.sum()) + (settings.reflection_rate or 0.0) * (len(rates) + more_rows(rows, listens))
