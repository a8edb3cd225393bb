"""The draws of a batch in two launches: what each tile of ids has to offer a slot, then
one program a slot that picks.

A tile's offer is its largest allowed logit, the sum of exponentials beside it, and the id with the largest
score, noise included, where top-k and top-p do not interfere; where they do, the best logits say which few
tiles need be read again. The last slot to be picked advances the cursors of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from innervoice_kernels.jit import Block, Count, Num, Ptr, cdiv, constexpr, jit, launch, next_power, tl
from innervoice_kernels.sampling.cursor import SLOTS, Draws, Programs, Rows
from innervoice_kernels.sampling.cursor_walk import advance_rows
from innervoice_kernels.sampling.philox import gumbel
from innervoice_kernels.sampling.sample_cut import MASK_WIDTH, SET, SINGLE, TOP_K, draw_filtered

TILE = 64  # ids: as many columns of the head as one of its tiles has
ROWS = 16  # rows of a tile of the head
_CHUNK = 1024  # logits that a search compares with 16 thresholds at once: 32 values a thread of 16 warps
_WARPS = 16
LANES = 128  # rows whose cursors a program advances at once, in every batch
_NO_ID = tl.constexpr(2**31 - 1)


@dataclass(frozen=True)
class Offers:
    """Float32 logits of B rows and the tiles' offers to R slots. arrived is 0 between calls."""

    logits: Tensor  # [B, V] float32; ids that no slot of a row may draw are unwritten
    top: Tensor  # [R, N] float32, -inf: the tile has nothing, inf: it has NaN
    total: Tensor  # [R, N] float32
    score: Tensor  # [R, N] float32
    best: Tensor  # [R, N] int32
    hot: Tensor  # [R, N] int32
    drawn: Tensor  # [R] int32
    logprob: Tensor  # [R] float32
    arrived: Tensor  # [1] int32

    @classmethod
    def allocate(
        cls, num_rows: int, vocabulary: int, slots: int, device: torch.device, logits: Tensor | None = None
    ) -> Offers:
        """For so many rows of so many slots each; logits: those that there are already."""
        tiles, number = cdiv(vocabulary, TILE), num_rows * slots

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return cls(
            logits=empty(num_rows, vocabulary, dtype=torch.float32) if logits is None else logits,
            top=empty(number, tiles, dtype=torch.float32),
            total=empty(number, tiles, dtype=torch.float32),
            score=empty(number, tiles, dtype=torch.float32),
            best=empty(number, tiles, dtype=torch.int32),
            hot=empty(number, tiles, dtype=torch.int32),
            drawn=empty(number, dtype=torch.int32),
            logprob=empty(number, dtype=torch.float32),
            arrived=torch.zeros(1, dtype=torch.int32, device=device),
        )

    def first(self, num_rows: int, slots: int) -> Offers:
        """The offers of the first rows, in the same memory."""
        parts = {f.name: getattr(self, f.name)[: num_rows * slots] for f in fields(self)}
        return Offers(**parts | {"logits": self.logits[:num_rows], "arrived": self.arrived})


