"""Paged attention of rows with two queries or more, of any number of cached keys before them:
prefill, whole or in chunks.

A tile holds all heads of a group for some of a row's tokens, so that a key is read once for the
group. Tiles of all rows lie in one grid: row b's begin at query_start[b] // tokens + b, which
needs no count made on the host.
"""

from __future__ import annotations

from torch import Tensor

from innervoice_kernels.jit import Count, Num, Ptr, constexpr, jit, launch, narrow, next_power, tl
from innervoice_kernels.language.attention_tile import LEAST, attend, tile_of
from innervoice_kernels.language.paged_batch import PagedBatch

_ROWS = 256  # of which a program looks at once for its own: one a thread


@jit
def _prefill_kernel(
    q: Ptr, k_pages: Ptr, v_pages: Ptr, page_table: Ptr, query_start: Ptr, context_len: Ptr, query_tag: Ptr,
    key_tag: Ptr, log_weight: Ptr, k_scale: Ptr, v_scale: Ptr, out: Ptr, B: Count,
    least_queries: Count, scale: Num, q_token: Num,
    q_head: Num, table_row: Count, page_stride: Num, slot_stride: Num, head_stride: Num, tag_stride: Num,
    H: constexpr, G: constexpr, D: constexpr, PAGE_SIZE: constexpr, WEIGHTED: constexpr, SCALED: constexpr,
    TOKENS: constexpr, HEADS: constexpr, BLOCK_B: constexpr, BLOCK_D: constexpr, KEYS: constexpr,
) -> None:  # fmt: skip
    """TOKENS tokens of a row and group a program; tile row i is head i % HEADS of token i // HEADS."""
    tile, group = tl.program_id(0), tl.program_id(1)
    row = tl.full([], -1, tl.int32)
    for low in range(0, B, BLOCK_B):
        rows = low + tl.arange(0, BLOCK_B)
        starts = tl.load(query_start + rows, mask=rows < B, other=0)
        row += tl.sum(((starts // TOKENS + rows <= tile) & (rows < B)).to(tl.int32))
    begin, end = tl.load(query_start + row), tl.load(query_start + row + 1)
    first = (tile - (begin // TOKENS + row)) * TOKENS
    if (end - begin < least_queries) | (first >= end - begin):
        return
    length = tl.load(context_len + row)
    cached = length - (end - begin)
    index, column = tl.arange(0, TOKENS * HEADS), tl.arange(0, BLOCK_D)
    head, place = index % HEADS, first + index // HEADS
    is_query = (place < end - begin) & (head < H // G)
    head, token = group * (H // G) + head, (begin + place).to(tl.int64)
    mask = is_query[:, None] & (column < D)[None, :]
    queries = tl.load(q + (token * q_token + head * q_head)[:, None] + column[None, :], mask=mask, other=0.0)
    tag = tl.zeros([TOKENS * HEADS], tl.int32)
    weight = tl.zeros([TOKENS * HEADS], tl.float32)
    if WEIGHTED:
        tag += tl.load(query_tag + token, mask=is_query, other=0)
        weight += tl.load(log_weight + token, mask=is_query, other=0.0)
    _, total, y = attend(
        queries, cached + place, tag, weight, k_pages, v_pages, key_tag,
        page_table + row.to(tl.int64) * table_row, group, 0, tl.minimum(cached + first + TOKENS, length),
        scale, page_stride, slot_stride, head_stride, tag_stride, k_scale, v_scale, out, G, D, PAGE_SIZE,
        BLOCK_D, KEYS, WEIGHTED, SCALED,
    )  # fmt: skip
    tl.store(
        out + (token * H + head)[:, None] * D + column[None, :], narrow(y / total[:, None], out), mask=mask
    )


def prefill(batch: PagedBatch, out: Tensor, least_queries: int = 2) -> None:
    """Fill the tokens of rows that have so many queries or more, 1 or 2."""
    num_rows, groups = batch.num_rows, batch.groups
    group_heads = next_power(batch.heads // groups)
    tile = tile_of(batch.q, batch.k_pages)
    tokens = max(1, tile.rows // group_heads)
    launch(
        _prefill_kernel, (batch.num_tokens // tokens + num_rows, groups), *batch.pointers(), out,
        num_rows, least_queries, batch.scale, *batch.strides(),
        H=batch.heads, G=groups, D=batch.width, PAGE_SIZE=batch.page_size,
        WEIGHTED=batch.tags is not None, SCALED=batch.scales is not None, TOKENS=tokens, HEADS=group_heads,
        BLOCK_B=_ROWS, BLOCK_D=next_power(batch.width, LEAST), KEYS=tile.keys,
        num_warps=tile.warps, num_stages=tile.prefill_stages,
    )  # fmt: skip
