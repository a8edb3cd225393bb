"""Who gets the next step: a pure function of what is known of the replies, what a step costs, and the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from innervoice.scheduler.costs import LearnedCosts
from innervoice.scheduler.jobs import Jobs, Phase, Places
from innervoice.scheduler.settings import SchedulerSettings

NOBODY: Places = np.zeros(0, np.int64)
_LEAST_PREFILL = 32  # prompt tokens of a step, however urgent the others are


@dataclass(frozen=True)
class StepPlan:
    """One step. preempt: replies that give their pages back before it; admit: those that get a row.

    decode: places that draw a token; prefill: (place, tokens to feed). caps: hidden-token caps of the replies at cap_places, for
    the reflection that is open or, where none is, for the next. wake_s: with nothing to do, when to plan again.
    """

    admit: list[int] = field(default_factory=list)
    preempt: list[int] = field(default_factory=list)
    decode: Places = field(default_factory=NOBODY.copy)
    prefill: list[tuple[int, int]] = field(default_factory=list)
    cap_places: Places = field(default_factory=NOBODY.copy)
    caps: Places = field(default_factory=NOBODY.copy)
    wake_s: float = math.inf


@dataclass(frozen=True)
class Outlook:
    """Every running reply's place in time, under the assumption that all of them take part in every step.

    step_s: such a step. spare_s: what is left of the unplayed sound (or of the time to first sound) once the next chunk of sound
    is made, by place; token_s: how long a token may take, at most; both +inf where nobody listens.
    """

    places: Places
    step_s: float
    spare_s: NDArray[np.float64]
    room_s: NDArray[np.float64]
    token_s: NDArray[np.float64]


def look_ahead(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, places: Places) -> Outlook:
    """room_s is spare_s before the hidden tokens that an open reflection may still take."""
    step_s = costs.decode.estimate(len(places)) * costs.stretch
    voice_s = costs.voice.estimate(min(4, len(places)))
    live, sounding = jobs.is_live[places], jobs.has_sound[places]
    spoken = jobs.spoken_left[places]
    floor_s = costs.first_audio_s(jobs.context[places], spoken)
    due_s = np.where(sounding, jobs.sound_end_s[places], jobs.submitted_s[places] + settings.first_audio_stretch * floor_s)
    margin_s = np.where(sounding, settings.margin_s, 0.0)
    left_s = due_s - now - voice_s - margin_s
    room_s = left_s - spoken * step_s * (1 + np.where(sounding, settings.margin_share, 0.0))
    hidden = np.where(jobs.is_reflecting[places], np.maximum(jobs.hidden_cap[places] - jobs.hidden_count[places], 0), 0)
    token_s = left_s / np.maximum(spoken + hidden, 1)
    spare_s = room_s - hidden * step_s
    for column in (room_s, spare_s, token_s):
        column[~live] = math.inf
    return Outlook(places, step_s, spare_s, room_s, token_s)


def plan_step(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, pages_free: int) -> StepPlan:
    """The next step. pages_free: pages that can be had without taking them from a running reply."""
    places = jobs.places
    admit, pages_free = _admit(jobs, costs, settings, now, places, pages_free)
    phase = jobs.phase[places]
    runs = (phase == Phase.PREFILL) | (phase == Phase.DECODE)
    runs[np.isin(places, admit)] = True
    running = places[runs]
    if not len(running):
        return StepPlan(admit)
    can_go = ~jobs.is_blocked[running]
    draws = can_go & (jobs.phase[running] == Phase.DECODE)
    if settings.policy == "slack":
        return _slack_step(jobs, costs, settings, now, running, draws, admit, pages_free)
    drawing = running[draws]
    drawing = drawing[np.argsort(jobs.order[drawing], kind="stable")][: settings.max_batch]
    prefill = _prefill(jobs, settings.prefill_chunk, running[can_go])
    fixed = settings.policy == "fixed"
    caps = np.minimum(jobs.hidden_most[drawing], settings.fixed_hidden) if fixed else jobs.hidden_most[drawing]
    return _fit_pages(jobs, settings, StepPlan(admit, [], drawing, prefill, drawing, caps), running, pages_free)


def _slack_step(
    jobs: Jobs,
    costs: LearnedCosts,
    settings: SchedulerSettings,
    now: float,
    running: Places,
    draws: NDArray[np.bool_],
    admit: list[int],
    pages_free: int,
) -> StepPlan:
    ahead_s = jobs.sound_end_s[running] + jobs.unvoiced_s[running] - now
    far = draws & jobs.is_live[running] & jobs.has_sound[running] & (ahead_s > settings.frontier_s)
    rests = far & ~jobs.is_reflecting[running]
    drawing = running[draws & ~rests]
    outlook = look_ahead(jobs, costs, settings, now, drawing)
    caps = grant(jobs, settings, outlook)
    shrunk = np.minimum(jobs.hidden_cap[drawing], caps)
    outlook = _with_caps(jobs, outlook, np.where(jobs.is_reflecting[drawing], shrunk, caps))
    chosen = drawing[_choose(jobs, costs, settings, now, outlook)]
    prefill = _prefill(jobs, _prefill_len(jobs, costs, settings, outlook), running[~jobs.is_blocked[running]])
    wake_s = now + float(np.min(ahead_s[rests] - settings.frontier_s)) if rests.any() else math.inf
    made = StepPlan(admit, [], chosen, prefill, drawing, caps, wake_s)
    return _fit_pages(jobs, settings, made, running, pages_free)


def grant(jobs: Jobs, settings: SchedulerSettings, outlook: Outlook) -> Places:
    """Hidden-token caps by place: what the unplayed sound pays for beside the next chunk's cost, from floor to most.

    cap = clip(floor(room / step), floor, most), counted from the beginning of an open reflection. A reply whose sound has
    not begun, or that nobody listens to, has what its schedule allows; it pays with its first sound, as its schedule asks.
    """
    places = outlook.places
    most, count = jobs.hidden_most[places], np.where(jobs.is_reflecting[places], jobs.hidden_count[places], 0)
    pays = jobs.is_live[places] & jobs.has_sound[places]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        affordable = np.floor(outlook.room_s / outlook.step_s) if outlook.step_s > 0 else np.full(len(places), math.inf)
    cap = np.where(pays, count + np.clip(np.nan_to_num(affordable, posinf=2**31), 0, 2**31), most)
    if settings.reflection_rate is not None:
        sound_s = jobs.sound_total_s[places] + jobs.unvoiced_s[places] + jobs.chunk_s[places]
        before = jobs.hidden_total[places] - count
        cap = np.where(pays, np.minimum(cap, np.ceil(settings.reflection_rate * sound_s) - before), cap)
    return np.minimum(np.maximum(cap, jobs.hidden_floor[places]), most).astype(np.int64)


def _with_caps(jobs: Jobs, outlook: Outlook, caps: Places) -> Outlook:
    """The outlook once open reflections have these caps."""
    places = outlook.places
    hidden = np.where(jobs.is_reflecting[places], np.maximum(caps - jobs.hidden_count[places], 0), 0)
    spare_s = outlook.room_s - hidden * outlook.step_s
    return Outlook(places, outlook.step_s, spare_s, outlook.room_s, outlook.token_s)


def _choose(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, outlook: Outlook) -> Places:
    """Indices into the outlook's places: all, or those with the least to spare, as many as leave the urgent ones in time."""
    places, most = outlook.places, settings.max_batch
    if not len(places):
        return NOBODY
    rank = np.lexsort((jobs.order[places], outlook.spare_s, -jobs.priority[places]))
    starved = now - jobs.served_s[places] > settings.starve_s
    rank = np.concatenate([rank[starved[rank]], rank[~starved[rank]]])
    allowed_s = float(np.min(outlook.token_s)) / costs.stretch
    if costs.decode.estimate(len(places)) <= allowed_s:
        return rank[:most]
    urgent = max(1, int(np.count_nonzero(starved | (outlook.spare_s < settings.horizon_s))))
    allowed_s = max(allowed_s, costs.decode.estimate(urgent) * (1 + settings.plateau))
    return rank[: min(most, max(urgent, costs.decode.most_within(allowed_s, len(places))))]


