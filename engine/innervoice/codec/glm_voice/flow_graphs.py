"""Euler steps of the flow replayed from CUDA graphs: hundreds of launches become one, for few rows
the larger part of the time.

A step is captured once for a number of rows and frames. The solver's step and its time are inputs of it, so
that one graph serves all steps and any number of them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

MOST_ROWS = 16
"""More rows keep a GPU busy for longer than their launches take."""
MOST_GRAPHS = 128
GivenParts = tuple[Tensor, Tensor]
"""What the first stage's convolution and its skip make of all that the flow is given besides x."""
Replay = Callable[[], None]
_log = logging.getLogger("innervoice.codec")


class EulerStepper(Protocol):
    """A flow that takes a solver step.

    x [B, F, C] float32, given [R, F, C'] twice, lengths [R] or None, shifts [C'] a stage, dt -> x; R is 2 B
    with guidance and B without.
    """

    def step(
        self, x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor], dt: float | Tensor
    ) -> Tensor:
        """One Euler step."""
        ...


class StepGraphs:
    """Graphs of a flow's steps, the least recently used ones given up first.

    A size is captured when it comes the second time.

    capture: records what a function launches and gives what launches it again; by default a CUDA graph.
    Threads take turns. error: why steps are launched one by one for good, None: they are not.
    """

    def __init__(self, flow: EulerStepper, capture: Callable[[Replay], Replay] | None = None) -> None:
        self._flow, self._capture = flow, capture or _CudaCapture()
        self._steps: OrderedDict[tuple[Any, ...], _CapturedStep | None] = OrderedDict()
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_captured = self.num_replays = 0
        self.error: str | None = None
        self._turn = Lock()

    @torch.inference_mode()
    def solve(
        self, x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor], times: list[float]
    ) -> Tensor | None:
        """All steps from x [B, F, C] float32; shifts [steps, C'] a stage, times [steps + 1] ->
        x; None: take them one by one.
        """
        with self._turn:
            return self._solve(x, given, lengths, shifts, times)

    def _solve(
        self, x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor], times: list[float]
    ) -> Tensor | None:
        key = (*x.shape, lengths is None)
        if len(x) > MOST_ROWS or self.error is not None:
            return None
        if key not in self._steps:
            self._steps[key] = None  # its kernels are compiled and its weights laid out by this first time
            self._give_up()
            return None
        self._steps.move_to_end(key)
        step = self._steps[key] or self._captured(key, x, given, lengths, shifts)
        return None if step is None else self._replayed(step, x, given, lengths, *self._table(shifts, times))

    def _captured(
        self, key: tuple[Any, ...], x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor]
    ) -> _CapturedStep | None:
        step = _CapturedStep(x, given, lengths, [shift[0] for shift in shifts])
        try:
            step.replay = self._capture(lambda: step.take(self._flow))
        except RuntimeError as error:
            self.error = f"{type(error).__name__}: {error}"
            self._steps.clear()
            _log.warning(
                "steps of the flow are launched one by one: a CUDA graph of them failed with %s", self.error
            )
            return None
        self.num_captured += 1
        self._steps[key] = step
        return step

    def _replayed(
        self,
        step: _CapturedStep,
        x: Tensor,
        given: GivenParts,
        lengths: Tensor | None,
        table: Tensor,
        deltas: Tensor,
    ) -> Tensor:
        step.load(x, given, lengths)
        for shift, delta in zip(table, deltas, strict=True):
            step.shift.copy_(shift)
            step.dt.copy_(delta)
            step.replay()
            self.num_replays += 1
        return step.x.clone()

    def _table(self, shifts: list[Tensor], times: list[float]) -> tuple[Tensor, Tensor]:
        """The shifts of all stages side by side, [steps, all C'], and the steps' lengths [steps]."""
        steps = len(times) - 1
        if steps not in self._tables:
            deltas = [later - sooner for sooner, later in pairwise(times)]
            table = torch.cat(shifts, 1), torch.tensor(deltas, dtype=torch.float32, device=shifts[0].device)
            self._tables[steps] = table
        return self._tables[steps]

    def _give_up(self) -> None:
        while len(self._steps) > MOST_GRAPHS:
            self._steps.popitem(last=False)


class _CapturedStep:
    """A step's inputs and result where a graph finds them: x is overwritten by the next x."""

    def __init__(self, x: Tensor, given: GivenParts, lengths: Tensor | None, shifts: list[Tensor]) -> None:
        self.x = x.clone(memory_format=torch.contiguous_format)
        self._given = (given[0].clone(), given[1].clone())
        self._lengths = None if lengths is None else lengths.clone()
        self.shift, self.dt = torch.cat(shifts), torch.zeros((), device=x.device, dtype=torch.float32)
        self._shifts = list(torch.split(self.shift, [len(shift) for shift in shifts]))
        self.replay: Replay = lambda: None

    def load(self, x: Tensor, given: GivenParts, lengths: Tensor | None) -> None:
        """The inputs of other rows."""
        self.x.copy_(x)
        for own, other in zip(self._given, given, strict=True):
            own.copy_(other)
        if self._lengths is not None and lengths is not None:
            self._lengths.copy_(lengths)

    def take(self, flow: EulerStepper) -> None:
        """Take the step; a graph captures this call."""
        self.x.copy_(flow.step(self.x, self._given, self._lengths, self._shifts, self.dt))


class _CudaCapture:
    """CUDA graphs that share their memory: one runs at a time, and nothing of it is read behind the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Replay) -> Replay:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, capture_error_mode="thread_local"
        ):  # others may allocate
            run()
        self._pool = graph.pool()
        replay: Replay = graph.replay
        return replay
