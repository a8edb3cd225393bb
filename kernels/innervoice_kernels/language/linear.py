"""Linear layers of a decode step   y = norm(x) W^T + b + r        x: [M, K]   W: [N, K]   ->   [M, N]

and the gated one   y = silu(g) u,  [g | u] = norm(x) W^T        W: [2F, K]   ->   [M, F]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import (
    Count,
    Num,
    Ptr,
    add_dot,
    cdiv,
    constexpr,
    fetch_ahead,
    follow,
    is_ragged,
    jit,
    launch,
    narrow,
    tl,
)
from innervoice_kernels.language.activation import silu_mul, silu_mul_ref
from innervoice_kernels.language.norm import rms_norm, rms_norm_ref

SKINNY = (
    16  # rows of one tensor-core tile; with more, cuBLAS reads the weights as few times and multiplies faster
)


class Norm(NamedTuple):
    """RMSNorm of the input: w [K]."""

    w: Tensor
    eps: float


class LinearTile(NamedTuple):
    """Columns and depth of a tile of weights, warps, stages."""

    columns: int
    depth: int
    warps: int
    stages: int


# Four stages are three buffers of 16 KiB of weights and 4 KiB of input; three programs share an SM, with
# nearly 192 KiB on their way. Gated tiles are two of half the columns, and of three stages: five programs share
# an SM, so that the 428 of GLM-4-Voice's gate run at once and none is left for a second wave. Float32 is not
# multiplied by the tensor cores and gets small tiles, of ragged rows, which pass through registers, smaller ones.
_HALF = LinearTile(64, 128, 4, 4)
_HALF_GATED = LinearTile(32, 128, 4, 3)
_FLOAT32, _RAGGED_FLOAT32 = LinearTile(32, 32, 4, 3), LinearTile(32, 16, 4, 3)
# The rule of splitting K: until there are so many programs, two for each SM of the largest chips, while each
# keeps so much of K.
_PROGRAMS, _LEAST_DEPTH = 256, 512
# Lines of 128 bytes that a row of a tile fetches ahead: as much of K as is on its way in four stages of
# halves.
_AHEAD, _LINE = tl.constexpr(8), tl.constexpr(64)


def linear_ref(
    x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, norm: Norm | None = None
) -> Tensor:
    """y = norm(x) W^T + b + r, added up in float32 (float64 for float64 input); norm and product are rounded,
    and the sum with r.

    x [M, K], w [N, K], bias [N], residual [M, N] -> [M, N].
    """
    h = x if norm is None else rms_norm_ref(x, norm.w, norm.eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(h.to(wide), w.to(wide), None if bias is None else bias.to(wide)).to(x.dtype)
    return y if residual is None else y + residual


def gated_linear_ref(x: Tensor, w: Tensor, norm: Norm | None = None) -> Tensor:
    """silu_mul(norm(x) W^T): x [M, K], w [2F, K], the gate's rows first -> [M, F]. Every stage rounds."""
    return silu_mul_ref(linear_ref(x, w, norm=norm))


@dataclass(frozen=True)
class SplitWorkspace:
    """Memory of the parts of a split product, for one call at a time. arrived is all 0 between calls."""

    partial: Tensor  # [N] float32
    arrived: Tensor  # [N] int32

    @classmethod
    def allocate(
        cls, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
    ) -> SplitWorkspace:
        """For up to SKINNY rows and weights of these shapes (N, K)."""
        sizes = [
            _sizes(1, columns, split_of(columns, depth, dtype), _config(dtype).columns)
            for columns, depth in shapes
        ]
        partial, arrived = (max((size[i] for size in sizes), default=0) for i in range(2))
        return cls(
            torch.empty(partial, dtype=torch.float32, device=device),
            torch.zeros(arrived, dtype=torch.int32, device=device),
        )


def _config(dtype: torch.dtype, gated: bool = False, ragged: bool = False) -> LinearTile:
    if dtype == torch.float32:
        return _RAGGED_FLOAT32 if ragged else _FLOAT32
    return _HALF_GATED if gated else _HALF


