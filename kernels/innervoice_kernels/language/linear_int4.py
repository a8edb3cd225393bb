"""Linear layer over int4 weights   y = norm(x) W^T + b + r,  w = scale q + minimum
x: [M, K]   q: [N, K / 2]   ->   [M, N]

and the gated one   y = silu(g) u,  [g | u] = norm(x) W^T        q: [2F, K / 2]   ->   [M, F]
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
from innervoice_kernels.language.weight_formats import MIDDLE, int4_ref

# Columns, bytes of codes in K, warps, stages. A lane reads 16 bytes, a group of 32; four lanes a row's 64.
_HALF, _FLOAT32 = LinearTile(64, 64, 4, 4), LinearTile(32, 32, 4, 3)
_HALF_GATED = LinearTile(32, 64, 4, 4)  # two tiles of half the columns
_MIDDLE = tl.constexpr(MIDDLE)


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
) -> Tensor:
    """y = norm(x) W^T + b + r; W, dequantised in float32, is rounded to x's type, the sums are float32, then
    rounded, and that with r.

    In float64 for float64 input. x [M, K]; codes [N, ceil(K / 2)] uint8, even k in the low four bits; scale,
    minimum [N, ceil(K / group)] float16; minimum None: w = scale (q - 8); bias [N], residual [M, N] -> [M,
    N]. gated: silu_mul of that, [M, N / 2].
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x if norm is None else rms_norm_ref(x, norm.w, norm.eps)
    w = int4_ref(codes, scale, minimum, x.shape[1], group).to(x.dtype)
    y = torch.nn.functional.linear(x.to(wide), w.to(wide), None if bias is None else bias.to(wide)).to(
        x.dtype
    )
    y = silu_mul_ref(y) if gated else y
    return y if residual is None else y + residual


@jit
def _add_product(
    total: Block, even: Block, odd: Block, w_place: Block, mask: Block, scale: Ptr, minimum: Ptr,
    s_place: Block, s_mask: Block, like: Ptr, BLOCK_N: constexpr, BLOCK_J: constexpr, MINIMUM: constexpr,
) -> Block:  # fmt: skip
    """A tile's sums with those of BLOCK_J bytes of codes: even and odd k of the input against theirs."""
    q = tl.load(w_place, mask=mask, other=0, eviction_policy="evict_first")
    step = tl.load(scale + s_place, mask=s_mask, other=0.0).to(tl.float32)
    low = -_MIDDLE * step
    if MINIMUM:
        low = tl.load(minimum + s_place, mask=s_mask, other=0.0).to(tl.float32)
    below = (q & 15).to(tl.float32) * step[:, None, :] + low[:, None, :]
    above = (q >> 4).to(tl.float32) * step[:, None, :] + low[:, None, :]
    total = dot(even, tl.reshape(narrow(below, like), [BLOCK_J, BLOCK_N]), total)
    return dot(odd, tl.reshape(narrow(above, like), [BLOCK_J, BLOCK_N]), total)


