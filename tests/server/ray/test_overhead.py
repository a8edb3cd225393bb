"""What the proxy of Ray Serve costs, beside the plain server in one run; both are commands of their own."""

from __future__ import annotations

import pytest
from benches import bench

pytest.importorskip("ray", reason="Ray is not installed: `make ray` installs it")

from ray_cluster import SLOW_MACHINE

pytestmark = pytest.mark.slow


def test_the_proxy_costs_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in SLOW_MACHINE.items():
        monkeypatch.setenv(name, value)
    made = {one.name: one for one in bench("cluster_overhead").records(2, 6)}
    answer, first = made["an event and its answer"], made["first sound"]
    assert answer.ours - answer.peer < 30.0
    assert first.ours < 2.0 * first.peer + 50.0, "the median of twelve replies in turn"
    assert made["a chunk of sound"].n == made["a chunk of sound"].details["peer_n"] > first.n == 12
