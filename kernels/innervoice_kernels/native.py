"""What the ops need of the native module to run on a CPU: a team of threads, and weights as its products read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from innervoice_kernels import _C

LANES = 16
"""Channels that the native code works on come in multiples of this."""


@cache
def _team(num_threads: int) -> _C.ThreadTeam:
    return _C.ThreadTeam(num_threads)


def team() -> _C.ThreadTeam:
    """As many threads as torch uses."""
    return _team(torch.get_num_threads())


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
    """Whether all sizes are multiples of LANES."""
    return all(size % LANES == 0 for size in sizes)
