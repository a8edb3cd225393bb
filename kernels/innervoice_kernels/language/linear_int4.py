"""Linear layer over int4 weights   y = norm(x) W^T + b + r,  w = scale q + minimum
x: [M, K]   q: [N, K / 2]   ->   [M, N]

and the gated one   y = silu(g) u,  [g | u] = norm(x) W^T        q: [2F, K / 2]   ->   [M, F]
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
    dot,
    jit,
    launch,
    narrow,
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
from innervoice_kernels.language.packed import added, halves, product, taken
from innervoice_kernels.language.weight_formats import FOLD, MIDDLE, fold, folded_width, int4_ref

# Columns, bytes of codes in K, warps, stages. Few rows: three buffers of 8 KiB of codes, 4 of input and 2 of scales, four
# programs an SM. A warp has blocks of its own.
_FEW, _MANY = LinearTile(64, 128, 4, 4), LinearTile(64, 64, 4, 4)
_FLOAT32, _FLOAT32_MANY = LinearTile(32, 32, 4, 3), LinearTile(16, 32, 8, 3)
_MIDDLE, _FOLD = tl.constexpr(MIDDLE), tl.constexpr(FOLD)


def int4_linear_ref(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    group: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    gated: bool = False,
    folded: bool = False,
) -> Tensor:
    """y = norm(x) W^T + b + r; W, dequantised in float32, is rounded to x's type, the sums are float32, then
    rounded, and that with r.

    In float64 for float64 input. x [M, K]; codes [N, ceil(K / 2)] uint8, even k in the low four bits; scale,
    minimum [N, ceil(K / group)] float16; minimum None: w = scale (q - 8); bias [N], residual [M, N] -> [M,
    N]. gated: silu_mul of that, [M, N / 2]. folded: codes are as `fold` makes them.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x if norm is None else rms_norm_ref(x, norm.w, norm.eps)
    w = int4_ref(codes, scale, minimum, x.shape[1], group, folded).to(x.dtype)
    y = torch.nn.functional.linear(x.to(wide), w.to(wide), None if bias is None else bias.to(wide)).to(
        x.dtype
    )
    y = silu_mul_ref(y) if gated else y
    return y if residual is None else y + residual


def _config(dtype: torch.dtype, rows: int) -> LinearTile:
    if dtype == torch.float32:
        return _FLOAT32 if rows <= 16 else _FLOAT32_MANY
    return _FEW if rows <= 16 else _MANY


@jit
def _add_group(
    total: Block, low: Block, sums: Block, inputs: Block, scale: Ptr, minimum: Ptr, place: Block, known: Block,
    MINIMUM: constexpr,
) -> tuple[Block, Block]:  # fmt: skip
    """A group's sums [pieces, BLOCK_N, ROWS] times its scale added to total, those of its inputs times its minimum to low."""
    total += tl.load(scale + place, mask=known, other=0.0).to(tl.float32)[:, :, None] * sums
    if MINIMUM:
        low += tl.load(minimum + place, mask=known, other=0.0).to(tl.float32)[:, :, None] * inputs
    return total, low


