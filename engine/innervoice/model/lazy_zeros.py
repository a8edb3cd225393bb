"""Zeros that take memory when they are first written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros(shape: Sequence[int], dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
    """A tensor of zeros; on a CPU from pages of the operating system that are not there until they are written.

    torch.zeros writes every page. The mapping is private, begins at a page's border, and goes with the last
    tensor that looks into it. Raises MemoryError where the system refuses the mapping.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or not num_bytes:
        return torch.zeros(*shape, dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{num_bytes} bytes cannot be mapped ({error})") from None
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(*shape)
