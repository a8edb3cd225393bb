"""Linear layer over int8 or fp8 weights   y = norm(x) (scale q)^T + b + r
x: [M, K]   q: [N, K]   scale: [N]   ->   [M, N]

and the gated one   y = silu(g) u,  [g | u] = norm(x) (scale q)^T        q: [2F, K]   ->   [M, F]
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import (
    Block,
    Count,
    Num,
    Ptr,
    add_dot,
    cdiv,
    constexpr,
    is_ragged,
    jit,
    launch,
    tl,
)
from innervoice_kernels.language.activation import silu_mul_ref
from innervoice_kernels.language.linear import LinearTile, Norm, SplitWorkspace, split_of
from innervoice_kernels.language.linear_tiles import (
    MOST_ROWS,
    as_launched,
    by_tiles,
    finish,
    leave_part,
    outputs_of,
    rows_of_tile,
    take_parts,
    workspace_for,
)
from innervoice_kernels.language.norm import rms_norm_ref
from innervoice_kernels.language.packed import product, whole
from innervoice_kernels.language.weight_formats import scaled_ref

# Three buffers of 16 KiB of codes and, at 8 rows, 4 KiB of input: three programs an SM. Tiles of more than 16 rows
# have as much input as codes. Float32 is not multiplied by the tensor cores and gets small tiles.
# Ragged rows pass through registers, of which a tile may not take too many.
_FEW, _MANY, _FLOAT32 = LinearTile(64, 256, 4, 4), LinearTile(64, 128, 4, 3), LinearTile(32, 64, 4, 3)
_RAGGED, _RAGGED_FLOAT32 = LinearTile(64, 64, 4, 3), LinearTile(32, 32, 4, 2)
# Registers a thread with which three programs share an SM: left to itself the assembler takes 128 at 16 rows, and spills.
_REGISTERS = 168
PART = 32  # of K at least, where parts of a block are multiplied apart: a lane's four codes are one register


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


def _config(dtype: torch.dtype, rows: int, ragged: bool) -> LinearTile:
    if dtype == torch.float32:
        return _RAGGED_FLOAT32 if ragged else _FLOAT32
    if ragged:
        return _RAGGED
    return _FEW if rows <= 16 else _MANY


@jit
def scaled_sums(
    x: Ptr, codes: Ptr, norm: Ptr, row: Block, output: Block, is_column: Block, begin: Num, end: Num, M: Num, K: Num,
    x_row: Num, w_row: Num, ROWS: constexpr, BLOCK_N: constexpr, BLOCK_K: constexpr, PARTS: constexpr, EVEN: constexpr,
    NORM: constexpr,
) -> tuple[Block, Block]:  # fmt: skip
    """Sums [BLOCK_N, ROWS] of codes from begin to end of K, and the squares of rows; PARTS of a block are multiplied apart."""
    total = tl.zeros([PARTS, BLOCK_N, ROWS], tl.float32)
    squares = tl.zeros([PARTS, ROWS, BLOCK_K // PARTS], tl.float32)
    inner = tl.arange(0, PARTS)[:, None] * (BLOCK_K // PARTS) + tl.arange(0, BLOCK_K // PARTS)[None, :]
    x_place = x + tl.minimum(row, M - 1).to(tl.int64)[None, :, None] * x_row
    w_place = codes + tl.where(is_column, output, 0)[None, :, None] * w_row
    for first in tl.range(begin, end, BLOCK_K):
        k = (first + inner)[:, None, :]
        inside = (k < K) | EVEN
        a = tl.load(x_place + k, mask=inside, other=0.0)
        if NORM:
            wide = a.to(tl.float32)
            squares += wide * wide
            a = product(a, tl.load(norm + k, mask=inside, other=0.0), x)
        w = tl.load(w_place + k, mask=inside, other=0.0, eviction_policy="evict_first")
        total = add_dot(whole(w, x), tl.permute(a, 0, 2, 1), total)
    return tl.sum(total, axis=0), tl.sum(tl.sum(squares, axis=2), axis=0)


@jit
def _scaled_linear_kernel(
    x: Ptr, codes: Ptr, scale: Ptr, bias: Ptr, residual: Ptr, norm: Ptr, y: Ptr, partial: Ptr, arrived: Ptr,
    M: Count, N: Num, K: Num, x_row: Num, w_row: Num, r_row: Num, eps: Num, ROWS: constexpr,
    BLOCK_N: constexpr, BLOCK_K: constexpr, PARTS: constexpr, SPLIT: constexpr, EVEN: constexpr, BIAS: constexpr,
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
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column, output = outputs_of(tile, N, BLOCK_N, GATED)
    is_column = column < N
    is_row = row < M
    depth = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT) * BLOCK_K
    begin = split * depth
    sums, norms = scaled_sums(
        x, codes, norm, row, output, is_column, begin, tl.minimum(K, begin + depth), M, K, x_row, w_row, ROWS, BLOCK_N,
        BLOCK_K, PARTS, EVEN, NORM,
    )  # fmt: skip
    if SPLIT > 1:
        place = row_tile * tl.num_programs(0) + tile
        if leave_part(sums, norms, partial, arrived, place, split, is_row, BLOCK_N, ROWS, SPLIT) != SPLIT - 1:
            return
        sums, norms = take_parts(partial, arrived, place, is_row, BLOCK_N, ROWS, SPLIT)
    sums *= tl.load(scale + output, mask=is_column, other=0.0)[:, None]
    finish(
        sums, norms, tile, row, is_row, bias, residual, y, N, K, r_row, eps, BLOCK_N, ROWS, BIAS, RESIDUAL,
        GATED, NORM,
    )  # fmt: skip


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
    config = _config(x.dtype, rows, is_ragged(depth, codes.stride(0)))
    limit = {"maxnreg": _REGISTERS} if rows == 16 and x.dtype != torch.float32 else {}
    split = split_of(columns, depth, x.dtype) if rows <= 16 and not gated else 1
    tiles = (cdiv(num if gated else columns, config.columns), split, cdiv(num_rows, rows))
    y = torch.empty(num_rows, columns, dtype=x.dtype, device=x.device)
    room = workspace_for(workspace, tiles, rows * (config.columns + 1), x.device)
    launch(
        _scaled_linear_kernel, tiles, x, codes, scale.contiguous(), x if bias is None else bias.contiguous(),
        x if residual is None else residual, x if norm is None else norm.w.contiguous(),
        y, room.partial, room.arrived,
        num_rows, columns, depth,
        x.stride(0), codes.stride(0), 0 if residual is None else residual.stride(0),
        0.0 if norm is None else norm.eps, ROWS=rows,
        BLOCK_N=config.columns, BLOCK_K=config.depth, PARTS=min(4, config.depth // PART), SPLIT=split,
        EVEN=depth % config.depth == 0, BIAS=bias is not None, RESIDUAL=residual is not None, GATED=gated,
        NORM=norm is not None, num_warps=config.warps, num_stages=config.stages, **limit,
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
