"""Paged attention of rows with one query: the heads of a group share a tile, a row's
keys are split over programs.

A group's 16 query heads are exactly one tile of the tensor cores (fewer are padded), so that keys and
values are read once. Each split leaves its part in the workspace; the one that arrives last puts them
together, in the order of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels.jit import (
    Block,
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    follow,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.language.attention_tile import LEAST, attend, tile_of
from innervoice_kernels.language.paged_batch import PagedBatch

# A split has SPLIT keys, more where a context would make over MOST of them: both from the row's own length
# alone, so that its sums are the same in every batch. 256 keys of GLM-4-Voice are 128 KiB a program
# against 8 KiB of partial result.
SPLIT, MOST = 256, 32
# Stages of the loop that merges splits: of 8 KiB each.
_AHEAD = tl.constexpr(5)
# A warp multiplies 16 keys of a step of 64. Five stages are what buffers two steps, 64 KiB, behind the
# look-up of the pages: three programs share an SM, which has then 192 KiB on their way.
_WARPS, _STAGES = 4, 5  # float32 queries over fp8 pages have twice the warps, whose registers hold a step
# From MANY rows on there are more programs than an H200 holds of these. Of four stages and 128 registers a thread, which
# is enough for halves, heads of 128 and no reflection weight, an SM holds four: 32 rows of 2,048 keys in two groups run
# in one wave.
MANY = 32
_OF_MANY = {"num_stages": 4, "maxnreg": 128}
# With a reflection weight or pages of fp8 a thread would take more registers than three programs an SM leave it.
_OF_THREE = {"maxnreg": 168}


@dataclass(frozen=True)
class Workspace:
    """The memory in which splits are merged.

    arrived [N] int32 is all 0 between calls; one call at a time may use it.
    """

    partial: Tensor  # [rows * G * splits, M, width] float32
    stats: Tensor  # [rows * G * splits, 2, M] float32, largest score and sum
    arrived: Tensor  # [rows * G] int32

    @classmethod
    def allocate(
        cls, num_rows: int, heads: int, groups: int, width: int, max_context: int, device: torch.device
    ) -> Workspace:
        """For batches of up to num_rows rows of contexts of up to max_context tokens."""
        tile = (tile_rows(heads, groups), next_power(width, LEAST))
        parts = num_rows * groups * num_splits(max_context)
        return cls(
            torch.empty(parts, *tile, dtype=torch.float32, device=device),
            torch.empty(parts, 2, tile[0], dtype=torch.float32, device=device),
            torch.zeros(num_rows * groups, dtype=torch.int32, device=device),
        )


def tile_rows(heads: int, groups: int) -> int:
    """Rows of a tile: the query heads of a group, padded to a side of the tensor cores."""
    return next_power(heads // groups, LEAST)


def num_splits(max_context: int) -> int:
    """Splits that a row may have, and places for them: the next power of two."""
    return next_power(min(MOST, cdiv(max_context, SPLIT)))


@jit
def _combine(
    partial: Ptr, stats: Ptr, first: Num, count: Num, SPLITS: constexpr, M: constexpr, BLOCK_D: constexpr
) -> Block:
    """The parts first to first + count -> [M, BLOCK_D], in their order.

    Several are on their way to shared memory, which the keys have left, while one is added. Written by other
    programs: read past the L1 cache.
    """
    row, column = tl.arange(0, M), tl.arange(0, BLOCK_D)
    part = tl.arange(0, SPLITS)
    exists = (part < count)[:, None]
    place = stats + (first + part)[:, None] * (2 * M) + row[None, :]
    tops = tl.load(place, mask=exists, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(place + M, mask=exists, other=0.0, cache_modifier=".cg")
    best = tl.max(tops, axis=0)
    total = tl.sum(tl.exp2(tops - best[None, :]) * totals, axis=0)
    y = tl.zeros([M, BLOCK_D], tl.float32)
    inner = row[:, None] * BLOCK_D + column[None, :]
    for index in tl.range(0, count, num_stages=_AHEAD):
        weight = tl.exp2(tl.load(stats + (first + index) * (2 * M) + row, cache_modifier=".cg") - best)
        here = tl.load(partial + (first + index) * (M * BLOCK_D) + inner, cache_modifier=".cg")
        y += weight[:, None] * here
    return y / total[:, None]


@jit
def span_of(length: Num, KEYS: constexpr, SPLIT_KEYS: constexpr, MOST_SPLITS: constexpr) -> Num:
    """Keys of a split of a row of so many."""
    return tl.maximum(SPLIT_KEYS, tl.cdiv(tl.cdiv(length, MOST_SPLITS), KEYS) * KEYS)


@jit
def leave_split(
    top: Block, total: Block, y: Block, place: Block, mask: Block, out: Ptr, partial: Ptr, stats: Ptr, arrived: Ptr,
    pair: Num, split: Num, count: Num, SPLITS: constexpr, M: constexpr, BLOCK_D: constexpr,
) -> None:  # fmt: skip
    """A split's result, y [M, BLOCK_D], goes to `place` if it is the only one of `count`, else to the workspace: the
    last of a pair of row and group to arrive puts all together.
    """
    if count == 1:
        tl.store(place, narrow(y / total[:, None], out), mask=mask)
    else:
        index = tl.arange(0, M)
        part = pair * SPLITS + split
        inner = index[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        tl.store(partial + part * (M * BLOCK_D) + inner, y)
        tl.store(stats + part * (2 * M) + index, top)
        tl.store(stats + part * (2 * M) + M + index, total)
        tl.debug_barrier()  # what all threads of this program wrote stands before its arrival
        if tl.atomic_add(arrived + pair, 1, sem="acq_rel") == count - 1:
            y = _combine(partial, stats, pair * SPLITS, count, SPLITS, M, BLOCK_D)
            tl.store(place, narrow(y, out), mask=mask)
            tl.store(arrived + pair, 0)


@jit
def _decode_kernel(
    q: Ptr, k_pages: Ptr, v_pages: Ptr, page_table: Ptr, query_start: Ptr, context_len: Ptr, query_tag: Ptr,
    key_tag: Ptr, log_weight: Ptr, k_scale: Ptr, v_scale: Ptr, out: Ptr, partial: Ptr, stats: Ptr,
    arrived: Ptr, scale: Num, q_token: Num, q_head: Num, table_row: Count, page_stride: Num, slot_stride: Num,
    head_stride: Num, tag_stride: Num, H: constexpr, G: constexpr, D: constexpr, PAGE_SIZE: constexpr,
    WEIGHTED: constexpr, SCALED: constexpr, M: constexpr, BLOCK_D: constexpr, KEYS: constexpr,
    SPLITS: constexpr, SPLIT_KEYS: constexpr, MOST_SPLITS: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """One split of a row and group a program; rows that have not exactly one query
    are left to the other kernel.
    """
    split = tl.program_id(0)
    group = tl.program_id(1)
    row = tl.program_id(2)
    if PDL:
        follow()
    token = tl.load(query_start + row).to(tl.int64)
    length = tl.load(context_len + row)
    span = span_of(length, KEYS, SPLIT_KEYS, MOST_SPLITS)
    count = tl.cdiv(length, span)
    if (tl.load(query_start + row + 1) - token != 1) | (split >= count):
        return
    index, column = tl.arange(0, M), tl.arange(0, BLOCK_D)
    head = group * (H // G) + index
    mask = (index < H // G)[:, None] & (column < D)[None, :]
    queries = tl.load(q + token * q_token + head[:, None] * q_head + column[None, :], mask=mask, other=0.0)
    tag = tl.zeros([M], tl.int32)
    weight = tl.zeros([M], tl.float32)
    if WEIGHTED:
        tag += tl.load(query_tag + token)
        weight += tl.load(log_weight + token)
    position = tl.zeros([M], tl.int32) + length
    begin = split * span
    top, total, y = attend(
        queries, position, tag, weight, k_pages, v_pages, key_tag, page_table + row.to(tl.int64) * table_row,
        group, begin, tl.minimum(begin + span, length), scale, page_stride, slot_stride, head_stride,
        tag_stride, k_scale, v_scale, out, G, D, PAGE_SIZE, BLOCK_D, KEYS, WEIGHTED, SCALED,
    )  # fmt: skip
    place = out + (token * H + head[:, None]) * D + column[None, :]
    leave_split(
        top, total, y, place, mask, out, partial, stats, arrived, row.to(tl.int64) * G + group, split, count,
        SPLITS, M, BLOCK_D,
    )  # fmt: skip


def _options_of(batch: PagedBatch) -> dict[str, int]:
    """Warps, stages and registers of a batch's programs."""
    is_plain = batch.tags is None and batch.scales is None
    if batch.q.element_size() == 4:
        return {"num_warps": _WARPS if batch.scales is None else 2 * _WARPS, "num_stages": _STAGES}
    fits = tile_rows(batch.heads, batch.groups) * batch.width <= 16 * 128
    if fits and is_plain and batch.num_rows >= MANY:
        return {"num_warps": _WARPS} | _OF_MANY
    return {"num_warps": _WARPS, "num_stages": _STAGES} | ({} if is_plain or not fits else _OF_THREE)


