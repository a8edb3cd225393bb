"""Shared code of products with quantised weights: row tiles, split sums, many rows by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.jit import next_power
from innervoice_kernels.language.activation import silu_mul
from innervoice_kernels.language.linear import Norm, SplitWorkspace
from innervoice_kernels.language.norm import rms_norm

# Up to so many rows the codes are dequantised in registers, once for 64 rows. Above, dequantised weights are
# written and read again, about 9 bytes an int4 weight, which the product takes as long for from some 250 rows
# on (790 TFLOP/s, 4.3 TB/s).
MOST_ROWS = 256
_LEAST_ROWS, _LARGEST_TILE = 16, 64
_OUTPUTS = 4096  # dequantised at a time


def rows_of_tile(num_rows: int) -> int:
    """Rows that share a tile of weights: 16, a side of the tensor cores, to 64."""
    return min(next_power(num_rows, _LEAST_ROWS), _LARGEST_TILE)


def workspace_for(
    given: SplitWorkspace | None, tiles: tuple[int, int, int], tile_size: int, device: torch.device
) -> SplitWorkspace:
    """Room for the parts of a split product, tiles being columns, parts and rows.

    Raises ValueError for one that is too small.
    """
    columns, split, rows = tiles
    partial, arrived = (columns * rows * split * tile_size, columns * rows) if split > 1 else (0, 0)
    if given is None:
        return SplitWorkspace(
            torch.empty(partial, dtype=torch.float32, device=device),
            torch.zeros(arrived, dtype=torch.int32, device=device),
        )
    if given.partial.numel() < partial or given.arrived.numel() < arrived:
        raise ValueError(
            f"linear: the workspace has room for {given.partial.numel()} sums, {partial} are needed"
        )
    return given


def as_launched(
    op: str, x: Tensor, codes: Tensor, residual: Tensor | None, columns: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands with contiguous rows. Raises ValueError for a residual that does not fit."""
    if residual is not None and (residual.shape != (len(x), columns) or residual.dtype != x.dtype):
        raise ValueError(
            f"{op}: the residual is {residual.dtype} {tuple(residual.shape)}, expected {x.dtype} {(len(x), columns)}"
        )
    x, codes = (a if a.stride(-1) == 1 or a.shape[-1] == 1 else a.contiguous() for a in (x, codes))
    return x, codes, residual if residual is None or residual.stride(-1) == 1 else residual.contiguous()


def by_tiles(
    x: Tensor,
    dequantised: Callable[[slice], Tensor],
    num_outputs: int,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
) -> Tensor:
    """norm(x) W^T + b + r, or gated, with the weights of some outputs at a time, dequantised(rows), in x's type."""
    x = x if norm is None else rms_norm(x, norm.w, norm.eps)
    y = torch.empty(len(x), num_outputs, dtype=x.dtype, device=x.device)
    for first in range(0, num_outputs, _OUTPUTS):
        rows = slice(first, first + _OUTPUTS)
        y[:, rows] = F.linear(x, dequantised(rows).to(x.dtype), None if bias is None else bias[rows])
    y = silu_mul(y) if gated else y
    return y if residual is None else y.add_(residual)
