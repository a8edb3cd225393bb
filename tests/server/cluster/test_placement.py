from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.server.cluster.placement import Candidate, FirstAudio, Placement, RoundRobin, TwoChoices
from innervoice.server.cluster.report import ReplicaReport


def replica(
    name: str, first_s: float = 0.2, held: int = 0, most: int = 8, age_s: float = 0.1, **more: object
) -> Candidate:
    running = int(more.pop("running", 1))  # type: ignore[call-overload]
    report = ReplicaReport(1, first_s, held, most, running, is_draining=bool(more.pop("drains", False)))
    return Candidate(name, report, age_s, **more)  # type: ignore[arg-type]


CASES = {
    "the one that answers first": ([replica("a", 2.0), replica("b", 0.5, held=7)], "b"),
    "noise is no reason": ([replica("a", 0.20, held=3), replica("b", 0.26, held=2)], "b"),
    "neither is the pause between two speakers": ([replica("a", 0.004, held=1), replica("b", 0.19)], "b"),
    "but more than that is": ([replica("a", 0.004, held=1), replica("b", 0.25)], "a"),
    "one without a reply begins at once": ([replica("a", 2.0, running=0), replica("b", 0.5, held=7)], "a"),
    "and before a busy one": ([replica("a", 0.3, held=5, running=0), replica("b", 2.0, held=3)], "a"),
    "one that has measured nothing is no earlier": (
        [replica("a", 0.0, held=3), replica("b", 2.0, held=2)],
        "b",
    ),
    "and no later": ([replica("a", 0.0, held=2), replica("b", 2.0, held=3)], "a"),
    "the emptier by share": ([replica("a", held=4, most=16), replica("b", held=3, most=8)], "a"),
    "one with room": ([replica("a", 0.1, held=8), replica("b", 9.0)], "b"),
    "none that drains": ([replica("a", 0.1, drains=True), replica("b", 9.0, held=7)], "b"),
    "one whose report is fresh": ([replica("a", age_s=6.0), replica("b", 3.0, held=7)], "b"),
    "an old one rather than a full one": ([replica("a", age_s=6.0), replica("b", held=8)], "a"),
    "one without a report rather than a full one": ([Candidate("a"), replica("b", held=8)], "a"),
    "what was sent since counts": ([replica("a", held=2, in_flight=5), replica("b", held=4)], "b"),
    "what waits for its client counts": ([replica("a", held=5, in_flight=1), replica("b", held=4)], "b"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_replica_that_is_taken(name: str) -> None:
    candidates, expected = CASES[name]
    for seed in range(8):
        for given_order in (candidates, candidates[::-1]):
            assert FirstAudio(Random(seed)).order(given_order)[0] == expected


def reported(name: str, number: int, first_s: float, held: int) -> Candidate:
    return Candidate(name, ReplicaReport(number, first_s, held, 8, 1), 0.1)


def test_what_is_late_for_a_moment_is_not_late_for_a_session() -> None:
    """While a replica reads a prompt it says that a question would wait, and it is even with the others again soon."""
    placement = FirstAudio(Random(4))
    held = dict.fromkeys("abc", 0)
    for k in range(24):
        busy = "abc"[k % 2]  # the same two again and again
        replicas = [reported(name, k, 1.5 if name == busy else 0.2, held[name]) for name in "abc"]
        held[placement.order(replicas)[0]] += 1
    assert set(held.values()) == {8}


@pytest.mark.parametrize("num_reports", [12, 30])
def test_what_stays_late_is(num_reports: int) -> None:
    """Until it is early once."""
    placement = FirstAudio(Random(5))
    taken = []
    for k in range(num_reports):
        replicas = [reported("a", k, 0.2 if k == 0 else 1.5, 1), reported("b", k, 0.3, 5)]
        placement.note(replicas)
        taken.append(placement.order(replicas)[0])
    assert taken[:10] == ["a"] * 10
    assert taken[10:] == ["b"] * (num_reports - 10)
    assert placement.order([reported("a", 99, 0.3, 1), reported("b", 99, 0.3, 5)])[0] == "a"


def test_a_replica_that_is_gone_is_forgotten() -> None:
    placement = FirstAudio(Random(6))
    placement.note([reported("a", 1, 0.1, 1), reported("b", 1, 0.3, 5)])
    placement.note([reported("b", 2, 0.3, 5)])
    assert placement.order([reported("a", 1, 1.5, 0), reported("b", 2, 0.3, 5)])[0] == "b"


def test_equal_ones_are_drawn() -> None:
    placement = FirstAudio(Random(1))
    counts = Counter(placement.order([replica(name) for name in "abcd"])[0] for _ in range(400))
    assert sorted(counts) == list("abcd")
    assert min(counts.values()) > 60


def test_without_a_fresh_report_the_better_of_two_is_taken() -> None:
    placement = FirstAudio(Random(1))
    old = [replica(name, age_s=99.0, in_flight=n) for name, n in zip("abc", (0, 1, 2), strict=True)]
    counts = Counter(placement.order(old)[0] for _ in range(600))
    assert counts["c"] == 0
    assert 330 < counts["a"] < 470, "in two of three pairs"


@pytest.mark.parametrize("num", [1, 2, 5])
def test_callers_who_come_at_once_are_spread_evenly(num: int) -> None:
    """Between two reports only what the router sent is known."""
    placement = FirstAudio(Random(3))
    sent = Counter[str]()
    for _ in range(8 * num):
        names = [f"r{i}" for i in range(num)]
        order = placement.order([replica(name, in_flight=sent[name]) for name in names])
        sent[order[0]] += 1
    assert set(sent.values()) == {8}


REPLICAS = st.lists(
    st.builds(
        lambda first, held, age, flight, drains, known: (
            replica("?", first, held, age_s=age, in_flight=flight, drains=drains)
            if known
            else Candidate("?", in_flight=flight)
        ),
        st.floats(0, 10),
        st.integers(0, 10),
        st.floats(0, 10),
        st.none() | st.integers(0, 10),
        st.booleans(),
        st.booleans(),
    ),
    max_size=9,
)


@given(REPLICAS, st.integers(0, 99))
def test_every_replica_is_named_once(drawn: list[Candidate], seed: int) -> None:
    candidates = [Candidate(f"r{i}", one.report, one.age_s, one.in_flight) for i, one in enumerate(drawn)]
    placements: list[Placement] = [FirstAudio(Random(seed)), TwoChoices(Random(seed)), RoundRobin()]
    for placement in placements:
        assert sorted(placement.order(candidates)) == [one.name for one in candidates]


def test_round_robin_goes_round() -> None:
    placement = RoundRobin()
    assert [placement.order([Candidate(name) for name in "abc"])[0] for _ in range(5)] == list("abcab")


def test_reports_of_other_versions_are_none() -> None:
    report = ReplicaReport(3, 0.5, 1, 8, 1)
    assert ReplicaReport.from_dict(report.to_dict()) == report
    assert ReplicaReport.from_dict({}) is None
    assert ReplicaReport.from_dict(report.to_dict() | {"later": 1}) is None