def workspace_of(batch: PagedBatch, given: Workspace | None) -> Workspace:
    """Room for the splits of a batch. Raises ValueError for one that is too small."""
    heads, groups, num_rows = batch.heads, batch.groups, batch.num_rows
    if given is None:
        return Workspace.allocate(num_rows, heads, groups, batch.width, batch.max_context, batch.q.device)
    parts = num_rows * groups * num_splits(batch.max_context)
    tile = tile_rows(heads, groups) * next_power(batch.width, LEAST)
    if given.arrived.numel() < num_rows * groups or given.partial.numel() < parts * tile:
        raise ValueError(
            f"paged_attention: the workspace is too small for {num_rows} rows of {batch.max_context} tokens"
        )
    return given


def sizes_of(batch: PagedBatch) -> dict[str, int]:
    """The constants of both decode kernels."""
    return {
        "H": batch.heads, "G": batch.groups, "D": batch.width, "PAGE_SIZE": batch.page_size,
        "WEIGHTED": batch.tags is not None, "M": tile_rows(batch.heads, batch.groups),
        "BLOCK_D": next_power(batch.width, LEAST), "KEYS": tile_of(batch.q, batch.k_pages).keys,
        "SPLITS": num_splits(batch.max_context), "SPLIT_KEYS": SPLIT, "MOST_SPLITS": MOST,
    } | _options_of(batch)  # fmt: skip


def decode(batch: PagedBatch, out: Tensor, workspace: Workspace | None) -> None:
    """Fill the tokens of rows that have exactly one query."""
    room, sizes = workspace_of(batch, workspace), sizes_of(batch)
    launch(
        _decode_kernel, (sizes["SPLITS"], batch.groups, batch.num_rows), *batch.pointers(), out,
        room.partial, room.stats, room.arrived, batch.scale, *batch.strides(),
        SCALED=batch.scales is not None, **sizes,
    )  # fmt: skip
