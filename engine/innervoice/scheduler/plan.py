"""Who gets the next step: a pure function of what is known of the replies, what a step costs, and the time.

Why it holds. Below the point where matrix products are limited by arithmetic a larger step costs little more than a small one, so
all rows draw in every step unless somebody would come too late by that. Work is moved in time, not added: a reply reflects while
its unplayed sound covers the next chunk with a margin, and what it did not use early, because its first chunk was short or the
machine was busy, it uses later; it rests once it is frontier_s ahead of its listener, and gives its place to those with less. So a
burst finds buffers of seconds where arrival order has whatever chance left. What gives way first is reflection: a cap is what is
left of the sound over the cost of the next chunk, and that cost grows with the load. A first sound narrows the step to fewer rows,
never below what the others need to keep pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from innervoice.scheduler.costs import LearnedCosts
from innervoice.scheduler.jobs import Columns, Jobs, Phase, Places
from innervoice.scheduler.settings import SchedulerSettings

NOBODY: Places = np.zeros(0, np.int64)
_LEAST_PREFILL = 32  # prompt tokens of a step for one that has waited too long, however urgent the others are
_UNLIMITED = 2**31 - 1
# Plain numbers: numpy compares with an enum's member many times slower.
_WAITING, _PREFILL, _DECODE = int(Phase.WAITING), int(Phase.PREFILL), int(Phase.DECODE)


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


class Outlook(NamedTuple):
    """All replies, in time, as if those that could draw did so in every step.

    rows: what is known of them; draws: which of them could draw. step_s: from one such step to the next. left_s: until the tokens of
    the next chunk must be there; room_s: what is left of that beside its spoken tokens and the margin; token_s: how long each of
    these tokens may take. All three are +inf for those that cannot draw or that nobody listens to.
    """

    rows: Columns
    draws: NDArray[np.bool_]
    num: int
    step_s: float
    left_s: NDArray[np.float64]
    room_s: NDArray[np.float64]
    token_s: NDArray[np.float64]


def look_ahead(rows: Columns, draws: NDArray[np.bool_], costs: LearnedCosts, settings: SchedulerSettings, now: float) -> Outlook:
    """The outlook. Sound that is ready for the codec counts as unplayed; a first sound is due first_audio_stretch times its floor after

    the question, the floor being what a reply takes that is alone.
    """
    num = int(np.count_nonzero(draws))
    step_s = costs.decode.estimate(num) * costs.stretch
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
        alone_s = costs.first_audio_s(rows.prompt_len[first], rows.num_drawn[first] + tokens[first])
        left_s[first] = rows.submitted_s[first] + settings.first_audio_stretch * alone_s - now
        cost_s[first] = tokens[first] * step_s
    left_s[~listens] = math.inf
    room_s, token_s = left_s - cost_s, left_s / np.maximum(tokens, 1)
    return Outlook(rows, draws, num, step_s, left_s, room_s, token_s)


def plan_step(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, pages_free: int) -> StepPlan:
    """The next step. pages_free: pages that can be had without taking them from a running reply."""
    rows = jobs.rows
    runs = (rows.phase == _PREFILL) | (rows.phase == _DECODE)
    admit = _admit(rows, costs, settings, runs, pages_free)
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
        made = _Step(drawing, _prefill(rows, settings.prefill_chunk, able & (rows.prompt_left > 0)), drawing, caps)
    return _finish(rows, settings, made, admit, runs, pages_free)


class _Step(NamedTuple):
    """A step as it would be if pages were endless."""

    decode: Places
    prefill: list[tuple[int, int]]
    cap_rows: Places
    caps: Places
    wake_s: float = math.inf


def _slack_step(
    rows: Columns,
    costs: LearnedCosts,
    settings: SchedulerSettings,
    now: float,
    able: NDArray[np.bool_],
    draws: NDArray[np.bool_],
) -> _Step:
    ahead_s = rows.sound_end_s + rows.unvoiced_s
    rests = draws & (ahead_s > now + settings.frontier_s) & ~rows.is_reflecting & rows.has_sound & rows.is_live
    wake_s = math.inf
    if rests.any():
        wake_s = float(np.min(ahead_s[rests])) - settings.frontier_s
        draws = draws & ~rests
    outlook = look_ahead(rows, draws, costs, settings, now)
    drawing = np.flatnonzero(draws)
    chosen = _choose(costs, settings, now, outlook, drawing, able)
    waiting = able & (rows.prompt_left > 0)
    budget = _prefill_len(costs, settings, now, outlook, waiting) if waiting.any() else 0
    prefill = _prefill(rows, budget, waiting)
    return _Step(chosen, prefill, drawing, grant(settings, outlook)[drawing], wake_s)


def grant(settings: SchedulerSettings, outlook: Outlook) -> Places:
    """Hidden-token caps: what the unplayed sound pays for beside the next chunk's cost, from floor to most.

    cap = clip(floor(room / step), floor, most), counted from the beginning of an open reflection, which is only ever lowered. A
    reply whose sound has not begun, or that nobody listens to, has what its schedule allows; it pays with its first sound, as its
    schedule asks.
    """
    rows, most = outlook.rows, outlook.rows.hidden_most
    opened = rows.is_reflecting
    count = rows.hidden_count * opened
    pace = 1 / outlook.step_s if outlook.step_s > 0 else 1e9
    cap = np.floor(np.minimum(outlook.room_s * pace, _UNLIMITED)) + count
    if settings.reflection_rate is not None:
        sound_s = rows.sound_total_s + rows.unvoiced_s + rows.chunk_s
        cap = np.minimum(cap, np.ceil(settings.reflection_rate * sound_s) - rows.hidden_total + count)
    cap = np.where(rows.is_live & rows.has_sound, np.maximum(cap, rows.hidden_floor), most)
    return np.minimum(cap, np.where(opened, np.minimum(most, rows.hidden_cap), most)).astype(np.int64)


def _choose(
    costs: LearnedCosts, settings: SchedulerSettings, now: float, outlook: Outlook, drawing: Places, able: NDArray[np.bool_]
) -> Places:
    """Who draws: all, or those with the least room, as few as the most urgent of them asks for.

    But no fewer than keep pace with what all listeners hear, than have run out of room or have waited too long, and than a step
    takes along at little cost.
    """
    most = min(settings.max_batch, outlook.num)
    if most == 0:
        return NOBODY
    allowed_s = float(np.min(outlook.token_s)) / costs.stretch
    if most == outlook.num and costs.decode.estimate(most) <= allowed_s:
        return drawing
    rows, room_s = outlook.rows, outlook.room_s[drawing]
    urgent = rows.has_sound[drawing] & (room_s < 0)
    starved = rows.served_s[drawing] < now - settings.starve_s
    pace = costs.decode.least_at(_demand(settings, rows, able) * costs.stretch, most)
    size = max(costs.decode.most_within(allowed_s, most), pace, int(np.count_nonzero(urgent | starved)), 1)
    size = max(size, costs.decode.most_within(costs.decode.estimate(size) * (1 + settings.plateau), most))
    return drawing[_rank(rows, drawing, room_s, urgent, starved)[: min(size, most)]]


def _rank(
    rows: Columns, places: Places, room_s: NDArray[np.float64], urgent: NDArray[np.bool_], starved: NDArray[np.bool_]
) -> Places:
    """Who waited too long, then priority, then those whose sound runs out, then the least room, then arrival."""
    key = np.minimum(room_s, 1e6 + 1e-3 * rows.order[places])  # those that nobody listens to: by arrival
    key[urgent] -= 1e6
    priority = rows.priority[places]
    if priority.any() or starved.any():
        return np.lexsort((key, -priority, ~starved))
    return np.argsort(key, kind="stable")


def _demand(settings: SchedulerSettings, rows: Columns, able: NDArray[np.bool_]) -> float:
    """Tokens a second that listeners hear, and hidden ones that the settings ask for."""
    rates = rows.spoken_rate[able & rows.is_live]
    return float(rates.sum()) + (settings.reflection_rate or 0.0) * len(rates)


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
        prompts = prompts[np.lexsort((rows.order[prompts], -rows.priority[prompts], rows.is_listening[prompts]))]
    for index in prompts.tolist():
        num = min(budget, int(rows.prompt_left[index]))
        if num == 0:
            break
        fed.append((index, num))
        budget -= num
    return fed


def _admit(
    rows: Columns, costs: LearnedCosts, settings: SchedulerSettings, runs: NDArray[np.bool_], pages_free: int
) -> list[int]:
    """Replies that get a row now, in order of priority and arrival; none overtakes one that does not fit.

    A row needs pages for its whole prompt, beside those that are promised to others, and one for each that runs.
    """
    waiting = np.flatnonzero(rows.phase == _WAITING)
    if not len(waiting):
        return []
    if len(waiting) > 1:
        waiting = waiting[np.lexsort((rows.order[waiting], -rows.priority[waiting]))]
    held = np.flatnonzero(runs)
    num_rows = int(np.count_nonzero(rows.phase)) - len(waiting)
    pages_free -= int(np.maximum(_pages(rows.context[held] + 1, settings) - rows.pages[held], 1).sum())
    load = _SpokenLoad.of(rows, held[rows.is_live[held] & ~rows.is_listening[held]])
    chosen = list[int]()
    for index in waiting.tolist():
        needed = _pages(int(rows.context[index]) + 1, settings) - int(rows.pages[index])
        live = bool(rows.is_live[index])
        too_many = settings.policy == "slack" and live and load.num > 0 and load.with_one_more(costs) > settings.max_load
        if num_rows >= settings.max_rows or (needed > pages_free and num_rows > 0) or too_many:
            break
        chosen.append(index)
        num_rows, pages_free, load.num = num_rows + 1, pages_free - needed, load.num + live
    return chosen


@dataclass
class _SpokenLoad:
    """Listeners whose replies have rows; spoken tokens a second and seconds of a chunk, on average."""

    num: int
    rate: float
    chunk_s: float

    @classmethod
    def of(cls, rows: Columns, speaking: Places) -> _SpokenLoad:
        num = max(len(speaking), 1)
        return cls(len(speaking), float(rows.spoken_rate[speaking].sum()) / num, float(rows.chunk_s[speaking].sum()) / num)

    def with_one_more(self, costs: LearnedCosts) -> float:
        """Share of the time that the spoken tokens and the sound of all would take, reflection left out."""
        voice_s = costs.voice.estimate(self.num + 1) / self.chunk_s if self.chunk_s > 0 else 0.0
        return self.rate * costs.decode.estimate(self.num + 1) + voice_s


def _finish(
    rows: Columns,
    settings: SchedulerSettings,
    made: _Step,
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
    need = np.maximum(_pages(filled, settings) - rows.pages, 0) * takes
    missing = int(need.sum()) - pages_free
    if missing <= 0:
        return StepPlan(admit, [], made.decode, made.prefill, made.cap_rows, made.caps, made.wake_s)
    victims, gone = _take_back(rows, settings, np.flatnonzero(runs), need, missing)
    return StepPlan(
        [place for place in admit if not gone[place]],
        [place for place in victims if place not in admit],
        made.decode[~gone[made.decode]],
        [pair for pair in made.prefill if not gone[pair[0]]],
        made.cap_rows,
        made.caps,
        made.wake_s,
    )


def _take_back(
    rows: Columns, settings: SchedulerSettings, running: Places, need: Places, missing: int
) -> tuple[list[int], NDArray[np.bool_]]:
    """Rows that give their pages back, and all that leave the step. The last one is never taken; it waits if it does not fit."""
    victims, gone = list[int](), np.zeros(len(need), np.bool_)
    order = _victims(rows, settings, running)
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


def _victims(rows: Columns, settings: SchedulerSettings, running: Places) -> Places:
    """Who gives pages back, first to last: the latest arrival; under `slack` those whose readers do not read, then those of low

    priority, then those that nobody listens to, then those with the most unplayed sound.
    """
    latest = -rows.order[running]
    if settings.policy != "slack":
        return running[np.argsort(latest, kind="stable")]
    sound = -(rows.sound_end_s[running] + rows.unvoiced_s[running])
    return running[np.lexsort((latest, sound, rows.is_live[running], rows.priority[running], ~rows.is_blocked[running]))]


def _pages(num_tokens: Any, settings: SchedulerSettings) -> Any:
    return -(-num_tokens // settings.page_size)


@dataclass(frozen=True)
class VoicePlan:
    """The replies whose next chunk the codec makes now, and, when there are none, when to ask again."""

    places: Places = field(default_factory=NOBODY.copy)
    wake_s: float = math.inf


def plan_voice(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, *, idle: bool) -> VoicePlan:
    """The codec's next call. idle: the language model has nothing to do.

    First sound and sound that runs out are made at once. Other chunks wait while a first sound is in the making, and until there
    are so many that a call's own cost no longer counts; they come along with others as long as they cost next to nothing.
    """
    places = jobs.places
    ready = places[jobs.chunks_ready[places] > 0]
    if settings.policy != "slack" or not len(ready):
        return VoicePlan(ready)
    live, sounding = jobs.is_live[ready], jobs.has_sound[ready]
    num = len(ready)
    voice_s, step_s = costs.voice.estimate(num), costs.decode.estimate(len(places)) * costs.stretch
    latest_s = np.where(live & sounding, jobs.sound_end_s[ready], math.inf)
    latest_s -= voice_s + step_s + settings.margin_s + settings.horizon_s
    latest_s[live & ~sounding] = -math.inf
    due = (latest_s <= now) | (now - jobs.served_s[ready] > settings.starve_s)
    num_due = int(np.count_nonzero(due))
    order = np.lexsort((latest_s, ~due))
    if idle or (_pays(costs, num, settings) and not _first_is_near(jobs, places)):
        size = num if idle else max(num_due, costs.voice.most_within(max(step_s, costs.voice.estimate(num_due)), num), 1)
    elif num_due:
        size = max(num_due, costs.voice.most_within(costs.voice.estimate(num_due) * (1 + settings.plateau), num))
    else:
        return VoicePlan(NOBODY, float(np.min(latest_s)))
    return VoicePlan(ready[order][:size])


def _first_is_near(jobs: Jobs, places: Places) -> bool:
    """Whether a listener waits for the first sound of a reply that has its row."""
    waits = jobs.is_live[places] & ~jobs.has_sound[places] & (jobs.phase[places] != _WAITING) & ~jobs.is_listening[places]
    return bool(waits.any())


def _pays(costs: LearnedCosts, num: int, settings: SchedulerSettings) -> bool:
    """Whether waiting for more chunks saves little: a call of twice as many costs nearly twice as much."""
    return costs.voice.estimate(2 * num) >= 2 * costs.voice.estimate(num) * (1 - settings.batching_share)