@jit
def summarise(
    z: Block, tile: Num, slot: Block, is_slot: Block, V: Num, N: Num, mask: Ptr, sets: Ptr, scale: Ptr, key: Ptr,
    top: Ptr, total: Ptr, score: Ptr, best: Ptr, TILE: constexpr,
) -> None:  # fmt: skip
    """Offer the logits z [ROWS, TILE] of a tile to the slots [ROWS] of its rows."""
    ids = tile * TILE + tl.arange(0, TILE)[None, :]
    m = mask + slot[:, None] * MASK_WIDTH
    exists = is_slot[:, None]
    ok = (ids >= tl.load(m, mask=exists, other=0)) & (ids < tl.load(m + 1, mask=exists, other=0))
    for i in tl.static_range(2, SINGLE, 2):
        low, high = tl.load(m + i, mask=exists, other=0), tl.load(m + i + 1, mask=exists, other=0)
        ok |= (ids >= low) & (ids < high)
    for i in tl.static_range(SINGLE, TOP_K):
        ok |= ids == tl.load(m + i, mask=exists, other=-1)
    if sets is not None:
        place = tl.load(mask + slot * MASK_WIDTH + SET, mask=is_slot, other=-1)
        if tl.max(place, axis=0) >= 0:
            word = tl.zeros_like(ids + place[:, None])
            for i in tl.static_range(0, TILE, 32):
                first = tile * TILE + i
                here = tl.load(sets + place + first // 32, mask=(place >= 0) & (first < V), other=0)
                word = tl.where(ids >= first, here[:, None], word)
            ok |= ((word >> (ids % 32)) & 1) != 0
    is_bad = tl.max((ok & (z != z)).to(tl.int32), axis=1) > 0
    z = tl.where(ok, z, float("-inf"))
    largest = tl.where(is_bad, float("inf"), tl.max(z, axis=1))
    at, is_number = slot * N + tile, (largest > float("-inf")) & (largest < float("inf"))
    tl.store(top + at, largest, mask=is_slot)
    tl.store(total + at, tl.sum(tl.exp(z - tl.where(is_number, largest, 0.0)[:, None]), axis=1), mask=is_slot)
    temperature, top_p = (
        tl.load(scale + slot * 2, mask=is_slot, other=0.0),
        tl.load(scale + slot * 2 + 1, mask=is_slot, other=1.0),
    )
    noisy = (
        is_number
        & (temperature > 0)
        & (top_p >= 1)
        & (tl.load(mask + slot * MASK_WIDTH + TOP_K, mask=is_slot, other=0) <= 0)
    )
    if tl.max(noisy.to(tl.int32), axis=0) > 0:
        k = key + slot[:, None] * 3
        seed = tl.load(k + 0, mask=exists, other=0)
        n = tl.load(k + 1, mask=exists, other=0)
        d = tl.load(k + 2, mask=exists, other=0)
        noise = gumbel(seed, n, d, ids + tl.zeros_like(z).to(tl.int32))
        divisor = tl.where(noisy, temperature, 1.0)[:, None] + tl.zeros_like(z)
        z = tl.where(noisy[:, None], tl.div_rn(z, divisor) + noise, z)
    offered = tl.max(z, axis=1)
    tl.store(score + at, offered, mask=is_slot)
    tl.store(best + at, tl.min(tl.where(z == offered[:, None], ids, _NO_ID), axis=1), mask=is_slot)


@jit
def _summary_kernel(
    logits: Ptr, mask: Ptr, sets: Ptr, scale: Ptr, key: Ptr, top: Ptr, total: Ptr, score: Ptr, best: Ptr, B: Count, V: Num,
    N: Num, row_stride: Num, SLOTS: constexpr, ROWS: constexpr, TILE: constexpr,
) -> None:  # fmt: skip
    """One tile of ids of ROWS rows a program."""
    tile = tl.program_id(0)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tile * TILE + tl.arange(0, TILE)
    inside = (row < B)[:, None] & (column < V)[None, :]
    place = row.to(tl.int64)[:, None] * row_stride + column[None, :]
    z = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float32)
    for i in tl.static_range(SLOTS):
        summarise(
            z, tile, row * SLOTS + i, row < B, V, N, mask, sets, scale, key, top, total, score, best, TILE
        )


