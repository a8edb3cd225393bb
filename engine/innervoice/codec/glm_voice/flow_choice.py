"""The flow's transformers in graphs: the engine's own kernels, or torch's attention and products, whichever is faster there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from innervoice.codec.glm_voice.flow_graphs import StepGraphs
from innervoice_kernels.backend import REF, is_asked_for, use
from innervoice_kernels.graphs import device_seconds, is_capturing
from innervoice_kernels.jit import is_recording, next_power

CLEARLY = 0.95  # of the own kernels' time, below which torch is taken: near it one run would choose so, the next otherwise
_OP = "flow_block"
CallTime = Callable[[Callable[[], object]], float]
Solve = Callable[[StepGraphs], Tensor | None]


class TransformerChoice:
    """The graphs of a flow's steps by either, and which of them a size is solved by.

    own, by_torch: graphs of their own, so that a capture that fails for the one leaves the other. clock: the time of a call;
    None: nothing is measured, and all is solved by the own kernels.
    """

    def __init__(self, own: StepGraphs, by_torch: StepGraphs, clock: CallTime | None) -> None:
        self.own = own
        self.by_torch = by_torch
        self._clock = clock
        self._is_torch: dict[tuple[int, int], bool] = {}

    def solve(self, rows: int, frames: int, run: Solve) -> Tensor | None:
        """Solve by `run` from the graphs that are faster for so many rows and frames; None: it has none.

        Within `capturing()` a new size is captured and timed both ways, unless an implementation is asked for.
        """
        size = next_power(rows), frames
        is_new = size not in self._is_torch and not is_asked_for(_OP)
        if self._clock is not None and is_new and is_capturing() and not is_recording():
            self._measure(size, run, self._clock)
        return self._run(run, self._prefers_torch(rows, frames))

    def _measure(self, size: tuple[int, int], run: Solve, clock: CallTime) -> None:
        seconds = []
        for is_torch in (False, True):
            if self._run(run, is_torch) is None:  # which captures it
                return
            seconds.append(clock(lambda is_torch=is_torch: self._run(run, is_torch)))  # type: ignore[misc]
        self._is_torch[size] = seconds[1] < CLEARLY * seconds[0]

    def _run(self, run: Solve, is_torch: bool) -> Tensor | None:
        with use(**{_OP: REF}) if is_torch else nullcontext():
            return run(self.by_torch if is_torch else self.own)

    def _prefers_torch(self, rows: int, frames: int) -> bool:
        """The choice for the smallest measured size that holds this one."""
        if is_asked_for(_OP):
            return False
        holding = [size for size in self._is_torch if size[0] >= rows and size[1] >= frames]
        return (
            self._is_torch[min(holding, key=lambda size: (size[0] * size[1], size[0]))] if holding else False
        )


def choice_for(make: Callable[[], StepGraphs], device: torch.device) -> TransformerChoice | None:
    """The choice of a flow on a GPU; elsewhere there are no graphs."""
    return TransformerChoice(make(), make(), device_seconds) if device.type == "cuda" else None
