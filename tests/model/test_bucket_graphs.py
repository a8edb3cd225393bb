"""The graphs of a step: of two ways to launch its layers each bucket keeps the faster one."""

from __future__ import annotations

from typing import Any

import pytest

from innervoice.model.device_step.graphs import BucketGraphs
from innervoice_kernels.graphs import Replay, fastest


class Device:
    """A GPU on which a step takes what `costs` says of its bucket and of dependent launches."""

    def __init__(self, costs: dict[tuple[int, bool], float]) -> None:
        self.costs = costs
        self.log: list[tuple[int, bool, bool]] = []

    def launch(self, bucket: int, weighted: bool, pdl: bool) -> None:
        self.log.append((bucket, weighted, pdl))

    def capture(self, run: Any) -> Replay:
        assert run.args in self.log, "a step is taken before it is captured"
        return run  # type: ignore[no-any-return]

    def seconds(self, run: Any) -> float:
        bucket, _, pdl = run.args
        return self.costs[bucket, pdl]

    def graphs(self, *ways: bool) -> BucketGraphs:
        return BucketGraphs(self.launch, ways, self.capture, self.seconds)


@pytest.mark.parametrize(("dependent", "expected"), [(4.0, True), (6.0, False), (4.97, False)])
def test_a_bucket_keeps_the_faster_way(dependent: float, expected: bool) -> None:
    """Dependent launches are taken where they save a hundredth and more; with weights the bucket's way stays."""
    device = Device({(8, False): 5.0, (8, True): dependent, (1, False): 5.0, (1, True): 1.0})
    graphs = device.graphs(False, True)
    for flag in (False, True):
        graphs.warm(8, flag)
    graphs.warm(1, False)
    assert graphs.dependent == {8: expected, 1: True} and len(graphs) == 3
    device.log.clear()
    for bucket, flag in ((8, False), (8, True), (1, False)):
        replay = graphs.find(bucket, flag)
        assert replay is not None
        replay()
    assert device.log == [(8, False, expected), (8, True, expected), (1, False, True)]
    assert graphs.find(1, True) is None


def test_one_way_is_not_measured() -> None:
    device = Device({})
    graphs = device.graphs(True)
    graphs.warm(2, False)
    assert graphs.dependent == {2: True}
    device.launch(4, True, True)
    graphs.add(4, True)
    assert graphs.find(4, True) is not None and graphs.dependent[4]


def test_a_run_that_is_slow_once_is_not_the_slower_one() -> None:
    times = iter([3.0, 2.0, 1.0, 9.0, 3.0, 2.0])
    runs: list[Replay] = [lambda: None, lambda: None]
    assert fastest(runs, lambda run: next(times)) == 1
