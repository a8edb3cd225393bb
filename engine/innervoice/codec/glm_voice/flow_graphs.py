"""Euler steps of the flow replayed from CUDA graphs.

A step is captured for a number of rows and frames. The solver's step and its time are inputs of it, so that one
graph serves all steps and any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import pairwise
from threading import Lock
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.call_graphs import CallGraphs, CallSize
from innervoice_kernels.graphs import Replay
from innervoice_kernels.streams import StreamOrder
from innervoice_kernels.transfer import to_device

GivenParts = tuple[Tensor, Tensor]
"""What the first stage's convolution and its skip make of all that the flow is given besides x."""


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
    """Graphs of a flow's steps. Threads take turns, and so do their streams: all replays of a size have the same inputs.

    capture: as for CallGraphs.
    """

    def __init__(
        self,
        flow: EulerStepper,
        device: torch.device | str,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self._flow = flow
        self.graphs = CallGraphs[_CapturedStep]("steps of the flow", device, capture)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_replays = 0
        self._turn = Lock()
        self._order = StreamOrder()

    @property
    def num_captured(self) -> int:
        """Graphs captured so far."""
        return self.graphs.num_captured

    @property
    def error(self) -> str | None:
        """The reason for which steps are launched one by one for good."""
        return self.graphs.error

    @torch.inference_mode()
    def solve(
        self,
        x: Tensor,
        given: GivenParts,
        lengths: Tensor | None,
        shifts: list[Tensor],
        times: list[float],
        choices: Hashable = None,
    ) -> Tensor | None:
        """All steps from x [B, F, C] float32; shifts [steps, C'] a stage, times [steps + 1] ->
        x; None: take them one by one.

        choices: which kernels a step calls; a graph keeps those that it was captured with.
        """
        with self._turn, self._order.turn(x.device):
            rows, frames, channels = x.shape

            def make(size: CallSize) -> _CapturedStep:
                own = [shift[0] for shift in shifts]
                return _CapturedStep(self._flow, _padded(x, given, lengths, size), own)

            wanted = CallSize(rows, frames, (channels, lengths is None, choices))
            step = self.graphs.find(wanted, make, pads=lengths is not None)
            if step is None:
                return None
            step.load(_padded(x, given, lengths, CallSize(*step.x.shape[:2])))
            for shift, delta in zip(*self._table(shifts, times), strict=True):
                step.shift.copy_(shift)
                step.dt.copy_(delta)
                step.replay()
                self.num_replays += 1
            return step.x[:rows, :frames].clone()

    def _table(self, shifts: list[Tensor], times: list[float]) -> tuple[Tensor, Tensor]:
        """The shifts of all stages side by side, [steps, all C'], and the steps' lengths [steps]."""
        steps = len(times) - 1
        if steps not in self._tables:
            deltas = torch.tensor(
                [later - sooner for sooner, later in pairwise(times)], dtype=torch.float32, device="cpu"
            )
            self._tables[steps] = torch.cat(shifts, 1), to_device([deltas.numpy()], shifts[0].device)[0]
        return self._tables[steps]


_Inputs = tuple[Tensor, GivenParts, Tensor | None]


def _padded(x: Tensor, given: GivenParts, lengths: Tensor | None, size: CallSize) -> _Inputs:
    """The inputs with rows of one frame and frames that no row has, up to a size."""
    rows, frames = size.rows - len(x), size.length - x.shape[1]
    if not rows and not frames:
        return x, given, lengths

    def pair(part: Tensor) -> Tensor:  # both branches have the same rows
        return F.pad(part.view(2, -1, *part.shape[1:]), (0, 0, 0, frames, 0, rows)).flatten(0, 1)

    if lengths is not None:
        lengths = F.pad(lengths.view(2, -1), (0, rows), value=1).flatten()
    return F.pad(x, (0, 0, 0, frames, 0, rows)), (pair(given[0]), pair(given[1])), lengths


class _CapturedStep:
    """A step's inputs and result where a graph finds them: x is overwritten by the next x."""

    def __init__(self, flow: EulerStepper, inputs: _Inputs, shifts: list[Tensor]) -> None:
        x, given, lengths = inputs
        self._flow = flow
        self.x = x.clone(memory_format=torch.contiguous_format)
        self._given = (given[0].clone(), given[1].clone())
        self._lengths = None if lengths is None else lengths.clone()
        self.shift, self.dt = torch.cat(shifts), torch.zeros((), device=x.device, dtype=torch.float32)
        self._shifts = list(torch.split(self.shift, [len(shift) for shift in shifts]))
        self.replay: Replay = lambda: None

    def load(self, inputs: _Inputs) -> None:
        """The inputs of other rows."""
        x, given, lengths = inputs
        self.x.copy_(x)
        for own, other in zip(self._given, given, strict=True):
            own.copy_(other)
        if self._lengths is not None and lengths is not None:
            self._lengths.copy_(lengths)

    def run(self) -> None:
        """Take the step; a graph captures this call."""
        self.x.copy_(self._flow.step(self.x, self._given, self._lengths, self._shifts, self.dt))
