"""One tile of queries against a stretch of a row's paged keys: the online softmax
that decode and prefill share.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from innervoice_kernels.jit import Block, Num, Ptr, constexpr, dot, jit, narrow, next_power, tl

_LOG2E = tl.constexpr(1.4426950408889634)
LEAST = 16  # sides of a dot


class Tile(NamedTuple):
    """keys: that one step of the loop takes. rows, warps, prefill_stages: of a
    prefill tile; decode has 4 warps.
    """

    keys: int
    rows: int
    warps: int
    prefill_stages: int


# A step reads about 16 KiB of keys and as much of values. 128 rows, 8 tokens of 16 heads, are two warpgroups
# of 64; vectors above 256 bytes have half of both. Float32 is not multiplied by the tensor cores, so that its
# tiles are bounded by registers, and a second stage of a prefill would spill some of them.
_NARROW = Tile(64, 128, 8, 3)
_WIDE = Tile(32, 64, 8, 2)
_FLOAT32 = Tile(16, 32, 8, 1)
_NARROW_BYTES = 256


def tile_of(q: Tensor, pages: Tensor) -> Tile:
    """The configuration for queries of this type and keys of this width and type."""
    if q.element_size() == 4:
        return _FLOAT32
    return _NARROW if next_power(pages.shape[-1], LEAST) * pages.element_size() <= _NARROW_BYTES else _WIDE


@jit
def attend(
    q: Block, position: Block, tag: Block, log_weight: Block, k_pages: Ptr, v_pages: Ptr, key_tag: Ptr,
    table: Ptr, group: Num, begin: Num, end: Num, scale: Num, page_stride: Num, slot_stride: Num,
    head_stride: Num, tag_stride: Num, k_scale: Ptr, v_scale: Ptr, like: Ptr, G: constexpr, D: constexpr,
    PAGE_SIZE: constexpr, BLOCK_D: constexpr, KEYS: constexpr, WEIGHTED: constexpr, SCALED: constexpr,
) -> tuple[Block, ...]:  # fmt: skip
    """Queries q [M, BLOCK_D] over keys begin to end -> (largest score [M], sum of exp [M],
    weighted values [M, BLOCK_D]).

    Scores are in base 2. A query sees keys up to its position [M]; each must see one of the first step's. The
    result is the same whatever other queries share the tile, and steps that a query does not see leave it
    unchanged. (Milakov, Gimelshein 2018) SCALED: the pages are fp8, k_scale and v_scale [P, G] what
    multiplies them. like: an address of the queries' type.
    """
    top = tl.full([q.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([q.shape[0]], tl.float32)
    y = tl.zeros([q.shape[0], BLOCK_D], tl.float32)
    column = tl.arange(0, BLOCK_D)
    for first in tl.range(begin, end, KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < end
        page = tl.load(table + key // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
        place = page * page_stride + key % PAGE_SIZE * slot_stride + group * head_stride
        k = tl.load(
            k_pages + place[None, :] + column[:, None],
            mask=inside[None, :] & (column < D)[:, None],
            other=0.0,
        )
        v = tl.load(
            v_pages + place[:, None] + column[None, :],
            mask=inside[:, None] & (column < D)[None, :],
            other=0.0,
        )
        # fp8 is exact in the queries' type; a page's scale multiplies the scores, or the weights of its
        # values
        if SCALED:
            k, v = k.to(q.dtype), v.to(q.dtype)
        score = dot(q, k, tl.zeros([q.shape[0], KEYS], tl.float32)) * (scale * _LOG2E)
        if SCALED:
            score *= tl.load(k_scale + page * G + group, mask=inside, other=0.0)[None, :]
        if WEIGHTED:
            tags = tl.load(key_tag + page * tag_stride + key % PAGE_SIZE, mask=inside, other=0)
            score += tl.where(
                (tag[:, None] == tags[None, :]) & (tag != 0)[:, None], log_weight[:, None] * _LOG2E, 0.0
            )
        score = tl.where(inside[None, :] & (key[None, :] <= position[:, None]), score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        rescale = tl.exp2(top - new_top)
        p = tl.exp2(score - new_top[:, None])
        total = total * rescale + tl.sum(p, axis=1)
        if SCALED:
            p *= tl.load(v_scale + page * G + group, mask=inside, other=0.0)[None, :]
        y = dot(narrow(p, like), v, y * rescale[:, None])
        top = new_top
    return top, total, y