@jit
def _int4_linear_kernel(
    x: Ptr, codes: Ptr, scale: Ptr, minimum: Ptr, bias: Ptr, residual: Ptr, norm: Ptr, y: Ptr, partial: Ptr,
    arrived: Ptr, M: Count, N: Num, K: Num, x_row: Num, w_row: Num, s_row: Num, s_group: Num, r_row: Num,
    eps: Num, ROWS: constexpr, BLOCK_N: constexpr, BLOCK_J: constexpr, GROUP: constexpr, PIECE: constexpr,
    SPLIT: constexpr, EVEN: constexpr, MINIMUM: constexpr, BIAS: constexpr, RESIDUAL: constexpr,
    GATED: constexpr, NORM: constexpr,
) -> None:  # fmt: skip
    """One part of K of a tile [ROWS, BLOCK_N] a program; the part that arrives last adds all up, in order,
    and finishes.

    A byte has two neighbouring k: even and odd ones are multiplied apart, so that no code changes its place.
    PIECE bytes of a tile share a scale. GATED: the outputs of a tile and those N below them. NORM: as for
    _skinny_kernel.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    row_tile = tl.program_id(2)
    row, column = row_tile * ROWS + tl.arange(0, ROWS), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < M, column < N
    piece, inner = tl.arange(0, BLOCK_J // PIECE), tl.arange(0, PIECE)
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    up = tl.zeros([ROWS, BLOCK_N], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    length = tl.cdiv(K, 2)
    depth = tl.cdiv(tl.cdiv(length, BLOCK_J), SPLIT) * BLOCK_J
    x_place = x + row.to(tl.int64)[:, None] * x_row
    w_place = codes + column.to(tl.int64)[None, None, :] * w_row
    for first in tl.range(split * depth, tl.minimum(length, split * depth + depth), BLOCK_J):
        k = 2 * first + tl.arange(0, 2 * BLOCK_J)
        inside = (k < K) | EVEN
        a = tl.load(x_place + k[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        if NORM:
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            a = narrow(wide * tl.load(norm + k, mask=inside, other=0.0).to(tl.float32)[None, :], x)
        even, odd = tl.split(tl.reshape(a, [ROWS, BLOCK_J, 2]))
        byte = first + piece[:, None] * PIECE + inner[None, :]  # [pieces, PIECE]
        mask = is_column[None, None, :] & ((byte < length) | EVEN)[:, :, None]
        group = (first + piece * PIECE) // (GROUP // 2)  # [pieces]
        s_place = column.to(tl.int64)[None, :] * s_row + group[:, None] * s_group
        s_mask = is_column[None, :] & ((group * (GROUP // 2) < length) | EVEN)[:, None]
        at = w_place + byte[:, :, None]
        total = _add_product(
            total, even, odd, at, mask, scale, minimum, s_place, s_mask, x, BLOCK_N, BLOCK_J, MINIMUM
        )
        if GATED:
            below, other = tl.cast(N, tl.int64) * w_row, tl.cast(N, tl.int64) * s_row
            up = _add_product(
                up,
                even,
                odd,
                at + below,
                mask,
                scale,
                minimum,
                s_place + other,
                s_mask,
                x,
                BLOCK_N,
                BLOCK_J,
                MINIMUM,
            )
    if SPLIT > 1:
        place = row_tile * tl.num_programs(0) + tile
        part = partial + (place * SPLIT + split).to(tl.int64) * (ROWS * (BLOCK_N + 1))
        here = tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(part + here, total, mask=is_row[:, None])
        tl.store(part + ROWS * BLOCK_N + tl.arange(0, ROWS), squares)
        tl.debug_barrier()  # what all threads of this program wrote stands before its arrival
        if tl.atomic_add(arrived + place, 1, sem="acq_rel") != SPLIT - 1:
            return
        tl.store(arrived + place, 0)
        total = tl.zeros([ROWS, BLOCK_N], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
        for index in tl.static_range(SPLIT):  # written by other programs: read past the L1 cache
            part = partial + (place * SPLIT + index).to(tl.int64) * (ROWS * (BLOCK_N + 1))
            total += tl.load(part + here, mask=is_row[:, None], other=0.0, cache_modifier=".cg")
            squares += tl.load(part + ROWS * BLOCK_N + tl.arange(0, ROWS), cache_modifier=".cg")
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
    workspace: SplitWorkspace | None,
    invariant: bool,
) -> Tensor:
    (num_rows, depth), num = x.shape, len(codes)
    columns = num // 2 if gated else num
    expected = ((num, cdiv(depth, 2)), (num, cdiv(depth, group)))
    if (tuple(codes.shape), tuple(scale.shape)) != expected or (
        minimum is not None and minimum.shape != scale.shape
    ):
        raise ValueError(
            f"int4_linear: x is {tuple(x.shape)}, codes {tuple(codes.shape)}, scale {tuple(scale.shape)} in groups of {group}: "
            f"expected codes {expected[0]}, scale and minimum {expected[1]}"
        )
    x, codes, residual = as_launched("int4_linear", x, codes, residual, columns)
    if minimum is not None and minimum.stride() != scale.stride():
        minimum, scale = minimum.contiguous(), scale.contiguous()
    rows = 16 if invariant else rows_of_tile(num_rows)
    config = _FLOAT32 if x.dtype == torch.float32 else _HALF_GATED if gated else _HALF
    split = split_of(columns, depth, x.dtype) if rows == 16 and not gated else 1
    tiles = (cdiv(columns, config.columns), split, cdiv(num_rows, rows))
    y = torch.empty(num_rows, columns, dtype=x.dtype, device=x.device)
    room = workspace_for(workspace, tiles, rows * (config.columns + 1), x.device)
    launch(
        _int4_linear_kernel, tiles, x, codes, scale, scale if minimum is None else minimum,
        x if bias is None else bias.contiguous(), x if residual is None else residual,
        x if norm is None else norm.w.contiguous(),
        y, room.partial, room.arrived,
        num_rows, columns, depth, x.stride(0), codes.stride(0), *scale.stride(),
        0 if residual is None else residual.stride(0), 0.0 if norm is None else norm.eps, ROWS=rows, BLOCK_N=config.columns,
        BLOCK_J=config.depth, GROUP=group, PIECE=min(group // 2, config.depth), SPLIT=split,
        EVEN=depth % (2 * config.depth) == 0, MINIMUM=minimum is not None, BIAS=bias is not None,
        RESIDUAL=residual is not None, GATED=gated, NORM=norm is not None, num_warps=config.warps, num_stages=config.stages,
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
    workspace: SplitWorkspace | None = None,
    invariant: bool = False,
) -> Tensor:
    """y = norm(x) W^T + b + r: x [M, K], codes [N, ceil(K / 2)], scale and minimum [N, ceil(K / group)] -> [M, N],
    or gated [M, N / 2]; see int4_linear_ref.

    With more than MOST_ROWS rows the weights are dequantised, some outputs at a time, and cuBLAS multiplies.
    workspace: kept from call to call, as a captured graph needs it. invariant: a row's sums are those of the row
    alone, however many there are.
    """
    if choose("int4_linear", x) != TRITON:
        return int4_linear_ref(x, codes, scale, minimum, group, bias, residual, norm, gated)
    if invariant or len(x) <= MOST_ROWS:
        return _int4_linear_triton(
            x, codes, scale, minimum, group, bias, residual, norm, gated, workspace, invariant
        )
    width = x.shape[1]

    def dequantised(rows: slice) -> Tensor:
        return int4_ref(codes[rows], scale[rows], None if minimum is None else minimum[rows], width, group)

    return by_tiles(x, dequantised, len(codes), bias, residual, norm, gated)
