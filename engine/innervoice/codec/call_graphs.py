"""Calls of a network replayed from CUDA graphs: hundreds of launches become one, for few rows the larger part of
the time.

A graph is made for a number of rows and a length; a smaller call is padded to it. Graphs are captured before the
first reply, within `capturing()`. Where none was, a size is captured when it comes the second time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from innervoice_kernels.graphs import GraphPool, Replay, is_capturing
from innervoice_kernels.jit import is_recording, next_power

MOST_ROWS = 16
"""More rows keep a GPU busy for longer than their launches take."""
MOST_GRAPHS = 128
_log = logging.getLogger("innervoice.codec")


class CallSize(NamedTuple):
    """Rows, their length, and all else that a graph is made for."""

    rows: int
    length: int
    kind: Hashable = None


class StaticCall(Protocol):
    """A call whose inputs and results lie where a graph finds them. replay: launches it again."""

    replay: Replay

    def run(self) -> None:
        """Make the call; a graph captures this."""
        ...


_Call = TypeVar("_Call", bound=StaticCall)


class CallGraphs(Generic[_Call]):
    """Graphs of a network's calls, the least recently used ones given up first.

    name: of the calls, in the log. capture: records what a function launches and gives what launches it again; by
    default a CUDA graph. error: why calls are launched one by one for good, None: they are not.
    """

    def __init__(
        self, name: str, device: torch.device | str, capture: Callable[[Replay], Replay] | None = None
    ) -> None:
        self._name = name
        self._capture = capture or GraphPool(device).capture
        self._calls: OrderedDict[CallSize, _Call | None] = OrderedDict()
        self._is_prepared = False
        self.num_captured = 0
        self.error: str | None = None

    @property
    def sizes(self) -> list[CallSize]:
        """The sizes that have a graph."""
        return [size for size, call in self._calls.items() if call is not None]

    def find(self, wanted: CallSize, make: Callable[[CallSize], _Call], *, pads: bool = True) -> _Call | None:
        """A captured call of this size or a larger one; None: launch it without a graph.

        make: a call of a size, with inputs that may be run. pads: whether a larger one will do.
        """
        if wanted.rows > MOST_ROWS or self.error is not None or is_recording():
            return None
        if is_capturing():
            self._is_prepared = True
            size = wanted._replace(rows=next_power(wanted.rows)) if pads else wanted
            return self._used(size) or self._captured(size, make)
        fits = self._smallest(wanted) if pads and self._is_prepared else wanted
        found = self._used(fits)
        if found is not None or self._is_prepared:
            return found
        if wanted in self._calls:
            return self._captured(wanted, make)
        self._calls[wanted] = None  # its kernels are compiled and its weights laid out by this first time
        self._give_up()
        return None

    def _used(self, size: CallSize) -> _Call | None:
        if size in self._calls:
            self._calls.move_to_end(size)
        return self._calls.get(size)

    def _smallest(self, wanted: CallSize) -> CallSize:
        """The smallest captured size that holds this one, or itself."""
        larger = [
            size
            for size in self.sizes
            if size.rows >= wanted.rows and size.length >= wanted.length and size.kind == wanted.kind
        ]
        return min(larger, key=lambda size: (size.rows * size.length, size.rows), default=wanted)

    def _captured(self, size: CallSize, make: Callable[[CallSize], _Call]) -> _Call | None:
        try:
            call = make(size)
            if is_capturing():
                call.run()  # what is compiled and laid out at first use
            call.replay = self._capture(call.run)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self._calls.clear()
            _log.warning(
                "%s are launched one by one: a CUDA graph of them failed with %s", self._name, self.error
            )
            return None
        self.num_captured += 1
        self._calls[size] = call
        self._give_up()
        return call

    def _give_up(self) -> None:
        while len(self._calls) > MOST_GRAPHS:
            self._calls.popitem(last=False)
