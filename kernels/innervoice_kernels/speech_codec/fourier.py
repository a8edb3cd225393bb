"""Tables of the Fourier transform of N real numbers, and the native transform, made once for a size.

X_k = sum_j z_j e^(-2 pi i k j / N): real parts of the bins 0 ... N / 2, then their imaginary ones.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from innervoice_kernels import _C


def _turns(size: int) -> Tensor:
    """2 pi k j / N of bins and samples, [N / 2 + 1, N] float64."""
    steps = (
        torch.outer(
            torch.arange(size // 2 + 1, dtype=torch.int64, device="cpu"),
            torch.arange(size, dtype=torch.int64, device="cpu"),
        )
        % size
    )
    return steps.double() * (2 * math.pi / size)


@cache
def forward_table(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix of the forward transform: [N, N + 2]."""
    with torch.inference_mode(False):
        turns = _turns(size)
        return torch.cat([turns.cos(), -turns.sin()]).T.contiguous().to(device, dtype)


@cache
def inverse_table(size: int, device: torch.device) -> Tensor:
    """The matrix of the inverse transform, [N + 2, N] float32; imaginary parts of the lowest and
    highest bin count for nothing.
    """
    with torch.inference_mode(False):
        turns, sides = (
            _turns(size),
            torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64, device="cpu"),
        )
        sides[0] = sides[-1] = 1.0 / size
        sines = -sides * turns.sin()
        sines[0] = sines[-1] = 0
        return torch.cat([sides * turns.cos(), sines]).contiguous().float().to(device)


@cache
def native_transform(size: int, isa: str | None = None) -> _C.RealTransform:
    """The same in native code.

    N is even and 4 or more. Raises ValueError for other sizes, and for an isa that is not there.
    """
    return _C.RealTransform(size, isa)
