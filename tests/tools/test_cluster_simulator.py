from __future__ import annotations

import json
from collections import Counter
from random import Random

import numpy as np
import pytest
from benches import bench
from paths import BENCH, ROOT

from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.server.cluster.placement import FirstAudio, Placement, RoundRobin, TwoChoices
from innervoice.tools.simulator import (
    PLACEMENTS,
    Cluster,
    Measured,
    SimulatedDevice,
    SimulatedRun,
    Spoken,
    is_carried,
)

SMALL = Measured({1: 0.010, 512: 0.250}, {1: 0.002, 512: 0.050}, 20e-6)
SETTINGS = SchedulerSettings(fixed_hidden=0, max_rows=512)


def cluster(
    placement: Placement,
    replicas: int = 4,
    sessions: int = 24,
    device: SimulatedDevice = SMALL,
    seed: int = 0,
) -> Cluster:
    return Cluster(
        device, SETTINGS, placement, replicas=replicas, sessions=sessions, seed=seed, spoken=Spoken(hidden=0), ramp_s=5.0
    )  # fmt: skip


def spread(made: Cluster, seconds: int) -> list[int]:
    """The difference between the fullest and the emptiest replica, every second."""
    found = []
    for second in range(8, seconds):
        made.until(float(second))
        found.append(max(made.num_sessions) - min(made.num_sessions))
    return found


def test_sessions_are_as_many_as_asked_and_every_reply_is_heard_once() -> None:
    made = cluster(FirstAudio(Random(0)))
    run = made.until(20.0)
    assert sum(made.num_sessions) <= 24
    assert sum(made.num_sessions) >= 20, "others come within the next report"
    assert len(run.replies) == sum(len(world.run.replies) for world in made.worlds) > 20
    assert run.sound_s == pytest.approx(sum(world.run.sound_s for world in made.worlds))
    assert 0 < run.busy <= 1


def test_placement_by_first_audio_is_even_where_going_round_is_not() -> None:
    by_first_audio = spread(cluster(FirstAudio(Random(0))), 45)
    going_round = spread(cluster(RoundRobin()), 45)
    assert np.mean(by_first_audio) < 2.0
    assert np.mean(going_round) > 1.5 * np.mean(by_first_audio)


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [cluster(TwoChoices(Random(5)), seed=2).until(20.0) for _ in range(2)]
    assert runs[0].replies == runs[1].replies
    assert len(runs[0].replies) > 20


def test_one_replica_is_a_machine_by_itself() -> None:
    few, many = (cluster(FirstAudio(Random(0)), 1, number).until(25.0) for number in (6, 160))
    assert is_carried(few)
    assert not is_carried(many)


def test_a_late_chunk_ends_a_run_that_asks_for_it() -> None:
    made = cluster(FirstAudio(Random(0)), 2, 300)
    run: SimulatedRun = made.until(60.0, stops_late=True)
    assert run.num_late > 0
    assert run.duration_s < 60.0


def test_turns_do_not_depend_on_where_a_session_is() -> None:
    made = [cluster(placement) for placement in (FirstAudio(Random(0)), RoundRobin())]
    runs = [one.until(12.0) for one in made]
    asked = [Counter((reply.prompt_tokens, reply.speech_tokens) for reply in run.replies) for run in runs]
    common = sum((asked[0] & asked[1]).values())
    assert common > 0.9 * min(len(run.replies) for run in runs)


def test_replicas_apart_have_their_parts_of_the_sessions() -> None:
    apart, one_run = bench("cluster_sim").apart, bench("cluster_sim").one_run
    together = apart(2, 3, 5, 8.0)
    alone = [one_run(1, "first-audio", part, seed, 8.0) for part, seed in ((2, 10), (1, 11))]
    assert together.replies == [reply for run in alone for reply in run.replies]
    assert len(together.replies) >= 2
    late = apart(3, 240, 0, 60.0)
    assert late.num_late > 0
    assert late.num_steps == one_run(1, "first-audio", 80, 0, 60.0).num_steps, "the first ends it"


def test_the_table_of_the_documents_is_the_one_that_was_recorded() -> None:
    records = json.loads((BENCH / "results" / "cluster_simulated.json").read_text(encoding="utf-8"))
    rows = [
        line.split("|") for line in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").splitlines()
    ]
    table = {row[1].strip(): [cell.strip() for cell in row[2:6]] for row in rows if len(row) == 8}
    for one in records:
        replicas, routing = one["details"]["replicas"], one["details"]["routing"]
        cell = table[str(replicas)][[*PLACEMENTS, "apart"].index(routing)]
        assert cell == f"{one['ours']} ({one['ours'] / replicas:.2f})"
        assert routing != "first-audio" or one["ratio"] is None or one["ratio"] >= 0.95
    assert {one["details"]["replicas"] for one in records} >= {1, 8, 64}
