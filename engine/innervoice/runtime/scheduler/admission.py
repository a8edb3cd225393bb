"""Who gets a row, and whose pages are taken back when there are too few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.settings import SchedulerSettings
from innervoice.runtime.scheduler.table import Columns, Phase, Places

_FREE, _WAITING = int(Phase.FREE), int(Phase.WAITING)


class DraftStep(NamedTuple):
    """A step as it would be if pages were endless."""

    decode: Places
    prefill: list[tuple[int, int]]
    cap_rows: Places
    caps: Places
    wake_s: float = math.inf


def admit_rows(
    rows: Columns, costs: LearnedCosts, settings: SchedulerSettings, runs: NDArray[np.bool_], pages_free: int
) -> list[int]:
    """Replies that get a row now, in order of priority and arrival; none overtakes one that does not fit.

    A row needs pages for its whole prompt, beside those that are promised to others, and one for each that runs. A user who
    still speaks takes no row, and a reply whose reader does not read takes none of the machine's time.
    """
    waiting = np.flatnonzero(rows.phase == _WAITING)
    if not len(waiting):
        return []
    if len(waiting) > 1:
        waiting = waiting[np.lexsort((rows.order[waiting], -rows.priority[waiting]))]
    held = np.flatnonzero(runs)
    num_rows = int(np.count_nonzero((rows.phase != _FREE) & ~rows.is_listening)) - len(waiting)
    pages_free -= int(np.maximum(num_pages(rows.context[held] + 1, settings) - rows.pages[held], 1).sum())
    load = _SpokenLoad.of(rows, held[rows.is_live[held] & ~rows.is_listening[held] & ~rows.is_blocked[held]])
    chosen = list[int]()
    for index in waiting.tolist():
        needed = num_pages(int(rows.context[index]) + 1, settings) - int(rows.pages[index])
        live = bool(rows.is_live[index])
        too_many = (
            settings.policy == "slack"
            and live
            and load.num > 0
            and load.with_one_more(costs) > settings.max_load
        )
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
        return cls(
            len(speaking),
            float(rows.spoken_rate[speaking].sum()) / num,
            float(rows.chunk_s[speaking].sum()) / num,
        )

    def with_one_more(self, costs: LearnedCosts) -> float:
        """Share of the time that the spoken tokens and the sound of all would take, reflection left out."""
        voice_s = costs.voice.estimate(self.num + 1) / self.chunk_s if self.chunk_s > 0 else 0.0
        return self.rate * costs.decode.estimate(self.num + 1) + voice_s


def take_back(
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
    return running[
        np.lexsort((latest, sound, rows.is_live[running], rows.priority[running], ~rows.is_blocked[running]))
    ]


def num_pages(num_tokens: Any, settings: SchedulerSettings) -> Any:
    """Pages for so many tokens, one number or an array."""
    return -(-num_tokens // settings.page_size)
