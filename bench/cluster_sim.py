"""Replicas under a virtual clock: how many streams N of them carry, by where new sessions go.

Carried is the largest constant number of sessions, in steps of a quarter of one for each replica (one, for a single
replica), that no listener hears a gap in and 99 of 100 first sounds of which come within 2 s, with every seed. Sessions have 4
turns on average; one that ends is followed by another, which is placed anew. "apart" is what no placement can better much:
as many replicas that share nothing, each with its part of the sessions for good, and a seed of its own. It is not
so many times one replica, since none of N times as many listeners may hear a gap. The search walks up or down from
what fewer replicas carried, since a run of 512 takes minutes. What FILE has already is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from bench.record import Record, parser, read, report

from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.tools.simulator import PLACEMENTS, Cluster, Measured, SimulatedRun, Spoken, is_carried
from innervoice.tools.simulator.cluster import merged

MACHINE = Measured({1: 0.010, 65: 0.090, 513: 0.650}, {1: 0.0035, 65: 0.100}, 40e-6)
DEVICE = "a machine whose step takes 10 ms and 1.25 ms a row more"
REPLICAS = (1, 8, 64, 512)
SEEDS = (0, 1, 2)
SECONDS, RAMP_S = 50.0, 30.0
FIRST_GUESS = 21.0  # sessions of one replica
NAME = "streams of a cluster"
APART = "apart"
KINDS = (*PLACEMENTS, APART)


def one_run(replicas: int, routing: str, sessions: int, seed: int, seconds: float) -> SimulatedRun:
    """Run to the first chunk that comes too late, or to the end."""
    if routing == APART:
        return apart(replicas, sessions, seed, seconds)
    return Cluster(
        MACHINE,
        SchedulerSettings(max_rows=2048, reflection_rate=0.0, fixed_hidden=0),
        PLACEMENTS[routing](Random(seed)),
        replicas=replicas,
        sessions=sessions,
        seed=seed,
        spoken=Spoken(hidden=0),
        ramp_s=RAMP_S,
    ).until(seconds, stops_late=True)


def apart(replicas: int, sessions: int, seed: int, seconds: float) -> SimulatedRun:
    """Run replicas that share nothing, one after the other, to the first with a chunk that comes too late."""
    runs: list[SimulatedRun] = []
    for i in range(min(replicas, sessions)):
        part = sessions // replicas + (i < sessions % replicas)
        runs.append(one_run(1, "first-audio", part, seed * replicas + i, seconds))
        if runs[-1].num_late:
            break
    return merged(runs, runs[-1].duration_s)


def most_near(carries: Callable[[int], bool], guess: int, step: int) -> int:
    """The largest number that is carried, in steps from a guess; with more is taken to be harder. 0: none is."""
    if carries(guess):
        while carries(guess + step):
            guess += step
        return guess
    while (guess := guess - step) > 0:
        if carries(guess):
            return guess
    return 0


def search(
    replicas: int, routing: str, guess: float, seeds: Sequence[int], seconds: float
) -> tuple[int, list[SimulatedRun]]:
    """The sessions that are carried with every seed, and the runs with them. guess: sessions for each replica."""
    kept: dict[int, list[SimulatedRun]] = {}

    def carries(sessions: int) -> bool:
        kept[sessions] = []
        for seed in seeds:
            made = one_run(replicas, routing, sessions, seed, seconds)
            if not is_carried(made):
                print(f"{replicas} {routing}: {sessions} not, with seed {seed}", flush=True)
                return False
            kept[sessions].append(made)
        print(f"{replicas} {routing}: {sessions} carried", flush=True)
        return True

    step = max(1, replicas // 4)
    most = most_near(carries, max(step, round(guess * replicas / step) * step), step)
    return most, kept.get(most, [])


def records(
    known: Sequence[Record],
    replicas: Sequence[int] = REPLICAS,
    seeds: Sequence[int] = SEEDS,
    seconds: float = SECONDS,
    kinds: Sequence[str] = KINDS,
    guess: float = FIRST_GUESS,
) -> Iterator[Record]:
    """A record for each number of replicas and each placement, or none; those that are known come as they are.

    guess: sessions for each replica that the search begins with.
    """
    alone = next((one.ours for one in known if one.shape == "1 replicas, first-audio"), None)
    by_routing = dict.fromkeys(kinds, guess)
    for num in replicas:
        for routing in kinds:
            shape = f"{num} replicas, {routing}"
            found = next((one for one in known if (one.name, one.shape) == (NAME, shape)), None)
            if found is None:
                found = _measured(shape, num, routing, by_routing[routing], seeds, seconds, alone)
            by_routing[routing] = (found.ours or 0.0) / num
            if num == 1 and routing == "first-audio":
                alone = found.ours
            yield found


def _measured(
    shape: str,
    replicas: int,
    routing: str,
    guess: float,
    seeds: Sequence[int],
    seconds: float,
    alone: float | None,
) -> Record:
    most, runs = search(replicas, routing, guess, seeds, seconds)
    linear = None if alone is None else alone * replicas
    return Record(
        name=NAME,
        shape=shape,
        unit="streams",
        device=DEVICE,
        better="higher",
        ours=most,
        peer=linear,
        peer_name=None if linear is None else "so many times one replica",
        ratio=None if linear is None else most / linear,
        n=len(seeds),
        details={
            "replicas": replicas,
            "routing": routing,
            "virtual_s": seconds,
            "seeds": list(seeds),
            "first_audio_p99_s": [run.first_audio(0.99) for run in runs],
            "busy": [run.busy for run in runs],
            "replies": [len(run.replies) for run in runs],
        },
    )


def main() -> None:
    """Measure, and print and write the records."""
    arguments = parser(__doc__)
    arguments.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    arguments.add_argument("--routing", nargs="+", default=KINDS, choices=KINDS)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments.add_argument(
        "--guess", type=float, default=FIRST_GUESS, help="sessions of a replica to begin with"
    )
    given = arguments.parse_args()
    path: Path | None = given.json
    known = read(path) if path is not None and path.exists() else []
    if given.quick:
        report(records(known, (1, 2), SEEDS[:1], 15.0), path)
    else:
        report(records(known, given.replicas, given.seeds, SECONDS, given.routing, given.guess), path)


if __name__ == "__main__":
    main()
