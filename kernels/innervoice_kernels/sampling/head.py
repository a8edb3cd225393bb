"""The head over the ids that a batch may draw, and the draws   logits = x W^T at allowed ids        x: [B, D]
W: [V, D]

The weights are read once, and only the tiles of ids that some slot's mask touches; in speech that is a tenth
of them. Each tile leaves its float32 logits and its offer to every slot (see sample_pick), so that the draws
read next to nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Block, Count, Num, Ptr, cdiv, constexpr, dot, is_ragged, jit, launch, tl
from innervoice_kernels.sampling.cursor import SLOTS, Draws, Programs, Rows
from innervoice_kernels.sampling.sample import Draw, draws_of, sample_ref
from innervoice_kernels.sampling.sample_cut import MASK_WIDTH, SET, SINGLE, TOP_K
from innervoice_kernels.sampling.sample_pick import ROWS, TILE, Offers, pick, summarise, summary


class HeadTile(NamedTuple):
    """Depth of a tile of weights, warps, stages, programs an SM."""

    depth: int
    warps: int
    stages: int
    programs: int


# Four stages are three buffers of 16 KiB of weights and 4 KiB of input: three programs share an SM. Each
# walks over every P-th tile, so that those of a narrow mask are spread over all of them.
_HALF, _SMALL = HeadTile(128, 4, 4, 3), HeadTile(32, 4, 3, 3)  # float32 and ragged rows have small tiles
_SMS = 132  # where there is no GPU to ask: as many as an H200 has


def head_sample_ref(x: Tensor, w: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """sample_ref of the logits x W^T, in float32 (float64 for float64 input): x [B, D], w [V, D], a draw for
    each row.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return sample_ref(x.to(wide) @ w.to(wide).T, draws)


