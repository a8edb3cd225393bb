"""Placement: the replica for a new session, by who answers first and by how much room there is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from innervoice.server.cluster.report import ReplicaReport

STALE_S = 5.0
CLOSE_SHARE = 0.5
CLOSE_S = 0.2  # about the pause between two speakers
NUM_REPORTS = 10  # whose earliest first sound counts: five seconds of them


@dataclass(frozen=True)
class Candidate:
    """A replica as a router knows it.

    report: its last one, None: none yet. age_s: seconds since that came. in_flight: requests that the router
    knows to be open there, each WebSocket among them, None: not known.
    """

    name: str
    report: ReplicaReport | None = None
    age_s: float = math.inf
    in_flight: int | None = None

    @property
    def num_sessions(self) -> int:
        """Sessions there: those that it reported, or those sent since, whichever are more."""
        reported = self.report.num_sessions if self.report is not None else 0
        return max(reported, self.in_flight or 0)

    @property
    def has_room(self) -> bool:
        """Whether it would take a session, as far as is known."""
        if self.report is None:
            return True
        return not self.report.is_draining and self.num_sessions < self.report.max_sessions

    @property
    def fill(self) -> float:
        """Share of its sessions that are in use, 0 where their number is not known."""
        return self.num_sessions / self.report.max_sessions if self.report is not None else 0.0


class Placement(Protocol):
    """The order in which replicas are asked to take a session."""

    def order(self, candidates: Sequence[Candidate]) -> list[str]:
        """Name the replicas, the best first."""
        ...


class FirstAudio:
    """The replica that answers first.

    Replicas with room come before those without. A session outlasts the prompts and steps that a replica has to
    do at one moment, so the earliest first sound of its last NUM_REPORTS reports counts: what is late in all of
    them will be late for the session too. Of the replicas with room, the ones whose first sound lies within
    CLOSE_S and CLOSE_SHARE of the earliest count as equally early, since costs are measured with noise. So does
    one that has measured nothing yet, and one that had no reply to make in one of these reports: it begins at
    once, and what it expects comes from steps of before, the first and slow ones it may be, which it measures
    again only if sessions come. Among these the emptiest is taken, and a tie is drawn. A report older than
    stale_s is not believed: such replicas come behind, by the better of two choices (Mitzenmacher 2001), and so
    do all of them when there is no fresh report.
    """

    def __init__(self, random: Random | None = None, stale_s: float = STALE_S) -> None:
        self._random = random or Random()
        self._stale_s = stale_s
        self._guess = TwoChoices(self._random)
        self._reports: dict[str, deque[ReplicaReport]] = {}

    def note(self, candidates: Sequence[Candidate]) -> None:
        """Remember the reports of all replicas that there are now; `order` adds those that it is given."""
        names = {one.name for one in candidates}
        self._reports = {name: kept for name, kept in self._reports.items() if name in names}
        self._add(candidates)

    def order(self, candidates: Sequence[Candidate]) -> list[str]:
        """Name the replicas, the best first."""
        self._add(candidates)
        fresh = [one for one in candidates if one.report is not None and one.age_s <= self._stale_s]
        open_ones = [one for one in fresh if one.has_room]
        full = [one for one in fresh if not one.has_room]
        known = {one.name for one in fresh}
        unknown = self._guess.order([one for one in candidates if one.name not in known])
        self._random.shuffle(open_ones)
        return [
            *self._by_first_audio(open_ones),
            *unknown,
            *(one.name for one in sorted(full, key=lambda one: one.fill)),
        ]

    def _by_first_audio(self, candidates: list[Candidate]) -> list[str]:
        if not candidates:
            return []
        first_s = {one.name: self._first_audio_s(one.name) for one in candidates}
        earliest_s = min((seconds for seconds in first_s.values() if seconds > 0), default=0.0)
        close_s = earliest_s + max(CLOSE_S, CLOSE_SHARE * earliest_s)

        def key(one: Candidate) -> tuple[float, float]:
            seconds = first_s[one.name]
            is_late = seconds > close_s and not self._was_idle(one.name)
            return (seconds if is_late else 0.0, one.fill)

        return [one.name for one in sorted(candidates, key=key)]

    def _add(self, candidates: Sequence[Candidate]) -> None:
        for one in candidates:
            known = self._reports.setdefault(one.name, deque(maxlen=NUM_REPORTS))
            if one.report is not None and (not known or known[-1] != one.report):
                known.append(one.report)

    def _first_audio_s(self, name: str) -> float:
        """The earliest first sound in the last reports, 0: nothing was measured."""
        seconds = [report.first_audio_s for report in self._reports[name]]
        return min((one for one in seconds if one > 0), default=0.0)

    def _was_idle(self, name: str) -> bool:
        return any(report.num_running == 0 for report in self._reports[name])


class TwoChoices:
    """Power of two choices: the one with fewer sessions of two that are drawn, then the others at random."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()

    def order(self, candidates: Sequence[Candidate]) -> list[str]:
        """Name the replicas, the best first."""
        drawn = list(candidates)
        self._random.shuffle(drawn)
        drawn[:2] = sorted(drawn[:2], key=lambda one: one.num_sessions)
        return [one.name for one in drawn]


class RoundRobin:
    """One replica after another, whatever they have to do."""

    def __init__(self) -> None:
        self._next = 0

    def order(self, candidates: Sequence[Candidate]) -> list[str]:
        """Name the replicas, the best first."""
        if not candidates:
            return []
        first = self._next % len(candidates)
        self._next += 1
        return [one.name for one in [*candidates[first:], *candidates[:first]]]