def _prefill_len(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, outlook: Outlook) -> int:
    """Prompt tokens that a step may feed without making a listener wait."""
    sounding = jobs.has_sound[outlook.places]
    if costs.prefill_token_s <= 0 or not sounding.any():
        return settings.prefill_chunk
    spare_s = float(np.min(outlook.spare_s[sounding]))
    if spare_s == math.inf:
        return settings.prefill_chunk
    return int(np.clip(spare_s / costs.prefill_token_s, min(_LEAST_PREFILL, settings.prefill_chunk), settings.prefill_chunk))


def _prefill(jobs: Jobs, budget: int, candidates: Places) -> list[tuple[int, int]]:
    """Prompts in order: those that wait to draw before those of users who still speak."""
    waiting = candidates[jobs.prompt_left[candidates] > 0]
    fed = []
    for place in waiting[np.lexsort((jobs.order[waiting], -jobs.priority[waiting], jobs.is_listening[waiting]))].tolist():
        num = min(budget, int(jobs.prompt_left[place]))
        if num == 0:
            break
        fed.append((place, num))
        budget -= num
    return fed


def _admit(
    jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, places: Places, pages_free: int
) -> tuple[list[int], int]:
    """Replies that get a row now, in order of priority and arrival; none overtakes one that does not fit. And the pages left."""
    waiting = places[jobs.phase[places] == Phase.WAITING]
    if not len(waiting):
        return [], pages_free
    held = places[(jobs.phase[places] != Phase.WAITING) & ~jobs.is_listening[places]]
    num_rows = len(held)
    speaking = held[(jobs.phase[held] != Phase.VOICING) & jobs.is_live[held]]
    num_live, chosen = len(speaking), []
    for place in waiting[np.lexsort((jobs.order[waiting], -jobs.priority[waiting]))].tolist():
        needed = _pages(int(jobs.context[place]) + 1, settings) - int(jobs.pages[place])
        live = bool(jobs.is_live[place])
        too_many = (
            settings.policy == "slack"
            and live
            and num_live > 0
            and spoken_load(jobs, costs, num_live + 1, speaking) > settings.max_load
        )
        if num_rows >= settings.max_rows or (needed > pages_free and num_rows > 0) or too_many:
            break
        chosen.append(place)
        num_rows, num_live, pages_free = num_rows + 1, num_live + live, pages_free - needed
    return chosen, pages_free


