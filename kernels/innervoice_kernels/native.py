"""What the ops need of the native module to run on a CPU: a team of threads, and weights as its products read them."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from threading import Thread

import torch
from torch import Tensor

from innervoice_kernels import _C

CHANNEL_MULTIPLE = 16
"""Channels that the native code works on come in multiples of this."""

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a linear map, a convolution or a norm."""


_own_threads: ContextVar[int | None] = ContextVar("innervoice_native_threads", default=None)
_own_team: ContextVar[_C.ThreadTeam | None] = ContextVar("innervoice_native_team", default=None)


@cache
def _team(num_threads: int) -> _C.ThreadTeam:
    return _C.ThreadTeam(num_threads)


def team() -> _C.ThreadTeam:
    """The team of `work_with`, or as many threads as torch uses, or had before `keep_threads_native`."""
    return _own_team.get() or _team(_own_threads.get() or torch.get_num_threads())


def work_with(own: _C.ThreadTeam) -> None:
    """In this context, native code runs on that team."""
    _own_team.set(own)


def torch_threads_here(num_threads: int) -> int:
    """Give torch so many threads where this thread calls it -> how many it had. Other threads, and those to come, keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    restore = Thread(
        target=torch.set_num_threads, args=(before,)
    )  # what new threads begin with is set on any of them
    restore.start()
    restore.join()
    return before


def keep_threads_native() -> None:
    """On this thread torch runs alone from now on, and native code on as many threads as torch had.

    The threads that torch wakes for an operation spin for milliseconds after it, on processors that native code then lacks.
    """
    _own_threads.set(torch_threads_here(1))


def floats(x: Tensor) -> Tensor:
    """x as the native code takes it: float32, dense."""
    return x.detach().float().contiguous()


def taps_first(weight: Tensor) -> Tensor:
    """A convolution's [N, K, taps], or a linear map's [N, K], as [N, taps, K]."""
    return floats(weight[:, None] if weight.ndim == 2 else weight.transpose(1, 2))


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether native code multiplies these: on a CPU, both float32 or both bfloat16, which is float32 inside where it must."""
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16)


def are_halves(weight: Tensor) -> bool:
    """Whether products with this weight run in bfloat16; what they take in is rounded to it, everything else is float32."""
    return weight.dtype == torch.bfloat16 and _C.has_halves()


def are_multiples(sizes: Sequence[int]) -> bool:
    """Whether all sizes are multiples of CHANNEL_MULTIPLE."""
    return all(size % CHANNEL_MULTIPLE == 0 for size in sizes)
