"""The bench of the host's step runs, and measures every case."""

from __future__ import annotations

from benches import bench


def test_every_case_has_a_record() -> None:
    records = list(bench("host_step").records(quick=True))
    assert [(record.name, record.shape) for record in records] == [
        ("host_step", "128 rows, drawn by the host"),
        ("host_step", "128 rows, overlapped"),
        ("plan", "256 sessions"),
    ]
    assert all(record.n == 20 and 0 < record.p10 <= record.median for record in records)
