"""Cluster: replicas under one virtual clock, and sessions that a placement sends to them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from innervoice.runtime.scheduler import SchedulerSettings, forecast
from innervoice.server.cluster.placement import Candidate, FirstAudio, Placement, RoundRobin, TwoChoices
from innervoice.server.cluster.report import ReplicaReport
from innervoice.tools.simulator.device import SimulatedDevice
from innervoice.tools.simulator.run import SimulatedRun
from innervoice.tools.simulator.workload import Turn, Workload, draw_turn
from innervoice.tools.simulator.world import Spoken, World

REPORT_S = 0.5
MEAN_TURNS = 4.0
PLACEMENTS: dict[str, Callable[[Random], Placement]] = {
    "first-audio": FirstAudio,
    "two-choices": TwoChoices,
    "round-robin": lambda random: RoundRobin(),
}


class Cluster:
    """A constant number of sessions on several replicas: when one ends, another begins.

    Sessions come one by one in ramp_s seconds; each has a number of turns that is drawn, MEAN_TURNS on average, and
    stays where it was placed. Every REPORT_S the replicas report, and whoever comes before the next reports is
    placed by these and by what was sent since. One that ends is followed by another REPORT_S later. max_sessions: that
    a replica reports as its most.
    """

    def __init__(
        self,
        device: SimulatedDevice,
        settings: SchedulerSettings,
        placement: Placement,
        *,
        replicas: int,
        sessions: int,
        seed: int,
        spoken: Spoken | None = None,
        max_sessions: int = 2048,
        ramp_s: float = 35.0,
        barge_in_s: float = 60.0,
    ) -> None:
        self.now = 0.0
        self._placement = placement
        self._max_sessions = max_sessions
        self._seed = seed
        self._barge_in_s = barge_in_s
        self._random = np.random.default_rng((seed, 1))
        starts = np.random.default_rng((seed,)).uniform(0, ramp_s, sessions)
        self._coming: list[float] = sorted(starts.tolist())  # a heap of times
        self._num_begun = 0
        self.num_sessions = [0] * replicas
        self._visits = [_Visits(self, i) for i in range(replicas)]
        self.worlds = [
            World(device, settings, Workload([], visits.turn), spoken=spoken) for visits in self._visits
        ]

    def until(self, end_s: float, *, stops_late: bool = False) -> SimulatedRun:
        """Run to a time -> all replies. stops_late: end at the first chunk that came too late."""
        while self.now < end_s:
            before_s = min(self.now + REPORT_S, end_s)
            self._place(before_s)
            self.now = before_s
            for world in self.worlds:
                world.until(self.now)
                if stops_late and world.run.num_late:
                    return merged([one.run for one in self.worlds], self.now)
        return merged([one.run for one in self.worlds], self.now)

    def draw_session(self) -> tuple[int, int]:
        """Draw a session -> its number and how many turns it has."""
        self._num_begun += 1
        return self._num_begun, int(self._random.geometric(1 / MEAN_TURNS))

    def draw_turn(self, session: int, k: int) -> Turn:
        """Draw a turn of a session, the same whichever replica has it."""
        return draw_turn(np.random.default_rng((self._seed, session, k)), self._barge_in_s)

    def leave(self, replica: int) -> None:
        """Note that a session has ended."""
        self.num_sessions[replica] -= 1
        heapq.heappush(self._coming, self.worlds[replica].now + REPORT_S)

    def _place(self, before_s: float) -> None:
        """Place the sessions that come before a time."""
        starts = []
        while self._coming and self._coming[0] < before_s:
            starts.append(heapq.heappop(self._coming))
        if not starts:
            return
        forecasts = [forecast(world.columns, world.costs) for world in self.worlds]
        held = list(self.num_sessions)
        reports = [
            ReplicaReport(0, made.first_audio_s, num, self._max_sessions, made.num_running + made.num_waiting)
            for made, num in zip(forecasts, held, strict=True)
        ]
        for start_s in starts:
            candidates = [
                Candidate(str(i), report, 0.0, self.num_sessions[i]) for i, report in enumerate(reports)
            ]
            self._begin(int(self._placement.order(candidates)[0]), start_s)

    def _begin(self, replica: int, start_s: float) -> None:
        self.num_sessions[replica] += 1
        self._visits[replica].add()
        self.worlds[replica].join(start_s)


class _Visits:
    """The sessions of one replica, as its world asks for their turns."""

    def __init__(self, cluster: Cluster, replica: int) -> None:
        self._cluster = cluster
        self._replica = replica
        self._sessions: list[tuple[int, int]] = []

    def add(self) -> None:
        self._sessions.append(self._cluster.draw_session())

    def turn(self, listener: int, k: int) -> Turn | None:
        session, num_turns = self._sessions[listener]
        if k < num_turns:
            return self._cluster.draw_turn(session, k)
        self._cluster.leave(self._replica)
        return None


def merged(runs: Sequence[SimulatedRun], duration_s: float) -> SimulatedRun:
    """Join the runs of replicas into one, whose `busy` is their mean."""
    made = SimulatedRun(runs[0].policy, duration_s)
    for run in runs:
        made.replies += run.replies
        made.num_steps += run.num_steps
        made.num_voice_calls += run.num_voice_calls
        made.num_drawn += run.num_drawn
        made.num_hidden += run.num_hidden
        made.num_preempted += run.num_preempted
        made.step_s += run.step_s / len(runs)
        made.voice_s += run.voice_s / len(runs)
        made.sound_s += run.sound_s
        made.heard_s += run.heard_s
        made.num_late += run.num_late
    return made