def spoken_load(jobs: Jobs, costs: LearnedCosts, num_live: int, speaking: Places) -> float:
    """Share of the time that the spoken tokens and the sound of so many listeners take, reflection left out."""
    rate = float(np.mean(jobs.spoken_rate[speaking])) if len(speaking) else 0.0
    chunk_s = float(np.mean(jobs.chunk_s[speaking])) if len(speaking) else 0.0
    voice_s = costs.voice.estimate(num_live) / chunk_s if chunk_s > 0 else 0.0
    return rate * costs.decode.estimate(num_live) + voice_s


def _fit_pages(jobs: Jobs, settings: SchedulerSettings, made: StepPlan, running: Places, pages_free: int) -> StepPlan:
    """The step with rows taken out, and pages taken back, until its pages can be had."""
    feeds = dict(made.prefill)
    for place in made.decode.tolist():
        feeds[place] = feeds.get(place, 0) + 1
    fed = {place: int(jobs.context[place] - jobs.prompt_left[place]) + num for place, num in feeds.items()}
    need = {place: max(0, _pages(tokens, settings) - int(jobs.pages[place])) for place, tokens in fed.items()}
    missing = sum(need.values()) - pages_free
    if missing <= 0:
        return made
    preempt: list[int] = []
    order = np.lexsort((jobs.order[running], -jobs.sound_end_s[running], jobs.priority[running], ~jobs.is_blocked[running]))
    # Blocked ones first, then those of low priority, then those with the most unplayed sound; the last one is never taken.
    for place in running[order].tolist()[:-1]:
        if missing <= 0:
            break
        if jobs.pages[place] > 0 or need.get(place, 0) > 0:
            preempt.append(place)
            missing -= int(jobs.pages[place]) + need.pop(place, 0)
    gone = np.isin(made.decode, preempt)
    prefill = [(place, num) for place, num in made.prefill if place not in preempt]
    return StepPlan(
        [place for place in made.admit if place not in preempt],
        [place for place in preempt if place not in made.admit],
        made.decode[~gone],
        prefill,
        made.cap_places,
        made.caps,
        made.wake_s,
    )


def _pages(num_tokens: int, settings: SchedulerSettings) -> int:
    return -(-num_tokens // settings.page_size)


@dataclass(frozen=True)
class VoicePlan:
    """The replies whose next chunk the codec makes now, and, when there are none, when to ask again."""

    places: Places = field(default_factory=NOBODY.copy)
    wake_s: float = math.inf


def plan_voice(jobs: Jobs, costs: LearnedCosts, settings: SchedulerSettings, now: float, *, idle: bool) -> VoicePlan:
    """The codec's next call. idle: the language model has nothing to do. First sound and sound that runs out are made at once;

    other chunks come along as long as they cost next to nothing, or are made when they get due.
    """
    places = jobs.places
    ready = places[jobs.chunks_ready[places] > 0]
    if settings.policy != "slack" or not len(ready):
        return VoicePlan(ready)
    voice_s, step_s = costs.voice.estimate(len(ready)), costs.decode.estimate(len(places)) * costs.stretch
    heard = jobs.is_live[ready] & jobs.has_sound[ready]
    # A chunk of a whole one's worth of sound away: others may be ready with it then.
    latest_s = jobs.sound_end_s[ready] - voice_s - step_s - settings.margin_s - settings.horizon_s
    due = ~heard & jobs.is_live[ready] | (latest_s <= now) & heard
    if idle or not jobs.is_live[places].any():
        due |= True
    late = now - jobs.served_s[ready] > settings.starve_s
    due |= late
    if not due.any():
        return VoicePlan(NOBODY, float(np.min(latest_s)))
    order = np.lexsort((latest_s, ~due))
    num_due = int(np.count_nonzero(due))
    limit_s = costs.voice.estimate(num_due) * (1 + settings.plateau)
    return VoicePlan(ready[order][: max(num_due, costs.voice.most_within(limit_s, len(ready)))])
