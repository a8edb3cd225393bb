"""CUDA streams of threads and of parts: work on one neither waits for another's nor holds it up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

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
