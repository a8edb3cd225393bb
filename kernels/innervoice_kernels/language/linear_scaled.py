"""Linear layer over int8 or fp8 weights   y = norm(x) (scale q)^T + b + r
x: [M, K]   q: [N, K]   scale: [N]   ->   [M, N]

and the gated one   y = silu(g) u,  [g | u] = norm(x) (scale q)^T        q: [2F, K]   ->   [M, F]
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Block, Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, narrow, tl
from innervoice_kernels.language.activation import silu_mul_ref
from innervoice_kernels.language.linear import LinearTile, Norm, SplitWorkspace, split_of
from innervoice_kernels.language.linear_tiles import (
    MOST_ROWS,
    as_launched,
    by_tiles,
    rows_of_tile,
    workspace_for,
)
from innervoice_kernels.language.norm import rms_norm_ref
from innervoice_kernels.language.weight_formats import scaled_ref

# Five buffers of 8 KiB of codes and 4 KiB of input, three programs an SM. Float32 is not multiplied by the
# tensor cores and gets small tiles.
_HALF, _FLOAT32 = LinearTile(64, 128, 4, 6), LinearTile(32, 32, 4, 3)
_HALF_GATED, _WIDE_GATED = (
    LinearTile(32, 128, 4, 6),
    LinearTile(32, 128, 4, 3),
)  # two tiles of half the columns
_WIDE = LinearTile(64, 128, 4, 3)  # tiles of more than 16 rows: their input is as large as the codes


def scaled_linear_ref(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    gated: bool = False,
) -> Tensor:
    """y = norm(x) (scale q)^T + b + r, in float32 (float64 for float64 input); the product with b is rounded, and
    its sum with r.

    x [M, K]; codes [N, K] int8 or float8_e4m3fn; scale [N] float32; bias [N], residual [M, N] -> [M, N].
    gated: silu_mul of that, [M, N / 2].
    """
    x = x if norm is None else rms_norm_ref(x, norm.w, norm.eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    w = scaled_ref(codes, scale).to(wide)
    y = torch.nn.functional.linear(x.to(wide), w, None if bias is None else bias.to(wide)).to(x.dtype)
    y = silu_mul_ref(y) if gated else y
    return y if residual is None else y + residual


def _config(dtype: torch.dtype, rows: int, gated: bool) -> LinearTile:
    if dtype == torch.float32:
        return _FLOAT32
    if gated:
        return _HALF_GATED if rows == 16 else _WIDE_GATED
    return _HALF if rows == 16 else _WIDE


@jit
def _whole(w: Block, x: Ptr) -> Block:
    """Codes in the type of x, which holds them exactly."""
    if w.dtype == tl.int8:
        w = w.to(tl.float32)
    return w.to(x.dtype.element_ty)


@jit
def _scaled_linear_kernel(
    x: Ptr, codes: Ptr, scale: Ptr, bias: Ptr, residual: Ptr, norm: Ptr, y: Ptr, partial: Ptr, arrived: Ptr,
    M: Count, N: Num, K: Num, x_row: Num, w_row: Num, r_row: Num, eps: Num, ROWS: constexpr,
    BLOCK_N: constexpr, BLOCK_K: constexpr, SPLIT: constexpr, EVEN: constexpr, BIAS: constexpr,
    RESIDUAL: constexpr, GATED: constexpr, NORM: constexpr,
) -> None:  # fmt: skip
    """One part of K of a tile [ROWS, BLOCK_N] a program; the part that arrives last adds all up, in order,
    and finishes.

    Codes are whole in bfloat16 and float16: the product is exact but for its sums, and an output's scale
    comes last. GATED: the outputs of a tile and those N below them. NORM: as for _skinny_kernel.
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
    w_place = codes + column.to(tl.int64)[None, :] * w_row
    for first in tl.range(split * depth, tl.minimum(K, split * depth + depth), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | EVEN
        a = tl.load(x_place + k[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        if NORM:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            a = narrow(wide * tl.load(norm + k, mask=inside, other=0.0).to(tl.float32)[None, :], x)
        mask = is_column[None, :] & inside[:, None]
        at = w_place + k[:, None]
        w = tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first")
        total = dot(a, _whole(w, x), total)
        if GATED:
            below = at + tl.cast(N, tl.int64) * w_row
            w = tl.load(below, mask=mask, other=0.0, eviction_policy="evict_first")
            up = dot(a, _whole(w, x), up)
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
    total *= tl.load(scale + column, mask=is_column, other=0.0)[None, :]
    if GATED:
        up *= tl.load(scale + N + column, mask=is_column, other=0.0)[None, :]
    if NORM:
        root = (1 / tl.sqrt_rn(squares / K + eps))[:, None]
        total *= root
        up *= root
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * up
    mask = is_row[:, None] & is_column[None, :]
    if RESIDUAL:
        other = residual + row.to(tl.int64)[:, None] * r_row + column[None, :]
        total += tl.load(other, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row.to(tl.int64)[:, None] * N + column[None, :], narrow(total, y), mask=mask)


def _scaled_linear_triton(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
    workspace: SplitWorkspace | None,
    invariant: bool,
) -> Tensor:
    (num_rows, depth), (num, _) = x.shape, codes.shape
    columns = num // 2 if gated else num
    if codes.shape[1] != depth or scale.shape != (num,) or scale.dtype != torch.float32:
        raise ValueError(
            f"scaled_linear: x is {tuple(x.shape)}, codes {tuple(codes.shape)}, scale {scale.dtype} {tuple(scale.shape)}: "
            "expected [M, K], [N, K], float32 [N]"
        )
    x, codes, residual = as_launched("scaled_linear", x, codes, residual, columns)
    rows = 16 if invariant else rows_of_tile(num_rows)
    config = _config(x.dtype, rows, gated)
    split = split_of(columns, depth, x.dtype) if rows == 16 and not gated else 1
    tiles = (cdiv(columns, config.columns), split, cdiv(num_rows, rows))
    y = torch.empty(num_rows, columns, dtype=x.dtype, device=x.device)
    room = workspace_for(workspace, tiles, rows * (config.columns + 1), x.device)
    launch(
        _scaled_linear_kernel, tiles, x, codes, scale.contiguous(), x if bias is None else bias.contiguous(),
        x if residual is None else residual, x if norm is None else norm.w.contiguous(),
        y, room.partial, room.arrived,
        num_rows, columns, depth,
        x.stride(0), codes.stride(0), 0 if residual is None else residual.stride(0),
        0.0 if norm is None else norm.eps, ROWS=rows,
        BLOCK_N=config.columns, BLOCK_K=config.depth, SPLIT=split, EVEN=depth % config.depth == 0,
        BIAS=bias is not None, RESIDUAL=residual is not None, GATED=gated, NORM=norm is not None, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
    return y


def scaled_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    gated: bool = False,
    *,
    workspace: SplitWorkspace | None = None,
    invariant: bool = False,
) -> Tensor:
    """y = norm(x) (scale q)^T + b + r: x [M, K], codes [N, K] int8 or float8_e4m3fn, scale [N] -> [M, N], or gated
    [M, N / 2]; see scaled_linear_ref.

    With more than MOST_ROWS rows the weights are dequantised, some outputs at a time, and cuBLAS multiplies.
    workspace: kept from call to call, as a captured graph needs it. invariant: a row's sums are those of the row
    alone, however many there are.
    """
    if choose("scaled_linear", x) != TRITON:
        return scaled_linear_ref(x, codes, scale, bias, residual, norm, gated)
    if invariant or len(x) <= MOST_ROWS:
        return _scaled_linear_triton(x, codes, scale, bias, residual, norm, gated, workspace, invariant)
    weights = lambda rows: scaled_ref(codes[rows], scale[rows])  # noqa: E731
    return by_tiles(x, weights, len(codes), bias, residual, norm, gated)
