"""Threads and weights for the native module: its team of threads, and tensors as its products read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from threading import Thread

import torch
from torch import Tensor

from innervoice_kernels import _C

CHANNEL_MULTIPLE = 16
"""Channels that the native code works on come in multiples of this."""

WeightAndBias = tuple[Tensor, Tensor]
"""Weight and bias of a linear map, a convolution or a norm."""


_own_threads: ContextVar[int | None] = ContextVar("innervoice_native_threads", default=None)
_came_through_fork: ContextVar[bool] = ContextVar("innervoice_native_fork", default=False)
_MOST_THREADS = 256  # of a team
_own_team: ContextVar[_C.ThreadTeam | None] = ContextVar("innervoice_native_team", default=None)


@cache
def _team(num_threads: int) -> _C.ThreadTeam:
    return _C.ThreadTeam(num_threads)


def _forget_teams() -> None:
    """After a fork: none of the threads is in this process, and a lock that one of them held stays shut."""
    if _team.cache_info().currsize:
        _came_through_fork.set(True)
    _team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)


def team() -> _C.ThreadTeam:
    """Return the team of `work_with`, else one of as many threads as torch uses or used before."""
    return _own_team.get() or _team(min(_own_threads.get() or torch.get_num_threads(), _MOST_THREADS))


def work_with(own: _C.ThreadTeam) -> None:
    """Run native code of this context on a given team."""
    _own_team.set(own)


def torch_threads_here(num_threads: int) -> int:
    """Set torch's threads for this calling thread alone, and return how many there were before."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    restore = Thread(
        target=torch.set_num_threads, args=(before,)
    )  # what new threads begin with is set on any of them
    restore.start()
    restore.join()
    return before


def spare_lost_threads() -> None:
    """Have torch run alone on the one thread that came through a fork: OpenMP would wait there for threads that
    the parent has. Other threads, and native code on all of them, go on with as many as torch has now.
    """
    if _came_through_fork.get():
        _own_threads.set(torch_threads_here(1))


def keep_threads_native() -> None:
    """On this thread torch runs alone from now on, and native code on as many threads as torch had.

    The threads that torch wakes for an operation spin for milliseconds after it, on processors that native
    code then lacks.
    """
    _own_threads.set(torch_threads_here(1))


def floats(x: Tensor) -> Tensor:
    """Return x as the native code takes it: float32, dense."""
    return x.detach().float().contiguous()


def taps_first(weight: Tensor) -> Tensor:
    """Return a convolution's [N, K, taps], or a linear map's [N, K], as [N, taps, K]."""
    return floats(weight[:, None] if weight.ndim == 2 else weight.transpose(1, 2))


def takes(x: Tensor, weight: Tensor) -> bool:
    """Return whether native code multiplies these: on a CPU, both float32 or both bfloat16.

    Where the processor has no products of bfloat16 they are float32 inside.
    """
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16)


def are_halves(weight: Tensor) -> bool:
    """Return whether products with this weight run in bfloat16.

    Their inputs are rounded to it; everything else is float32.
    """
    return weight.dtype == torch.bfloat16 and _C.has_halves()


def are_multiples(sizes: Sequence[int]) -> bool:
    """Return whether all sizes are multiples of CHANNEL_MULTIPLE."""
    return all(size % CHANNEL_MULTIPLE == 0 for size in sizes)
