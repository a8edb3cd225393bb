"""Routing of rows to experts   e_tj, s_tj for j < k of logits [T, E];  pairs (t, j) sorted by expert

The experts of a row are those of its k largest logits, their shares softmax values over all E, perhaps divided by their
sum. Pairs are numbered t k + j, and sorted into tiles of a few pairs of one expert each. There are as many tiles as the
worst routing takes, so that a captured graph fits every routing; what is left over stays empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, jit, launch, next_power, tl

NO_EXPERT = -1  # of a tile that is left over
_FEW_PAIRS, _PAIRS = 128, 1024  # that a program looks at together


class Groups(NamedTuple):
    """Tiles of pairs of one expert."""

    pair: Tensor  # [tiles * rows] int32; the number of pairs where a tile has none
    expert: Tensor  # [tiles] int32, ascending, then NO_EXPERT


def num_tiles(num_pairs: int, num_experts: int, rows: int) -> int:
    """Tiles that suffice for any routing: those of the experts that may be hit end in up to rows - 1 empty places."""
    return (num_pairs + min(num_pairs, num_experts) * (rows - 1)) // rows


def _check(logits: Tensor, num_used: int) -> None:
    if not 1 <= num_used <= logits.shape[-1]:
        raise ValueError(f"num_used is {num_used}: use 1 to {logits.shape[-1]}, the number of experts")


def route_ref(logits: Tensor, num_used: int, normalized: bool = True) -> tuple[Tensor, Tensor]:
    """Experts [T, k] int32 of the largest logits [T, E], the largest first, of equal ones the first, and their shares
    [T, k]: softmax values in float32 (float64 of float64 logits), normalized: divided by their sum.

    Raises ValueError where there are fewer experts than that.
    """
    _check(logits, num_used)
    wide = torch.promote_types(logits.dtype, torch.float32)
    shares, experts = torch.softmax(logits.to(wide), dim=-1).sort(dim=-1, descending=True, stable=True)
    expert, share = experts[:, :num_used].to(torch.int32), shares[:, :num_used]
    return expert, share / share.sum(dim=-1, keepdim=True) if normalized else share


@jit
def _route_kernel(
    logits: Ptr, expert: Ptr, share: Ptr, E: Num, row: Num, USED: constexpr, BINS: constexpr, NORMALIZED: constexpr
) -> None:  # fmt: skip
    """A row a program: its largest value is taken out USED times."""
    t = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, BINS)
    x = tl.load(logits + t * row + bins, mask=bins < E, other=float("-inf")).to(tl.float32)
    weight = tl.where(bins < E, tl.exp(x - tl.max(x, axis=0)), -1.0)
    total = tl.sum(tl.where(bins < E, weight, 0.0), axis=0)
    lane, own, used = bins, tl.zeros([BINS], tl.float32), 0.0
    for j in tl.static_range(USED):
        best = tl.minimum(tl.argmax(weight, axis=0), E - 1)  # of a row of NaN any
        value = tl.max(weight, axis=0)
        tl.store(expert + t * USED + j, best)
        own = tl.where(lane == j, value, own)
        used += value
        weight = tl.where(bins == best, -1.0, weight)
    tl.store(share + t * USED + lane, own / (used if NORMALIZED else total), mask=lane < USED)


def route(logits: Tensor, num_used: int, normalized: bool = True) -> tuple[Tensor, Tensor]:
    """Experts [T, k] int32 and their shares [T, k] of logits [T, E]; see route_ref. Nothing is waited for."""
    if choose("route", logits) != TRITON:
        return route_ref(logits, num_used, normalized)
    _check(logits, num_used)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    num_rows, num_experts = logits.shape
    expert = torch.empty(num_rows, num_used, dtype=torch.int32, device=logits.device)
    share = torch.empty(num_rows, num_used, dtype=torch.float32, device=logits.device)
    launch(
        _route_kernel, (num_rows,), logits, expert, share, num_experts, logits.stride(0), USED=num_used,
        BINS=next_power(num_experts, 32), NORMALIZED=normalized, num_warps=1,
    )  # fmt: skip
    return expert, share


def group_pairs_ref(expert: Tensor, num_experts: int, rows: int) -> Groups:
    """Pairs of expert [T, k], sorted into tiles of so many rows; those of an expert ascend."""
    pairs = expert.flatten().tolist()
    tiles = num_tiles(len(pairs), num_experts, rows)
    pair, of_tile = [], []
    for number in range(num_experts):
        own = [place for place, e in enumerate(pairs) if e == number]
        count = cdiv(len(own), rows)
        of_tile += [number] * count
        pair += own + [len(pairs)] * (count * rows - len(own))
    left = tiles - len(of_tile)
    made = (pair + [len(pairs)] * (left * rows), of_tile + [NO_EXPERT] * left)
    return Groups(*(torch.tensor(x, dtype=torch.int32, device=expert.device) for x in made))


@jit
def _group_kernel(
    expert: Ptr, pair: Ptr, of_tile: Ptr, P: Count, E: Num, tiles: Count, ROWS: constexpr, BINS: constexpr,
    BLOCK: constexpr,
) -> None:  # fmt: skip
    """An expert a program: all are counted, so that its tiles are known, and its pairs are written there."""
    number = tl.program_id(0)
    bins, place = tl.arange(0, BINS), tl.arange(0, BLOCK)
    counts = tl.zeros([BINS], tl.int32)
    for first in tl.range(0, P, BLOCK):
        there = first + place < P
        counts += tl.histogram(tl.load(expert + first + place, mask=there, other=0), BINS, mask=there)
    taken = (counts + ROWS - 1) // ROWS
    begin = tl.sum(tl.where(bins < number, taken, 0), axis=0)
    own = tl.sum(tl.where(bins == number, counts, 0), axis=0)
    end, total = begin + tl.cdiv(own, ROWS), tl.sum(taken, axis=0)
    seen = begin * ROWS
    for first in tl.range(0, P, BLOCK):
        there = first + place < P
        mine = there & (tl.load(expert + first + place, mask=there, other=-1) == number)
        rank = tl.cumsum(mine.to(tl.int32), axis=0)
        tl.store(pair + seen + rank - 1, first + place, mask=mine)
        seen += tl.sum(mine.to(tl.int32), axis=0)
    # What is left over of the expert's last tile, and of all tiles.
    lane = tl.arange(0, ROWS)
    tl.store(pair + seen + lane, lane * 0 + P, mask=seen + lane < end * ROWS)
    for tile in tl.range(begin, end):
        tl.store(of_tile + tile, number)
    for tile in tl.range(total + number, tiles, E):
        tl.store(of_tile + tile, -1)
        tl.store(pair + tile * ROWS + lane, lane * 0 + P)


def group_pairs(expert: Tensor, num_experts: int, rows: int) -> Groups:
    """Pairs of expert [T, k] int32, sorted into tiles of so many rows; see group_pairs_ref. Nothing is waited for."""
    if choose("group_pairs", expert) != TRITON:
        return group_pairs_ref(expert, num_experts, rows)
    num_pairs = expert.numel()
    tiles = num_tiles(num_pairs, num_experts, rows)
    made = Groups(*(torch.empty(n, dtype=torch.int32, device=expert.device) for n in (tiles * rows, tiles)))
    launch(
        _group_kernel, (num_experts if num_pairs else 0,), expert.contiguous(), *made, num_pairs, num_experts, tiles,
        ROWS=rows, BINS=next_power(num_experts, 32), BLOCK=_FEW_PAIRS if num_pairs <= _FEW_PAIRS else _PAIRS, num_warps=4,
    )  # fmt: skip
    return made
