from __future__ import annotations

import pytest

from innervoice.server.cluster.report import ReplicaReport
from innervoice.server.cluster.scaling import ScalingTarget, replicas_needed

TARGET = ScalingTarget(running=10, first_audio_s=1.0, fill=0.5)


def report(running: int, sessions: int = 0, first_s: float = 0.2, *, drains: bool = False) -> ReplicaReport:
    return ReplicaReport(1, first_s, sessions, 40, running, drains)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], 0),
        ([report(0)], 1),
        ([report(10)], 1),
        ([report(11)], 2),
        ([report(9), report(9), report(9)], 3),
        ([report(2), report(2), report(2)], 1),
        ([report(0, 20)], 1),
        ([report(0, 21)], 2),
        ([report(1, first_s=1.5)], 2),
        ([report(1, first_s=1.5), report(1), report(1)], 1),
        ([report(1, first_s=1.5), report(1, first_s=1.5), report(1)], 4),
        ([report(0, first_s=1.5), report(0, first_s=1.5)], 1),
        ([report(1, first_s=1.5), report(0, first_s=1.5), report(1, first_s=1.5)], 4),
        ([report(1, first_s=1.5), report(0, first_s=1.5), report(0, first_s=0.0)], 1),
        ([report(15, drains=True), report(5)], 2),
        ([report(1, first_s=9.0, drains=True)], 1),
    ],
)
def test_replicas_that_the_load_needs(reports: list[ReplicaReport], expected: int) -> None:
    assert replicas_needed(reports, TARGET) == expected


@pytest.mark.parametrize("field", ["running", "first_audio_s", "fill"])
def test_targets_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ScalingTarget(**{field: 0})