@jit
def _pick_kernel(
    logits: Ptr, mask: Ptr, sets: Ptr, scale: Ptr, key: Ptr, top: Ptr, total: Ptr, score: Ptr, best: Ptr, hot: Ptr,
    drawn: Ptr, logprob: Ptr, arrived: Ptr, state: Ptr, request: Ptr, caps: Ptr, successor: Ptr, table: Ptr,
    forced: Ptr, output: Ptr, out_logprob: Ptr, B: Count, C: Num, V: Num, N: Num, row_stride: Num,
    SLOTS: constexpr, TILE: constexpr, TILES: constexpr, CHUNK: constexpr, ADVANCE: constexpr,
    LANES: constexpr,
) -> None:  # fmt: skip
    """One slot a program."""
    slot = tl.program_id(0)
    mask = mask + slot * MASK_WIDTH
    logits = logits + (slot // SLOTS).to(tl.int64) * row_stride
    tile = tl.arange(0, TILES)
    offers = slot * N + tile
    largest = tl.load(top + offers, mask=tile < N, other=float("-inf"))
    best_z = tl.max(largest)
    is_number = (best_z > float("-inf")) & (best_z < float("inf"))
    sums = tl.load(total + offers, mask=tile < N, other=0.0) * tl.exp(
        largest - tl.where(is_number, best_z, 0.0)
    )
    temperature = tl.load(scale + slot * 2)
    top_p = tl.load(scale + slot * 2 + 1)
    top_k = tl.load(mask + TOP_K)
    token = tl.full([], _NO_ID, tl.int32)
    if is_number & (temperature > 0) & ((top_k > 0) | (top_p < 1)):
        token = draw_filtered(
            largest,
            best_z,
            logits,
            hot + slot * N,
            mask,
            sets,
            temperature,
            top_p,
            top_k,
            key + slot * 3,
            V,
            TILE,
            TILES,
            CHUNK,
        )
    else:
        offered = tl.load(score + offers, mask=tile < N, other=float("-inf"))
        ids = tl.load(best + offers, mask=tile < N, other=_NO_ID)
        token = tl.min(tl.where(offered == tl.max(offered), ids, _NO_ID))
    z = tl.load(logits + tl.where(is_number, token, 0), mask=is_number, other=0.0).to(tl.float32)
    tl.store(logprob + slot, tl.where(is_number, z - best_z - tl.log(tl.sum(sums)), float("nan")))
    tl.store(drawn + slot, tl.where(is_number, token, -1))
    if ADVANCE:
        tl.debug_barrier()
        if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            tl.store(arrived, 0)
            for first in range(0, B, LANES):
                advance_rows(
                    first + tl.arange(0, LANES), state, request, caps, successor, table, forced, drawn,
                    logprob, output, out_logprob, B, C,
                )  # fmt: skip


def summary(offers: Offers, draws: Draws, slots: int) -> None:
    """Fill the tiles' offers from offers.logits."""
    num_rows, vocabulary = offers.logits.shape
    launch(
        _summary_kernel, (cdiv(vocabulary, TILE), cdiv(num_rows, ROWS)), offers.logits, draws.mask, draws.sets,
        draws.scale, draws.key, offers.top, offers.total, offers.score, offers.best, num_rows, vocabulary,
        offers.top.shape[1], offers.logits.stride(0), SLOTS=slots, ROWS=ROWS, TILE=TILE, num_warps=4,
    )  # fmt: skip


def pick(
    offers: Offers, draws: Draws, slots: int, rows: Rows | None = None, programs: Programs | None = None
) -> None:
    """Fill offers.drawn and offers.logprob; with rows and programs, let every row take what it
    drew, as cursor.advance does.
    """
    num_rows, vocabulary = offers.logits.shape
    nothing = offers.drawn
    cursor: tuple[Tensor, ...] = (nothing,) * 8
    if rows is not None and programs is not None:
        assert slots == SLOTS, "a row that advances draws in two slots"
        cursor = (
            rows.state, rows.request, rows.caps, rows.successor, programs.table, programs.forced, rows.output,
            rows.logprob
        )  # fmt: skip
    launch(
        _pick_kernel, (num_rows * slots,), offers.logits, draws.mask, draws.sets, draws.scale, draws.key, offers.top,
        offers.total, offers.score, offers.best, offers.hot, offers.drawn, offers.logprob, offers.arrived,
        *cursor, num_rows, 0 if rows is None else rows.caps.shape[1], vocabulary, offers.top.shape[1],
        offers.logits.stride(0), SLOTS=slots, TILE=TILE, TILES=next_power(offers.top.shape[1]), CHUNK=_CHUNK,
        ADVANCE=rows is not None, LANES=LANES, num_warps=_WARPS,
    )  # fmt: skip
