"""CUDA streams of threads and of parts: work on one neither waits for another's nor holds it up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar, overload

import torch

_Value = TypeVar("_Value")
_FIRST = -1  # the higher priority of the two that every GPU has


def lead(device: torch.device) -> None:
    """Make a device the calling thread's own, with a stream whose work goes ahead of all other work there.

    On a CPU nothing changes.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else torch.cuda.current_device())
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=_FIRST))  # type: ignore[no-untyped-call]


def own_stream(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A new stream of a device -> contexts within which work is queued on it."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return lambda: torch.cuda.stream(stream)


def mark() -> torch.cuda.Event:
    """An event behind all that the calling thread has queued on its current stream, with the time it comes at."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class StreamOrder:
    """The end of the last work on tensors that several streams use: the next stream waits for it on the device."""

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    def mark(self, device: torch.device) -> None:
        """Note the end of the work that the current stream has queued. On a CPU and in a capture there is none to note."""
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last.record(torch.cuda.current_stream(device))

    def wait(self, device: torch.device) -> bool:
        """Have the current stream wait for the last mark -> whether no later use need wait for it.

        A capture waits for nothing: it begins when the device is at rest.
        """
        last = self._last
        if last is None:
            return True
        if torch.cuda.is_current_stream_capturing():
            return False
        if last.query():  # type: ignore[no-untyped-call]
            return True
        torch.cuda.current_stream(device).wait_event(last)
        return False

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """Within, the current stream's work lies behind that of the turn before. The callers see to one turn at a time."""
        self.wait(device)
        try:
            yield
        finally:
            self.mark(device)


class Shared(Generic[_Value]):
    """A value that one stream has made and that any stream may read from then on."""

    def __init__(self, value: _Value, device: torch.device) -> None:
        self._value = value
        self._device = device
        self._order = StreamOrder()
        self._order.mark(device)

    def get(self) -> tuple[_Value, bool]:
        """The value, the current stream waiting for it -> and whether it is there for all streams."""
        return self._value, self._order.wait(self._device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[_Value]:
        return Shared(copy.deepcopy(self.get()[0], memo), self._device)


class laid_out(Generic[_Value]):
    """A cached property of tensors: they are made at first use, by the stream that is current then, and kept.

    A stream that reads them while they are being made waits for that on the device. The object says by `device` where they lie.
    """

    def __init__(self, make: Callable[[Any], _Value]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> laid_out[_Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        kept, key = instance.__dict__, f"{self._name} being made"
        shared = kept.get(key)
        if shared is None:
            made = self._make(instance)
            kept[key] = Shared(made, instance.device)
            return made
        value, is_there = shared.get()
        if is_there:
            kept[self._name] = value  # which is found from now on in place of this
        return value
