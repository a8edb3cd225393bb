"""Who gets the next step: a pure function of what is known of the replies, what a step costs, and the time.

Why it holds. As long as the weights' way from memory limits a step, many rows cost little more than few, so all draw in every
step unless somebody would come too late by that. Work is moved in time, not added: a reply reflects while its unplayed sound
covers the next chunk with a margin, and what it could not do early, because its first chunk was short or the machine was busy,
it does later. Once it is frontier_s ahead of its listener it rests, and those with less sound go faster; so a burst meets
buffers of seconds. What gives way first is reflection: its cap is what the sound leaves beside the next chunk, and that chunk
costs more as the load grows. A first sound narrows the step to fewer rows, fewest while its prompt is fed, but never below the
pace of all that is heard, and never at the cost of sound that runs out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.admission import DraftStep, admit_rows, num_pages, take_back
from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.deadlines import Outlook, choose, grant, look_ahead
from innervoice.runtime.scheduler.settings import SchedulerSettings
from innervoice.runtime.scheduler.table import NOBODY, Columns, Phase, Places, ReplyColumns

_LEAST_PREFILL = 32  # prompt tokens of a step for one that has waited too long, however urgent the others are
# Plain numbers: numpy compares with an enum's member many times slower.
_PREFILL, _DECODE = int(Phase.PREFILL), int(Phase.DECODE)


@dataclass(frozen=True)
class StepPlan:
    """One step. preempt: replies that give their pages back before it; admit: those that get a row.

    decode: places that draw a token; prefill: (place, tokens to feed), and who has no more to feed then draws as well. caps:
    hidden-token caps of the replies at cap_places, for the reflection that is open (never higher than it has) or, where none is,
    for the next. wake_s: with nothing to do, when to plan again.
    """

    admit: list[int] = field(default_factory=list)
    preempt: list[int] = field(default_factory=list)
    decode: Places = field(default_factory=NOBODY.copy)
    prefill: list[tuple[int, int]] = field(default_factory=list)
    cap_places: Places = field(default_factory=NOBODY.copy)
    caps: Places = field(default_factory=NOBODY.copy)
    wake_s: float = math.inf


def plan_step(
    jobs: ReplyColumns, costs: LearnedCosts, settings: SchedulerSettings, now: float, pages_free: int
) -> StepPlan:
    """The next step. pages_free: pages that can be had without taking them from a running reply."""
    rows = jobs.rows
    runs = (rows.phase == _PREFILL) | (rows.phase == _DECODE)
    admit = admit_rows(rows, costs, settings, runs, pages_free)
    if admit:
        runs[admit] = True
    able = runs & ~rows.is_blocked
    draws = able & (rows.prompt_left == 0) & ~rows.is_listening
    if settings.policy == "slack":
        made = _slack_step(rows, costs, settings, now, able, draws)
    else:
        drawing = np.flatnonzero(draws)
        drawing = drawing[np.argsort(rows.order[drawing], kind="stable")][: settings.max_batch]
        caps = rows.hidden_most[drawing]
        if settings.policy == "fixed":
            caps = np.minimum(caps, settings.fixed_hidden)
        made = DraftStep(
            drawing, _prefill(rows, settings.prefill_chunk, able & (rows.prompt_left > 0)), drawing, caps
        )
    return _finish(rows, settings, made, admit, runs, pages_free)


def _slack_step(
    rows: Columns,
    costs: LearnedCosts,
    settings: SchedulerSettings,
    now: float,
    able: NDArray[np.bool_],
    draws: NDArray[np.bool_],
) -> DraftStep:
    ahead_s = rows.sound_end_s + rows.unvoiced_s
    rests = (
        draws & (ahead_s > now + settings.frontier_s) & ~rows.is_reflecting & rows.has_sound & rows.is_live
    )
    wake_s = math.inf
    if rests.any():
        wake_s = float(np.min(ahead_s[rests])) - settings.frontier_s
        draws = draws & ~rests
    outlook = look_ahead(rows, draws, costs, settings, now)
    drawing = np.flatnonzero(draws)
    waiting = able & (rows.prompt_left > 0)
    budget = _prefill_len(costs, settings, now, outlook, waiting) if waiting.any() else 0
    prefill = _prefill(rows, budget, waiting)
    feeds_first = any(rows.is_live[place] and not rows.is_listening[place] for place, _ in prefill)
    chosen = choose(costs, settings, now, outlook, drawing, able, feeds_first=feeds_first)
    return DraftStep(chosen, prefill, drawing, grant(settings, outlook)[drawing], wake_s)


def _prefill_len(
    costs: LearnedCosts, settings: SchedulerSettings, now: float, outlook: Outlook, waiting: NDArray[np.bool_]
) -> int:
    """Prompt tokens that a step may feed: they take at most half of what the listener with the least sound can spare.

    A prompt that has waited too long is fed a few nevertheless.
    """
    rows, most = outlook.rows, settings.prefill_chunk
    if costs.prefill_token_s <= 0:
        return most
    spare_s = outlook.left_s - rows.spoken_left * costs.decode.estimate(outlook.num)
    least_s = float(np.min(spare_s, initial=math.inf, where=rows.has_sound)) + settings.margin_s
    num = int(min(max(0.5 * least_s / costs.prefill_token_s, 0), most))
    if num < _LEAST_PREFILL and (rows.served_s[waiting] < now - settings.starve_s).any():
        return min(_LEAST_PREFILL, most)
    return num


def _prefill(rows: Columns, budget: int, waiting: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Prompts in order: those that wait to draw before those of users who still speak."""
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


def _finish(
    rows: Columns,
    settings: SchedulerSettings,
    made: DraftStep,
    admit: list[int],
    runs: NDArray[np.bool_],
    pages_free: int,
) -> StepPlan:
    """The step by places. Where its pages cannot be had, they are taken back from others, and rows taken out, until they can."""
    most = len(made.decode) + sum(num // settings.page_size + 2 for _, num in made.prefill)
    if most <= pages_free:
        return StepPlan(admit, [], made.decode, made.prefill, made.cap_rows, made.caps, made.wake_s)
    filled, takes = rows.context - rows.prompt_left, np.zeros(len(rows.phase), np.bool_)
    filled[made.decode] += 1
    takes[made.decode] = True
    for place, num in made.prefill:
        filled[place] += num + (num == rows.prompt_left[place] and not rows.is_listening[place])
        takes[place] = True
    need = np.maximum(num_pages(filled, settings) - rows.pages, 0) * takes
    missing = int(need.sum()) - pages_free
    if missing <= 0:
        return StepPlan(admit, [], made.decode, made.prefill, made.cap_rows, made.caps, made.wake_s)
    victims, gone = take_back(rows, settings, np.flatnonzero(runs), need, missing)
    return StepPlan(
        [place for place in admit if not gone[place]],
        [place for place in victims if place not in admit],
        made.decode[~gone[made.decode]],
        [pair for pair in made.prefill if not gone[pair[0]]],
        made.cap_rows,
        made.caps,
        made.wake_s,
    )
