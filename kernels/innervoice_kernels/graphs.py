"""CUDA graphs: what a function launches, captured once and launched again as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import median
from typing import Any

import torch

from innervoice_kernels.streams import mark

Replay = Callable[[], None]
_SAVES = 0.99  # of the first run's time, above which another one is not worth the change
_capturing: ContextVar[bool] = ContextVar("innervoice_capturing", default=False)


@contextmanager
def capturing() -> Iterator[None]:
    """Within, on this thread, sizes that are new get a graph: before the first reply, when there is time."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def is_capturing() -> bool:
    """Whether sizes that are new get a graph."""
    return _capturing.get()


class GraphPool:
    """Captures graphs that share their memory: one of them runs at a time, and nothing of it is read behind the next.

    device: where their tensors lie.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._id: Any = None
        self._side: Any = None

    def capture(self, run: Replay) -> Replay:
        """Record what `run` launches on the current stream -> what launches it again.

        `run` has been called before, so that its kernels are compiled. A capture that fails leaves nothing behind:
        the stream is the one of before, and memory is handed out as before. Raises what `run` or CUDA raise.
        """
        with torch.cuda.device(self._device):
            return self._captured(run)

    def _captured(self, run: Replay) -> Replay:
        device = self._device
        torch.cuda.synchronize(device)
        before = torch.cuda.current_stream(device)
        if (
            self._side is None
        ):  # graphs that share memory are captured on one stream, of the priority that they keep
            self._side = torch.cuda.Stream(device, priority=before.priority)  # type: ignore[no-untyped-call]
        self._side.wait_stream(before)
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle() if self._id is None else self._id
        torch.cuda.set_stream(self._side)
        try:
            _record(graph, run, pool, device)
        finally:
            torch.cuda.set_stream(before)
            before.wait_stream(self._side)
        self._id = pool
        return graph.replay


def _record(graph: Any, run: Replay, pool: Any, device: torch.device) -> None:
    """Capture on the current stream; other threads may allocate meanwhile."""
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        run()
    except BaseException:
        _abandon(graph, pool, device)
        raise
    try:
        graph.capture_end()
    except BaseException:
        _release(pool, device)
        raise


def _abandon(graph: Any, pool: Any, device: torch.device) -> None:
    """End a capture that is not wanted. An invalid one ends with an error, ahead of which torch frees nothing."""
    try:
        graph.capture_end()
    except RuntimeError:
        _release(pool, device)


def _release(pool: Any, device: torch.device) -> None:
    """Have memory handed out as before the capture: torch ends that only with a capture that succeeds."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch._C._cuda_endAllocateToPool(index, pool)
    torch._C._cuda_releasePool(index, pool)


def fastest(runs: Sequence[Replay], seconds: Callable[[Replay], float], rounds: int = 3) -> int:
    """The index of the run that takes least, by medians of times taken in turns; the first, where no other saves a hundredth.

    seconds: the time of a run on its device, such as `device_seconds`.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, taken in zip(runs, times, strict=True):
            taken.append(seconds(run))
    medians = [median(taken) for taken in times]
    best = min(range(len(runs)), key=medians.__getitem__)
    return best if medians[best] < _SAVES * medians[0] else 0


def device_seconds(run: Callable[[], object], times: int = 2) -> float:
    """Time that calls of `run` take a GPU, each: the least of several."""
    best = float("inf")
    for _ in range(times):
        begin = mark()
        run()
        end = mark()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best