@jit
def sums_of_few(
    x: Ptr, codes: Ptr, scale: Ptr, minimum: Ptr, norm: Ptr, row: Block, output: Block, is_column: Block,
    begin: Num, end: Num, length: Num, M: Num, K: Num, x_row: Num, w_row: Num, s_row: Num, s_group: Num, ROWS: constexpr,
    BLOCK_N: constexpr, BLOCK_J: constexpr, GROUP: constexpr, EVEN: constexpr, MINIMUM: constexpr, NORM: constexpr,
    STAGES: constexpr,
) -> tuple[Block, Block]:  # fmt: skip
    """Sums [BLOCK_N, ROWS] over the bytes from begin to end, and the squares of rows.

    Codes are multiplied as they are, blocks of FOLD bytes side by side, the warps having different ones. Low and high codes
    of a block are of two groups, or of one: its sums are scaled, those of its inputs, which also take off again what `halves`
    adds to the codes, are multiplied by the minimum.
    """
    total = tl.zeros([BLOCK_J // _FOLD, BLOCK_N, ROWS], tl.float32)
    low = tl.zeros([BLOCK_J // _FOLD, BLOCK_N, ROWS], tl.float32)
    squares = tl.zeros([BLOCK_J // _FOLD, ROWS, _FOLD], tl.float32)
    nothing = tl.zeros([BLOCK_J // _FOLD, BLOCK_N, ROWS], tl.float32)
    block, inner = tl.arange(0, BLOCK_J // _FOLD), tl.arange(0, _FOLD)
    x_place = x + tl.minimum(row, M - 1).to(tl.int64)[None, :, None] * x_row
    w_place = codes + tl.where(is_column, output, 0)[None, :, None] * w_row
    s_place = output[None, :] * s_row
    norm_place = norm + tl.zeros([1, ROWS, 1], tl.int32)
    for first in tl.range(begin, end, BLOCK_J, num_stages=STAGES):
        start = first + block * _FOLD
        k1 = (2 * start[:, None] + inner[None, :])[:, None, :]
        k2 = k1 + _FOLD
        a = tl.load(x_place + k1, mask=(k1 < K) | EVEN, other=0.0)
        b = tl.load(x_place + k2, mask=(k2 < K) | EVEN, other=0.0)
        if NORM:
            left, right = a.to(tl.float32), b.to(tl.float32)
            squares += left * left
            squares += right * right
            a = product(a, tl.load(norm_place + k1, mask=(k1 < K) | EVEN, other=0.0), x)
            b = product(b, tl.load(norm_place + k2, mask=(k2 < K) | EVEN, other=0.0), x)
        a, b = tl.permute(a, 0, 2, 1), tl.permute(b, 0, 2, 1)
        byte = (start[:, None] + inner[None, :])[:, None, :]
        q = tl.load(w_place + byte, mask=(byte < length) | EVEN, other=0, eviction_policy="evict_first")
        left, right = halves(q, x)
        minus = taken(q, x, not MINIMUM)
        group = 2 * start // GROUP
        known = is_column[None, :] & ((group * GROUP < K) | EVEN)[:, None]
        place = s_place + group[:, None] * s_group
        inputs = dot(minus, a, nothing)
        if GROUP == _FOLD:
            total, low = _add_group(
                total, low, dot(left, a, inputs), inputs, scale, minimum, place, known, MINIMUM
            )
            known = is_column[None, :] & ((group * GROUP + GROUP < K) | EVEN)[:, None]
            inputs = dot(minus, b, nothing)
            total, low = _add_group(
                total, low, dot(right, b, inputs), inputs, scale, minimum, place + s_group, known, MINIMUM
            )
        else:
            inputs = dot(minus, b, inputs)
            sums = dot(right, b, dot(left, a, inputs))
            total, low = _add_group(total, low, sums, inputs, scale, minimum, place, known, MINIMUM)
    if MINIMUM:
        total -= low / added(x)
    return tl.sum(total, axis=0), tl.sum(tl.sum(squares, axis=2), axis=0)


@jit
def _weights(
    codes: Block, scale: Ptr, minimum: Ptr, place: Block, known: Block, MINIMUM: constexpr
) -> Block:  # fmt: skip
    """Codes [blocks, FOLD, BLOCK_N] of one group in each block scaled, in float32."""
    step = tl.load(scale + place, mask=known, other=0.0).to(tl.float32)
    least = -_MIDDLE * step
    if MINIMUM:
        least = tl.load(minimum + place, mask=known, other=0.0).to(tl.float32)
    return codes.to(tl.float32) * step[:, None, :] + least[:, None, :]


@jit
def sums_of_many(
    x: Ptr, codes: Ptr, scale: Ptr, minimum: Ptr, norm: Ptr, row: Block, output: Block, is_column: Block,
    begin: Num, end: Num, length: Num, M: Num, K: Num, x_row: Num, w_row: Num, s_row: Num, s_group: Num, ROWS: constexpr,
    BLOCK_N: constexpr, BLOCK_J: constexpr, GROUP: constexpr, EVEN: constexpr, MINIMUM: constexpr, NORM: constexpr,
    STAGES: constexpr,
) -> tuple[Block, Block]:  # fmt: skip
    """The same for tiles of more rows, whose sums are too many for blocks apart: codes are scaled, and rounded."""
    block, inner, lane = tl.arange(0, BLOCK_J // _FOLD), tl.arange(0, _FOLD), tl.arange(0, BLOCK_J)
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    x_place = x + tl.minimum(row, M - 1).to(tl.int64)[:, None] * x_row
    w_place = codes + tl.where(is_column, output, 0)[None, None, :] * w_row
    for first in tl.range(begin, end, BLOCK_J):
        k = 2 * first + lane // _FOLD * (2 * _FOLD) + lane % _FOLD
        a = tl.load(x_place + k[None, :], mask=((k < K) | EVEN)[None, :], other=0.0)
        b = tl.load(x_place + k[None, :] + _FOLD, mask=((k + _FOLD < K) | EVEN)[None, :], other=0.0)
        if NORM:
            left, right = a.to(tl.float32), b.to(tl.float32)
            squares += tl.sum(left * left + right * right, axis=1)
            a = product(a, tl.load(norm + k, mask=(k < K) | EVEN, other=0.0)[None, :], x)
            b = product(b, tl.load(norm + k + _FOLD, mask=(k + _FOLD < K) | EVEN, other=0.0)[None, :], x)
        start = first + block * _FOLD
        byte = start[:, None] + inner[None, :]
        there = ((byte < length) | EVEN)[:, :, None]
        q = tl.load(w_place + byte[:, :, None], mask=there, other=0, eviction_policy="evict_first")
        group, other = 2 * start // GROUP, (2 * start + _FOLD) // GROUP
        known = is_column[None, :] & ((group * GROUP < K) | EVEN)[:, None]
        also = is_column[None, :] & ((other * GROUP < K) | EVEN)[:, None]
        place = output[None, :] * s_row
        low = _weights(q & 15, scale, minimum, place + group[:, None] * s_group, known, MINIMUM)
        high = _weights(q >> 4, scale, minimum, place + other[:, None] * s_group, also, MINIMUM)
        total = add_dot(a, tl.reshape(narrow(low, x), [BLOCK_J, BLOCK_N]), total)
        total = add_dot(b, tl.reshape(narrow(high, x), [BLOCK_J, BLOCK_N]), total)
    return tl.trans(total), squares


@jit
def _int4_linear_kernel(
    x: Ptr, codes: Ptr, scale: Ptr, minimum: Ptr, bias: Ptr, residual: Ptr, norm: Ptr, y: Ptr, partial: Ptr,
    arrived: Ptr, M: Count, N: Num, K: Num, length: Num, x_row: Num, w_row: Num, s_row: Num, s_group: Num,
    r_row: Num, eps: Num, ROWS: constexpr, BLOCK_N: constexpr, BLOCK_J: constexpr, GROUP: constexpr, SPLIT: constexpr,
    EVEN: constexpr, MINIMUM: constexpr, BIAS: constexpr, RESIDUAL: constexpr, GATED: constexpr, NORM: constexpr,
    FEW: constexpr, STAGES: constexpr,
) -> None:  # fmt: skip
    """One part of K of a tile [BLOCK_N, ROWS] a program; the part that arrives last adds all up, in order,
    and finishes.

    Codes are folded: low and high ones are multiplied apart, so that no code changes its place. GATED: half of
    a tile's outputs are N below the others. NORM: as for _skinny_kernel.
    """
    tile, split, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column, output = outputs_of(tile, N, BLOCK_N, GATED)
    is_column, is_row = column < N, row < M
    depth = tl.cdiv(tl.cdiv(length, BLOCK_J), SPLIT) * BLOCK_J
    begin = split * depth
    end = tl.minimum(length, begin + depth)
    if FEW:
        total, squares = sums_of_few(
            x, codes, scale, minimum, norm, row, output, is_column, begin, end, length, M, K, x_row, w_row, s_row, s_group,
            ROWS, BLOCK_N, BLOCK_J, GROUP, EVEN, MINIMUM, NORM, STAGES,
        )  # fmt: skip
    else:
        total, squares = sums_of_many(
            x, codes, scale, minimum, norm, row, output, is_column, begin, end, length, M, K, x_row, w_row, s_row, s_group,
            ROWS, BLOCK_N, BLOCK_J, GROUP, EVEN, MINIMUM, NORM, STAGES,
        )  # fmt: skip
    if SPLIT > 1:
        place = row_tile * tl.num_programs(0) + tile
        if (
            leave_part(total, squares, partial, arrived, place, split, is_row, BLOCK_N, ROWS, SPLIT)
            != SPLIT - 1
        ):
            return
        total, squares = take_parts(partial, arrived, place, is_row, BLOCK_N, ROWS, SPLIT)
    finish(
        total, squares, tile, row, is_row, bias, residual, y, N, K, r_row, eps, BLOCK_N, ROWS, BIAS, RESIDUAL,
        GATED, NORM,
    )  # fmt: skip


def _int4_linear_triton(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    group: int,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
    folded: bool,
    workspace: SplitWorkspace | None,
    invariant: bool,
) -> Tensor:
    (num_rows, depth), num = x.shape, len(codes)
    columns = num // 2 if gated else num
    expected = ((num, folded_width(depth) if folded else cdiv(depth, 2)), (num, cdiv(depth, group)))
    if (tuple(codes.shape), tuple(scale.shape)) != expected or (
        minimum is not None and minimum.shape != scale.shape
    ):
        raise ValueError(
            f"int4_linear: x is {tuple(x.shape)}, codes {tuple(codes.shape)}, scale {tuple(scale.shape)} in groups of {group}: "
            f"expected codes {expected[0]}, scale and minimum {expected[1]}"
        )
    codes = codes if folded else fold(codes, depth)
    x, codes, residual = as_launched("int4_linear", x, codes, residual, columns)
    if minimum is not None and minimum.stride() != scale.stride():
        minimum, scale = minimum.contiguous(), scale.contiguous()
    rows = 16 if invariant else rows_of_tile(num_rows)
    config, few = _config(x.dtype, rows), rows <= 16 and x.dtype != torch.float32
    split = split_of(columns, depth, x.dtype) if rows <= 16 and not gated else 1
    tiles = (cdiv(num if gated else columns, config.columns), split, cdiv(num_rows, rows))
    y = torch.empty(num_rows, columns, dtype=x.dtype, device=x.device)
    room = workspace_for(workspace, tiles, rows * (config.columns + 1), x.device)
    launch(
        _int4_linear_kernel, tiles, x, codes, scale, scale if minimum is None else minimum,
        x if bias is None else bias.contiguous(), x if residual is None else residual,
        x if norm is None else norm.w.contiguous(),
        y, room.partial, room.arrived,
        num_rows, columns, depth, codes.shape[1], x.stride(0), codes.stride(0), *scale.stride(),
        0 if residual is None else residual.stride(0), 0.0 if norm is None else norm.eps, ROWS=rows, BLOCK_N=config.columns,
        BLOCK_J=config.depth, GROUP=group, SPLIT=split, EVEN=depth % (2 * config.depth) == 0, MINIMUM=minimum is not None,
        BIAS=bias is not None, RESIDUAL=residual is not None, GATED=gated, NORM=norm is not None, FEW=few,
        STAGES=config.stages, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return y


def int4_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    group: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    gated: bool = False,
    *,
    folded: bool = False,
    workspace: SplitWorkspace | None = None,
    invariant: bool = False,
) -> Tensor:
    """y = norm(x) W^T + b + r: x [M, K], codes [N, ceil(K / 2)], scale and minimum [N, ceil(K / group)] -> [M, N],
    or gated [M, N / 2]; see int4_linear_ref.

    folded: codes are as `fold` makes them, which the kernel reads; others are folded anew in every call.
    With more than MOST_ROWS rows the weights are dequantised, some outputs at a time, and cuBLAS multiplies.
    workspace: kept from call to call, as a captured graph needs it. invariant: a row's sums are those of the row
    alone, however many there are.
    """
    if choose("int4_linear", x) != TRITON:
        return int4_linear_ref(x, codes, scale, minimum, group, bias, residual, norm, gated, folded)
    if invariant or len(x) <= MOST_ROWS:
        return _int4_linear_triton(
            x, codes, scale, minimum, group, bias, residual, norm, gated, folded, workspace, invariant
        )
    width = x.shape[1]

    def dequantised(rows: slice) -> Tensor:
        least = None if minimum is None else minimum[rows]
        return int4_ref(codes[rows], scale[rows], least, width, group, folded)

    return by_tiles(x, dequantised, len(codes), bias, residual, norm, gated)
