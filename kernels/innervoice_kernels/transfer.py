"""Numbers on their way to a device and back: many arrays in one copy, for which no thread waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16  # bytes: Triton compiles a kernel anew for an address that is no multiple of it


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device | str) -> list[Tensor]:
    """Arrays as tensors on a device, in the order given; they share one buffer there.

    The copy is queued on the current stream and leaves from pinned memory, so that the call returns at once. On
    a CPU the tensors are the arrays themselves.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays)]).tolist()
    host = torch.empty(starts[-1], dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    room = host.numpy()
    for array, start in zip(arrays, starts, strict=False):
        room[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


class Arrival:
    """A tensor on its way to the CPU, copied behind what the current stream has queued.

    An event of that stream says when it is there: no other work of the device is waited for.
    """

    def __init__(self, x: Tensor) -> None:
        self._ended: torch.cuda.Event | None = None
        if x.device.type != "cuda":
            self._there = x.cpu()
            return
        self._there = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
        self._there.copy_(x, non_blocking=True)
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ended.record(torch.cuda.current_stream(x.device))

    def wait(self) -> Tensor:
        """The tensor on the CPU, once the device has written it: the one place where a thread waits for it."""
        if self._ended is not None:
            self._ended.synchronize()
            self._ended = None
        return self._there