@jit
def _touches(
    low: Num, high: Num, slot: Block, is_slot: Block, mask: Ptr, sets: Ptr, TILE: constexpr
) -> Block:
    """Whether ids low to high have one that one of the slots may draw."""
    m = mask + slot * MASK_WIDTH
    found = (tl.load(m, mask=is_slot, other=0) < high) & (tl.load(m + 1, mask=is_slot, other=0) > low)
    for i in tl.static_range(2, SINGLE, 2):
        begin, end = tl.load(m + i, mask=is_slot, other=0), tl.load(m + i + 1, mask=is_slot, other=0)
        found |= (begin < high) & (end > low)
    for i in tl.static_range(SINGLE, TOP_K):
        extra = tl.load(m + i, mask=is_slot, other=-1)
        found |= (extra >= low) & (extra < high)
    if sets is not None:
        place = tl.load(m + SET, mask=is_slot, other=-1)
        for i in tl.static_range(0, TILE, 32):
            asked = (place >= 0) & (low + i < high)
            found |= tl.load(sets + place + (low + i) // 32, mask=asked, other=0) != 0
    return tl.max(found.to(tl.int32), axis=0)


@jit
def _head_kernel(
    x: Ptr, w: Ptr, logits: Ptr, mask: Ptr, sets: Ptr, scale: Ptr, key: Ptr, top: Ptr, total: Ptr, score: Ptr, best: Ptr,
    B: Count, V: Num, D: Num, N: Num, x_row: Num, w_row: Num, ROWS: constexpr, SLOTS: constexpr,
    TILE: constexpr, DEPTH: constexpr, EVEN: constexpr,
) -> None:  # fmt: skip
    """Every P-th tile of ids of ROWS rows a program."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_row, wide_row = row < B, row.to(tl.int64)
    for tile in range(tl.program_id(0), N, tl.num_programs(0)):
        column = tile * TILE + tl.arange(0, TILE)
        needed = 0
        for i in tl.static_range(SLOTS):
            end = tl.minimum(tile * TILE + TILE, V)
            needed += _touches(tile * TILE, end, row * SLOTS + i, is_row, mask, sets, TILE)
        z = tl.zeros([ROWS, TILE], tl.float32)
        if needed > 0:
            for first in tl.range(0, D, DEPTH):
                k = first + tl.arange(0, DEPTH)
                inside = (k < D) | EVEN
                a = tl.load(
                    x + wide_row[:, None] * x_row + k[None, :],
                    mask=is_row[:, None] & inside[None, :],
                    other=0.0,
                )
                place = w + column.to(tl.int64)[None, :] * w_row + k[:, None]
                z = dot(
                    a,
                    tl.load(
                        place,
                        mask=(column < V)[None, :] & inside[:, None],
                        other=0.0,
                        eviction_policy="evict_first",
                    ),
                    z,
                )
            tl.store(
                logits + wide_row[:, None] * V + column[None, :],
                z,
                mask=is_row[:, None] & (column < V)[None, :],
            )
            for i in tl.static_range(SLOTS):
                summarise(
                    z,
                    tile,
                    row * SLOTS + i,
                    is_row,
                    V,
                    N,
                    mask,
                    sets,
                    scale,
                    key,
                    top,
                    total,
                    score,
                    best,
                    TILE,
                )
        else:
            for i in tl.static_range(SLOTS):
                offer = (row * SLOTS + i) * N + tile
                tl.store(top + offer, float("-inf"), mask=is_row)
                tl.store(total + offer, 0.0, mask=is_row)
                tl.store(score + offer, float("-inf"), mask=is_row)
                tl.store(best + offer, 0, mask=is_row)


def head(x: Tensor, w: Tensor, draws: Draws, offers: Offers, slots: int, *, invariant: bool = False) -> None:
    """Fill offers for the draws, slots of them a row: x [B, D], w [V, D].

    With more than 16 rows on a GPU cuBLAS makes all logits, whose sums depend on how many rows there are;
    invariant: the own kernel all the same.
    """
    (num_rows, width), (vocabulary, depth) = x.shape, w.shape
    if depth != width or x.dtype != w.dtype or offers.logits.shape != (num_rows, vocabulary):
        raise ValueError(
            f"head: x is {x.dtype} {tuple(x.shape)}, w {w.dtype} {tuple(w.shape)}, the offers hold {tuple(offers.logits.shape)}: "
            "expected one type, [B, D], [V, D] and [B, V]"
        )
    if num_rows > ROWS and x.is_cuda and x.dtype != torch.float32 and not invariant:
        torch.mm(x, w.T, out_dtype=torch.float32, out=offers.logits)
        summary(offers, draws, slots)
        return
    x, w = (a if a.stride(-1) == 1 or width == 1 else a.contiguous() for a in (x, w))
    is_small = x.dtype == torch.float32 or is_ragged(width, w.stride(0))
    config, tiles = _SMALL if is_small else _HALF, offers.top.shape[1]
    programs = config.programs * (
        torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else _SMS
    )
    launch(
        _head_kernel, (min(tiles, programs), cdiv(num_rows, ROWS)), x, w, offers.logits, draws.mask, draws.sets,
        draws.scale, draws.key, offers.top, offers.total, offers.score, offers.best, num_rows, vocabulary,
        width, tiles, x.stride(0), w.stride(0), ROWS=ROWS, SLOTS=slots, TILE=TILE, DEPTH=config.depth,
        EVEN=width % config.depth == 0, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def head_step(
    x: Tensor, w: Tensor, rows: Rows, programs: Programs, offers: Offers, *, invariant: bool = False
) -> None:
    """The end of a step: the head over what `cursor.prepare` allowed, the draws, and every row's cursor ->
    rows.output, logprob.

    x [B, D] hidden states of the rows' last tokens, w [V, D], offers of B rows of SLOTS slots. Three launches
    with `prepare`.
    """
    head(x, w, rows.draws, offers, SLOTS, invariant=invariant)
    pick(offers, rows.draws, SLOTS, rows, programs)


def _head_sample_triton(x: Tensor, w: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    made = draws_of(draws, x.device)
    offers = Offers.allocate(len(x), len(w), 1, x.device)
    head(x, w, made, offers, 1)
    pick(offers, made, 1)
    return offers.drawn.long(), offers.logprob


def head_sample(x: Tensor, w: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """One id a row and its log-probability, as sample_ref of the logits x W^T: x [B, D], w [V, D]."""
    return (_head_sample_triton if choose("head_sample", x) == TRITON else head_sample_ref)(x, w, draws)
