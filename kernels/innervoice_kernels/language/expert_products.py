"""Products of a mixture of experts, for the rows that are routed to each   h_p = silu(g) u,  [g | u] = W_e x_t
y_t = sum_j s_tj V_e h_p        for pairs p = t k + j of a row and its expert e = e_tj

x: [T, D]   W: [2 F E, D], expert below expert, of each the gate's rows first   V: [D E, F]   h: [T k, F]   ->   [T, D]

Weights of any kind: numbers, codes of int8 or fp8 with a scale a row, or of int4 with scales and minima of groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.language.activation import silu_mul_ref
from innervoice_kernels.language.expert_groups import Groups, group_pairs, route, route_ref
from innervoice_kernels.language.linear import LinearTile
from innervoice_kernels.language.linear_int4 import sums_of_few, sums_of_many
from innervoice_kernels.language.linear_scaled import PART, scaled_sums
from innervoice_kernels.language.linear_tiles import finish, outputs_of
from innervoice_kernels.language.weight_formats import fold, folded_width, int4_ref, scaled_ref

PLAIN, SCALED, INT4 = 0, 1, 2
_PLAIN, _SCALED, _PART = tl.constexpr(PLAIN), tl.constexpr(SCALED), tl.constexpr(PART)
# Outputs, depth (of int4 bytes of codes), warps and stages by kind of weight: of few rows a tile, of many, of float32 and
# of ragged rows.
_TILES = {
    PLAIN: (LinearTile(64, 128, 4, 4), LinearTile(128, 64, 4, 4), LinearTile(32, 32, 4, 3)),
    SCALED: (LinearTile(64, 256, 4, 4), LinearTile(64, 128, 4, 3), LinearTile(32, 64, 4, 3)),
    INT4: (LinearTile(64, 128, 4, 4), LinearTile(64, 64, 4, 4), LinearTile(16, 32, 8, 3)),
}
_LEAST_ROWS, _FEW_ROWS, _MOST_ROWS = 8, 16, 64
_COMBINED = 1024  # numbers of a row that a program sums
_TOGETHER = 2048  # rows of a call; of more the results of all pairs would take too much memory


class ExpertWeights(NamedTuple):
    """The matrices of all experts, one below the other: [E N, K]."""

    numbers: Tensor  # [E N, K], or codes: int8, float8_e4m3fn [E N, K], int4: uint8 [E N, ceil(K / 2)]
    scale: Tensor | None = None  # [E N] float32; int4: [E N, ceil(K / group)] float16
    minimum: Tensor | None = None  # int4: [E N, ceil(K / group)] float16; None: w = scale (q - 8)
    group: int = 0  # of int4
    folded: bool = False  # int4 codes are as `fold` makes them, [E N, 32 ceil(K / 64)]

    @property
    def kind(self) -> int:
        """PLAIN, SCALED or INT4."""
        return PLAIN if self.scale is None else INT4 if self.group else SCALED

    def dequantised(self, num_columns: int, dtype: torch.dtype) -> Tensor:
        """Weights [E N, K]; those of int4 rounded to a type, in which they are multiplied."""
        if self.scale is None:
            return self.numbers
        if not self.group:
            return scaled_ref(self.numbers, self.scale)
        held = (self.numbers, self.scale, self.minimum, num_columns, self.group, self.folded)
        return int4_ref(*held).to(dtype)


def rows_of_groups(num_pairs: int, num_experts: int) -> int:
    """Pairs that share a tile of weights: 8, the shorter side of the tensor cores, 16 or 64: about twice an expert's."""
    rows = next_power(2 * num_pairs // num_experts, _LEAST_ROWS)
    return rows if rows <= _FEW_ROWS else _MOST_ROWS


def expert_gate_up_ref(x: Tensor, expert: Tensor, w: ExpertWeights, num_experts: int) -> Tensor:
    """silu_mul(W_e x_t) of each pair in float32 (float64 for float64 input), rounded once.

    x [T, D], expert [T, k], w [2 F E, D] -> [T k, F].
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weights = torch.unflatten(w.dequantised(x.shape[1], x.dtype).to(wide), 0, (num_experts, -1))
    made = [
        silu_mul_ref(F.linear(row, weights[e]))
        for row, own in zip(x.to(wide), expert.tolist(), strict=True)
        for e in own
    ]
    return (torch.stack(made) if made else x.new_empty(0, weights.shape[1] // 2)).to(x.dtype)


def expert_down_ref(
    h: Tensor,
    expert: Tensor,
    share: Tensor,
    w: ExpertWeights,
    num_experts: int,
    residual: Tensor | None = None,
) -> Tensor:
    """Sums of each row's s_tj V_e h_p, and the residual, in float32 (float64 for float64 input), rounded once.

    h [T k, F], expert and share [T, k], w [D E, F], residual [T, D] -> [T, D].
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    weights = torch.unflatten(w.dequantised(h.shape[1], h.dtype).to(wide), 0, (num_experts, -1))
    y = h.new_zeros(len(expert), weights.shape[1], dtype=wide) if residual is None else residual.to(wide)
    rows = torch.unflatten(h.to(wide), 0, tuple(expert.shape))
    made = [
        row + sum(s * F.linear(part, weights[e]) for s, part, e in zip(shares, parts, own, strict=True))
        for row, shares, parts, own in zip(y, share.to(wide), rows, expert.tolist(), strict=True)
    ]
    return (torch.stack(made) if made else y).to(h.dtype)


@jit
def _plain_sums(
    x: Ptr, w: Ptr, row: Block, output: Block, is_column: Block, M: Num, K: Num, x_row: Num, w_row: Num, ROWS: constexpr,
    BLOCK_N: constexpr, BLOCK_K: constexpr, EVEN: constexpr,
) -> Block:  # fmt: skip
    """Sums [BLOCK_N, ROWS] of weights that are numbers of x's type."""
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    x_place = x + tl.minimum(row, M - 1).to(tl.int64)[None, :] * x_row
    w_place = w + tl.where(is_column, output, 0)[:, None] * w_row
    for first in tl.range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | EVEN
        a = tl.load(x_place + k[:, None], mask=inside[:, None], other=0.0)
        b = tl.load(w_place + k[None, :], mask=inside[None, :], other=0.0, eviction_policy="evict_first")
        total = add_dot(b, a, total)
    return total


@jit
def _expert_linear_kernel(
    x: Ptr, w: Ptr, scale: Ptr, minimum: Ptr, pair: Ptr, expert: Ptr, y: Ptr, P: Count, M: Count, N: Num, K: Num, length: Num,
    used: Num, x_row: Num, w_row: Num, s_row: Num, s_group: Num, ROWS: constexpr, BLOCK_N: constexpr, BLOCK_K: constexpr,
    KIND: constexpr, GROUP: constexpr, EVEN: constexpr, MINIMUM: constexpr, GATED: constexpr, FEW: constexpr, STAGES: constexpr,
) -> None:  # fmt: skip
    """A tile [BLOCK_N, ROWS] of one expert's outputs for a tile of its pairs a program.

    Pair p has row p // used of x, and is row p of y. GATED: half of a tile's outputs are N below the others.
    """
    tile, group = tl.program_id(0), tl.program_id(1)
    number = tl.load(expert + group)
    if number < 0:
        return
    own = tl.load(pair + group * ROWS + tl.arange(0, ROWS))
    row, is_pair = own // used, own < P
    column, output = outputs_of(tile, N, BLOCK_N, GATED)
    is_column = column < N
    output += number.to(tl.int64) * (2 * N if GATED else N)
    squares = tl.zeros([ROWS], tl.float32)
    if KIND == _PLAIN:
        total = _plain_sums(x, w, row, output, is_column, M, K, x_row, w_row, ROWS, BLOCK_N, BLOCK_K, EVEN)
    elif KIND == _SCALED:
        total, squares = scaled_sums(
            x, w, x, row, output, is_column, 0, K, M, K, x_row, w_row, ROWS, BLOCK_N, BLOCK_K,
            min(4, BLOCK_K // _PART), EVEN, False,
        )  # fmt: skip
        total *= tl.load(scale + output, mask=is_column, other=0.0)[:, None]
    elif FEW:
        total, squares = sums_of_few(
            x, w, scale, minimum, x, row, output, is_column, 0, length, length, M, K, x_row, w_row, s_row, s_group, ROWS,
            BLOCK_N, BLOCK_K, GROUP, EVEN, MINIMUM, False, STAGES,
        )  # fmt: skip
    else:
        total, squares = sums_of_many(
            x, w, scale, minimum, x, row, output, is_column, 0, length, length, M, K, x_row, w_row, s_row, s_group, ROWS,
            BLOCK_N, BLOCK_K, GROUP, EVEN, MINIMUM, False, STAGES,
        )  # fmt: skip
    finish(
        total, squares, tile, own, is_pair, x, x, y, N, K, 0, 0.0, BLOCK_N, ROWS, False, False, GATED, False
    )  # fmt: skip


@jit
def _combine_kernel(
    part: Ptr, share: Ptr, residual: Ptr, y: Ptr, D: Num, r_row: Num, USED: constexpr, BLOCK: constexpr, RESIDUAL: constexpr
) -> None:  # fmt: skip
    """Some numbers of a row a program: its experts' in the order of their shares."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(USED):
        own = tl.load(part + (t * USED + j) * D + d, mask=d < D, other=0.0)
        total += tl.load(share + t * USED + j) * own
    if RESIDUAL:
        total += tl.load(residual + t * r_row + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + t * D + d, narrow(total, y), mask=d < D)


def _products(
    x: Tensor, w: ExpertWeights, groups: Groups, num_experts: int, used: int, y: Tensor, gated: bool
) -> None:
    """Rows p of y from rows p // used of x, for every pair p of the groups."""
    (num_rows, depth), numbers = x.shape, w.numbers
    columns = y.shape[1]
    width = depth if w.kind != INT4 else folded_width(depth) if w.folded else cdiv(depth, 2)
    if tuple(numbers.shape) != (num_experts * columns * (2 if gated else 1), width):
        raise ValueError(
            f"expert products: weights are {tuple(numbers.shape)}, expected "
            f"{(num_experts * columns * (2 if gated else 1), width)} for {num_experts} experts of {depth} inputs"
        )
    if w.kind == INT4 and not w.folded:
        numbers = fold(numbers, depth)
    x, numbers = (a if a.stride(-1) == 1 or a.shape[-1] == 1 else a.contiguous() for a in (x, numbers))
    scale = numbers if w.scale is None else w.scale
    minimum = scale if w.minimum is None else w.minimum
    if minimum.stride() != scale.stride():
        minimum, scale = minimum.contiguous(), scale.contiguous()
    tiles = len(groups.expert)
    rows = len(groups.pair) // max(tiles, 1)
    is_small = x.dtype == torch.float32 or (w.kind != INT4 and is_ragged(depth, numbers.stride(0)))
    config = _TILES[w.kind][2 if is_small else rows > _FEW_ROWS]
    few = rows <= _FEW_ROWS and x.dtype != torch.float32
    launch(
        _expert_linear_kernel, (cdiv(columns * (2 if gated else 1), config.columns), tiles), x, numbers, scale, minimum,
        *groups, y, len(y), num_rows, columns, depth, numbers.shape[1], used, x.stride(0), numbers.stride(0), scale.stride(0),
        scale.stride(-1), ROWS=rows, BLOCK_N=config.columns, BLOCK_K=config.depth, KIND=w.kind, GROUP=w.group,
        EVEN=depth % (config.depth * (2 if w.kind == INT4 else 1)) == 0,
        MINIMUM=w.minimum is not None, GATED=gated, FEW=few, STAGES=config.stages, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip


def expert_gate_up(
    x: Tensor, expert: Tensor, w: ExpertWeights, num_experts: int, groups: Groups | None = None
) -> Tensor:
    """silu_mul(W_e x_t) of each pair: x [T, D], expert [T, k], w [2 F E, D] -> [T k, F]. groups: those of expert, where
    they are known.
    """
    if choose("expert_ffn", x) != TRITON:
        return expert_gate_up_ref(x, expert, w, num_experts)
    if groups is None:
        groups = group_pairs(expert, num_experts, rows_of_groups(expert.numel(), num_experts))
    y = torch.empty(expert.numel(), len(w.numbers) // (2 * num_experts), dtype=x.dtype, device=x.device)
    _products(x, w, groups, num_experts, expert.shape[1], y, True)
    return y


def expert_down(
    h: Tensor,
    expert: Tensor,
    share: Tensor,
    w: ExpertWeights,
    num_experts: int,
    residual: Tensor | None = None,
    groups: Groups | None = None,
) -> Tensor:
    """Sums of each row's s_tj V_e h_p, and the residual: h [T k, F], expert and share [T, k], w [D E, F], residual [T, D]
    -> [T, D]. groups: those of expert, where they are known.
    """
    if choose("expert_ffn", h) != TRITON:
        return expert_down_ref(h, expert, share, w, num_experts, residual)
    if groups is None:
        groups = group_pairs(expert, num_experts, rows_of_groups(expert.numel(), num_experts))
    num_rows, used = expert.shape
    part = torch.empty(len(h), len(w.numbers) // num_experts, dtype=torch.float32, device=h.device)
    _products(h, w, groups, num_experts, 1, part, False)
    y = torch.empty(num_rows, part.shape[1], dtype=h.dtype, device=h.device)
    residual = residual if residual is None or residual.stride(-1) == 1 else residual.contiguous()
    block = min(next_power(part.shape[1]), _COMBINED)
    launch(
        _combine_kernel, (num_rows, cdiv(part.shape[1], block)), part, share.contiguous(), y if residual is None else residual,
        y, part.shape[1], 0 if residual is None else residual.stride(0), USED=used, BLOCK=block, RESIDUAL=residual is not None,
        num_warps=4,
    )  # fmt: skip
    return y


def routed_ffn_ref(
    x: Tensor, logits: Tensor, gate_up: ExpertWeights, down: ExpertWeights, num_used: int, normalized: bool = True,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The parts' references one after the other: x [T, D], router logits [T, E], residual [T, D] -> [T, D]."""
    expert, share = route_ref(logits, num_used, normalized)
    h = expert_gate_up_ref(x, expert, gate_up, logits.shape[1])
    return expert_down_ref(h, expert, share, down, logits.shape[1], residual)


def routed_ffn(
    x: Tensor,
    logits: Tensor,
    gate_up: ExpertWeights,
    down: ExpertWeights,
    num_used: int,
    normalized: bool = True,
    residual: Tensor | None = None,
    *,
    invariant: bool = False,
) -> Tensor:
    """x [T, D] through the experts of the largest router logits [T, E], and the residual [T, D] -> [T, D].

    Five launches, whose grids T alone decides: nothing is waited for, and a captured graph fits every routing.
    invariant: a row's sums are those of the row alone, however many there are.
    """
    if choose("expert_ffn", x) != TRITON:
        return routed_ffn_ref(x, logits, gate_up, down, num_used, normalized, residual)
    if len(x) > _TOGETHER:
        given = (x, logits) if residual is None else (x, logits, residual)
        return torch.cat(
            [
                routed_ffn(a, b, gate_up, down, num_used, normalized, *rest, invariant=invariant)
                for a, b, *rest in zip(*(torch.split(part, _TOGETHER) for part in given), strict=True)
            ]
        )
    num_experts = logits.shape[1]
    expert, share = route(logits, num_used, normalized)
    rows = _FEW_ROWS if invariant else rows_of_groups(expert.numel(), num_experts)
    groups = group_pairs(expert, num_experts, rows)
    h = expert_gate_up(x, expert, gate_up, num_experts, groups)
    return expert_down(h, expert, share, down, num_experts, residual, groups)
