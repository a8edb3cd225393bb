"""Shared code of products with quantised weights: row tiles, split sums, many rows by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.jit import Block, Num, Ptr, constexpr, jit, narrow, next_power, tl
from innervoice_kernels.language.activation import silu_mul
from innervoice_kernels.language.linear import Norm, SplitWorkspace
from innervoice_kernels.language.norm import rms_norm

# Up to so many rows the codes are dequantised in registers, once for 64 rows. Above, dequantised weights are
# written and read again, about 9 bytes an int4 weight, which the product takes as long for from some 250 rows
# on (790 TFLOP/s, 4.3 TB/s).
MOST_ROWS = 256
_LEAST_ROWS, _LARGEST_TILE = 8, 64
_OUTPUTS = 4096  # dequantised at a time


def rows_of_tile(num_rows: int) -> int:
    """Rows that share a tile of weights: 8, the shorter side of the tensor cores, to 64."""
    return min(next_power(num_rows, _LEAST_ROWS), _LARGEST_TILE)


@jit
def outputs_of(tile: Num, N: Num, BLOCK_N: constexpr, GATED: constexpr) -> tuple[Block, Block]:
    """A tile's columns of y and their weights' rows: GATED, half of them gates, the other half N below those."""
    inner = tl.arange(0, BLOCK_N)
    if GATED:
        column = tile * (BLOCK_N // 2) + inner % (BLOCK_N // 2)
        return column, column.to(tl.int64) + (inner // (BLOCK_N // 2)).to(tl.int64) * N
    column = tile * BLOCK_N + inner
    return column, column.to(tl.int64)


@jit
def leave_part(
    total: Block, squares: Block, partial: Ptr, arrived: Ptr, place: Num, split: Num, is_row: Block,
    BLOCK_N: constexpr, ROWS: constexpr, SPLIT: constexpr,
) -> Num:  # fmt: skip
    """A program's sums [BLOCK_N, ROWS] and squares [ROWS] are left in the workspace; how many parts have arrived before."""
    part = partial + (place * SPLIT + split).to(tl.int64) * (ROWS * (BLOCK_N + 1))
    row = tl.arange(0, ROWS)
    inner = tl.arange(0, BLOCK_N)[:, None] * ROWS + row[None, :]
    tl.store(part + inner, total, mask=is_row[None, :])
    tl.store(part + ROWS * BLOCK_N + row, squares)
    tl.debug_barrier()  # what all threads of this program wrote stands before its arrival
    return tl.atomic_add(arrived + place, 1, sem="acq_rel")


@jit
def take_parts(
    partial: Ptr, arrived: Ptr, place: Num, is_row: Block, BLOCK_N: constexpr, ROWS: constexpr,
    SPLIT: constexpr,
) -> tuple[Block, Block]:  # fmt: skip
    """All parts of a tile, added up in order: the last to arrive takes them. Read past the L1 cache."""
    tl.store(arrived + place, 0)
    row = tl.arange(0, ROWS)
    inner = tl.arange(0, BLOCK_N)[:, None] * ROWS + row[None, :]
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for index in tl.static_range(SPLIT):
        part = partial + (place * SPLIT + index).to(tl.int64) * (ROWS * (BLOCK_N + 1))
        total += tl.load(part + inner, mask=is_row[None, :], other=0.0, cache_modifier=".cg")
        squares += tl.load(part + ROWS * BLOCK_N + row, cache_modifier=".cg")
    return total, squares


@jit
def finish(
    total: Block, squares: Block, tile: Num, row: Block, is_row: Block, bias: Ptr, residual: Ptr, y: Ptr,
    N: Num, K: Num, r_row: Num, eps: Num, BLOCK_N: constexpr, ROWS: constexpr, BIAS: constexpr,
    RESIDUAL: constexpr, GATED: constexpr, NORM: constexpr,
) -> None:  # fmt: skip
    """Sums [BLOCK_N, ROWS] become a tile of y: the norm's scale of a row, the bias, the gate, the residual."""
    column, output = outputs_of(tile, N, BLOCK_N, GATED)
    if NORM:
        total *= (1 / tl.sqrt_rn(squares / K + eps))[None, :]
    if BIAS:
        total += tl.load(bias + output, mask=column < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        column = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        gate, up = tl.split(tl.permute(tl.reshape(total, [2, BLOCK_N // 2, ROWS]), 1, 2, 0))
        total = gate * tl.sigmoid(gate) * up
    mask = (column < N)[:, None] & is_row[None, :]
    if RESIDUAL:
        other = residual + row.to(tl.int64)[None, :] * r_row + column[:, None]
        total += tl.load(other, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row.to(tl.int64)[None, :] * N + column[:, None], narrow(total, y), mask=mask)


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
