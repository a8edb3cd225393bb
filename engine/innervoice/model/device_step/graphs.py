"""The graphs of a step: one for a bucket of rows and a kind of step, its layers launched the faster way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from innervoice_kernels.graphs import Replay, fastest


class StepKind(NamedTuple):
    """Whether some row has a reflection weight, and whether rows are contexts of one reply."""

    weighted: bool
    fused: bool = False


TakeStep = Callable[[int, StepKind, bool], None]
"""Takes a step of a bucket: rows, its kind, whether kernels are launched dependently."""


class BucketGraphs:
    """Graphs by (rows, kind).

    launch: takes a step. ways: whether its layers are launched dependently (programmatic dependent launch, PDL), or
    both, of which the faster is measured for each bucket. capture: of a GraphPool. seconds: of a replay on the device.
    """

    def __init__(
        self,
        launch: TakeStep,
        ways: tuple[bool, ...],
        capture: Callable[[Replay], Replay],
        seconds: Callable[[Replay], float],
    ) -> None:
        self._launch, self._ways = launch, ways
        self._capture, self._seconds = capture, seconds
        self._replays: dict[tuple[int, StepKind], Replay] = {}
        self.dependent: dict[int, bool] = {}
        """The buckets whose way is decided, and whether it is PDL."""

    def __len__(self) -> int:
        return len(self._replays)

    def find(self, bucket: int, kind: StepKind) -> Replay | None:
        """The graph of a bucket, None: it has none."""
        return self._replays.get((bucket, kind))

    def warm(self, bucket: int, kind: StepKind) -> None:
        """Take the step once, either way, and capture it; of two ways the bucket keeps the faster.

        Only while all rows are idle.
        """
        ways = self._ways if bucket not in self.dependent else (self.dependent[bucket],)
        runs = [partial(self._launch, bucket, kind, way) for way in ways]
        for run in runs:
            run()  # what is compiled and laid out at first use
        replays = [self._capture(run) for run in runs]
        best = fastest(replays, self._seconds) if len(replays) > 1 else 0
        self.dependent[bucket] = ways[best]
        self._replays[bucket, kind] = replays[best]

    def add(self, bucket: int, kind: StepKind) -> None:
        """Capture a step that has been taken, the way that is decided or else the first."""
        way = self.dependent.setdefault(bucket, self._ways[0])
        self._replays[bucket, kind] = self._capture(partial(self._launch, bucket, kind, way))