def split_of(columns: int, depth: int, dtype: torch.dtype) -> int:
    """In how many parts K is split, from the shape of the weights alone, so that a row's sums are the same in
    every batch.
    """
    split, tiles = 1, cdiv(columns, _config(dtype).columns)
    while tiles * split < _PROGRAMS and depth // (2 * split) >= _LEAST_DEPTH:
        split *= 2
    return split


def _sizes(row_tiles: int, columns: int, split: int, block: int) -> tuple[int, int]:
    """Elements of partial (a tile of sums and its row of squares a program) and of arrived."""
    tiles = row_tiles * cdiv(columns, block)
    return (tiles * split * SKINNY * (block + 1), tiles) if split > 1 else (0, 0)


@jit
def _skinny_kernel(
    x: Ptr, w: Ptr, bias: Ptr, residual: Ptr, norm: Ptr, y: Ptr, partial: Ptr, arrived: Ptr, M: Count, N: Num,
    K: Num, x_row: Num, w_row: Num, r_row: Num, eps: Num, ROWS: constexpr, BLOCK_N: constexpr,
    BLOCK_K: constexpr, SPLIT: constexpr, EVEN: constexpr, GATED: constexpr, BIAS: constexpr,
    RESIDUAL: constexpr, NORM: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """One part of K of a tile [ROWS, BLOCK_N] a program; the part that arrives last adds all up, in order,
    and finishes.

    The norm's scale is the same for a whole row: its squares are added up beside the product, which it
    multiplies at the end.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    row_tile = tl.program_id(2)
    row, column = row_tile * ROWS + tl.arange(0, ROWS), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < M, column < N
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    up = tl.zeros([ROWS, BLOCK_N], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    depth = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT) * BLOCK_K
    x_place = x + row.to(tl.int64)[:, None] * x_row
    w_place = w + column.to(tl.int64)[None, :] * w_row
    if PDL:  # weights do not change: the first of them are on their way while the kernel before ends
        ahead = tl.minimum(split * depth + tl.arange(0, _AHEAD) * _LINE, K - 1)
        own = w + tl.minimum(column, N - 1).to(tl.int64)[:, None] * w_row + ahead[None, :]
        fetch_ahead(own)
        if GATED:
            fetch_ahead(own + tl.cast(N, tl.int64) * w_row)
        follow()
    for first in tl.range(split * depth, tl.minimum(K, split * depth + depth), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | EVEN
        a = tl.load(x_place + k[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        if NORM:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            a = narrow(wide * tl.load(norm + k, mask=inside, other=0.0).to(tl.float32)[None, :], x)
        mask = is_column[None, :] & inside[:, None]
        total = add_dot(
            a, tl.load(w_place + k[:, None], mask=mask, other=0.0, eviction_policy="evict_first"), total
        )
        if GATED:
            below = w_place + tl.cast(N, tl.int64) * w_row + k[:, None]
            up = add_dot(a, tl.load(below, mask=mask, other=0.0, eviction_policy="evict_first"), up)
    if SPLIT > 1:
        place = row_tile * tl.num_programs(0) + tile
        part = partial + (place * SPLIT + split).to(tl.int64) * (ROWS * (BLOCK_N + 1))
        inner = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(part + inner, total, mask=is_row[:, None])
        tl.store(part + ROWS * BLOCK_N + tl.arange(0, ROWS), squares)
        tl.debug_barrier()  # what all threads of this program wrote stands before its arrival
        if tl.atomic_add(arrived + place, 1, sem="acq_rel") != SPLIT - 1:
            return
        tl.store(arrived + place, 0)
        total = tl.zeros([ROWS, BLOCK_N], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
        for index in tl.static_range(SPLIT):  # written by other programs: read past the L1 cache
            part = partial + (place * SPLIT + index).to(tl.int64) * (ROWS * (BLOCK_N + 1))
            total += tl.load(part + inner, mask=is_row[:, None], other=0.0, cache_modifier=".cg")
            squares += tl.load(part + ROWS * BLOCK_N + tl.arange(0, ROWS), cache_modifier=".cg")
    if NORM:
        scale = (1 / tl.sqrt_rn(squares / K + eps))[:, None]
        total *= scale
        up *= scale
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * up
    mask = is_row[:, None] & is_column[None, :]
    if RESIDUAL:
        other = residual + row.to(tl.int64)[:, None] * r_row + column[None, :]
        total += tl.load(other, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row.to(tl.int64)[:, None] * N + column[None, :], narrow(total, y), mask=mask)


def _skinny(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
    workspace: SplitWorkspace | None,
) -> Tensor:
    """Tiles of SKINNY rows: the same sums for a row whatever the others are, as many as there may be."""
    rows, depth = x.shape
    columns = len(w) // 2 if gated else len(w)
    if (
        w.shape[1] != depth
        or w.dtype != x.dtype
        or (residual is not None and residual.shape != (rows, columns))
    ):
        third = "" if residual is None else f", residual {tuple(residual.shape)}"
        raise ValueError(
            f"linear: x is {x.dtype} {tuple(x.shape)}, w {w.dtype} {tuple(w.shape)}{third}: expected one type, [M, K], [N, K]"
        )
    x, w = (a if a.stride(-1) == 1 or depth == 1 else a.contiguous() for a in (x, w))
    config = _config(x.dtype, gated, is_ragged(depth, w.stride(0)))
    split = 1 if gated else split_of(columns, depth, x.dtype)
    row_tiles = cdiv(rows, SKINNY)
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    sizes = _sizes(row_tiles, columns, split, config.columns)
    if workspace is None:
        workspace = SplitWorkspace(
            torch.empty(sizes[0], dtype=torch.float32, device=x.device),
            torch.zeros(sizes[1], dtype=torch.int32, device=x.device),
        )
    elif workspace.partial.numel() < sizes[0] or workspace.arrived.numel() < sizes[1]:
        raise ValueError(
            f"linear: the workspace is too small for {rows} rows of {columns} columns in {split} parts"
        )
    residual = residual if residual is None or residual.stride(-1) == 1 else residual.contiguous()
    launch(
        _skinny_kernel, (cdiv(columns, config.columns), split, row_tiles), x, w,
        x if bias is None else bias.contiguous(), x if residual is None else residual,
        x if norm is None else norm.w.contiguous(), y, workspace.partial, workspace.arrived, rows, columns,
        depth, x.stride(0), w.stride(0), 0 if residual is None else residual.stride(0),
        0.0 if norm is None else norm.eps, ROWS=SKINNY, BLOCK_N=config.columns, BLOCK_K=config.depth,
        SPLIT=split, EVEN=depth % config.depth == 0, GATED=gated, BIAS=bias is not None,
        RESIDUAL=residual is not None, NORM=norm is not None, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
    return y


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    *,
    invariant: bool = False,
    workspace: SplitWorkspace | None = None,
) -> Tensor:
    """y = norm(x) W^T + b + r: x [M, K], w [N, K], bias [N], residual [M, N] -> [M, N].

    With more than SKINNY rows cuBLAS multiplies, whose sums depend on how many there are; invariant: the own
    kernel all the same. workspace: kept from call to call, as a captured graph needs it.
    """
    if choose("linear", x) != TRITON:
        return linear_ref(x, w, bias, residual, norm)
    if invariant or len(x) <= SKINNY:
        return _skinny(x, w, bias, residual, norm, False, workspace)
    y = F.linear(x if norm is None else rms_norm(x, norm.w, norm.eps), w, bias)
    return y if residual is None else y.add_(residual)


def gated_linear(x: Tensor, w: Tensor, norm: Norm | None = None, *, invariant: bool = False) -> Tensor:
    """silu_mul(norm(x) W^T): x [M, K], w [2F, K], gate rows first -> [M, F]. invariant: as for linear."""
    if choose("linear", x) != TRITON:
        return gated_linear_ref(x, w, norm)
    if invariant or len(x) <= SKINNY:
        return _skinny(x, w, None, None, norm, True, None)
    return silu_mul(F.linear(x if norm is None else rms_norm(x, norm.w, norm.eps), w))
