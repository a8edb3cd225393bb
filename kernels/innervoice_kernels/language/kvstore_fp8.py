"""Store keys and values as fp8   pages[slot // S, slot % S] = k / scale[page]     k, v: [T, G, D]
scale: [P, G]
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Block, Count, Num, Ptr, constexpr, jit, launch, narrow, next_power, tl
from innervoice_kernels.language.kvstore import check_pages

LARGEST = 448.0  # of e4m3
_LARGEST = tl.constexpr(LARGEST)


def store_kv_fp8_ref(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, k_scale: Tensor, v_scale: Tensor, slots: Tensor
) -> None:
    """pages[slot // S, slot % S] = token / scale, in place; a token with a negative slot is not written.

    k, v [T, G, D]; k_pages, v_pages [P, S, G, D] float8_e4m3fn; k_scale, v_scale [P, G] float32; slots [T]
    int64, distinct. A page's scale is the least power of two by which all its tokens fit into 448. It begins
    anew with the page's first token and else only grows: then what is in the page is divided anew, which is
    exact but for numbers that sink below 2^-6.
    """
    for x, pages, scale in ((k, k_pages, k_scale), (v, v_pages, v_scale)):
        _store_ref(x[slots >= 0], pages, scale, slots[slots >= 0])


def _store_ref(x: Tensor, pages: Tensor, scale: Tensor, slots: Tensor) -> None:
    page_size = pages.shape[1]
    page, offset = slots // page_size, slots % page_size
    touched, which = torch.unique(page, return_inverse=True)
    largest = x.abs().amax(dim=-1).float()  # [T, G]
    needed = torch.zeros(len(touched), x.shape[1], device=x.device, dtype=torch.float32)
    needed.scatter_reduce_(0, which[:, None].expand_as(largest), largest, "amax")
    begins = torch.zeros(len(touched), dtype=torch.bool, device=x.device).index_fill_(
        0, which[offset == 0], True
    )
    old = torch.where(begins[:, None], 0.0, scale[touched].float())
    new = torch.maximum(old, _power_above(needed / LARGEST))
    ratio = torch.where(new > 0, old / new, 1.0)
    kept = pages[touched].to(x.dtype) * ratio[:, None, :, None].to(x.dtype)
    pages[touched] = torch.where(begins[:, None, None, None], pages[touched].to(x.dtype), kept).to(
        pages.dtype
    )
    inverse = torch.where(new > 0, 1 / new, 0.0)[which]  # [T, G]
    pages[page, offset] = (x * inverse[:, :, None].to(x.dtype)).to(pages.dtype)
    scale[touched] = new.to(scale.dtype)


def _power_above(x: Tensor) -> Tensor:
    """The least power of two that is not below x, float32; 0 for 0."""
    return (((x.view(torch.int32) + 0x7FFFFF) >> 23) << 23).view(torch.float32)


@jit
def _store_page(
    x: Ptr, pages: Ptr, scale: Ptr, group: Num, token: Block, offset: Block, mine: Block, begins: Num,
    x_token: Num, x_head: Num, slot_stride: Num, D: constexpr, PAGE_SIZE: constexpr, SLOTS: constexpr,
    BLOCK: constexpr,
) -> None:  # fmt: skip
    """The tokens of one page and group; pages is where the page's vectors of the group
    begin, scale where its scale is.
    """
    column = tl.arange(0, BLOCK)
    here = mine[:, None] & (column < D)[None, :]
    wide = tl.load(x + token[:, None] * x_token + group * x_head + column[None, :], mask=here, other=0.0).to(
        tl.float32
    )
    needed = tl.max(tl.max(tl.abs(wide), axis=1), axis=0) / _LARGEST
    power = (((needed.to(tl.int32, bitcast=True) + 0x7FFFFF) >> 23) << 23).to(tl.float32, bitcast=True)
    old = tl.load(scale)
    old = tl.where(begins, 0.0, old)
    new = tl.maximum(old, power)
    if (old > 0.0) & (new > old):
        slot = tl.arange(0, SLOTS)
        place = pages + slot[:, None] * slot_stride + column[None, :]
        mask = (slot < PAGE_SIZE)[:, None] & (column < D)[None, :]
        kept = tl.load(place, mask=mask, other=0.0).to(tl.float32) * (old / new)
        tl.store(place, narrow(kept, pages), mask=mask)
        tl.debug_barrier()  # what is written now comes behind
    inverse = tl.where(new > 0.0, 1.0 / new, 0.0)
    place = pages + offset[:, None] * slot_stride + column[None, :]
    tl.store(place, narrow(wide * inverse, pages), mask=here)
    tl.store(scale, new)


@jit
def _store_kv_fp8_kernel(
    k: Ptr, v: Ptr, k_pages: Ptr, v_pages: Ptr, k_scale: Ptr, v_scale: Ptr, slots: Ptr, T: Count, k_token: Num,
    k_head: Num, v_token: Num, v_head: Num, page_stride: Num, slot_stride: Num, head_stride: Num,
    D: constexpr, G: constexpr, PAGE_SIZE: constexpr, SLOTS: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One program a page and group: the first of its tokens stores all of them, the others do nothing."""
    first, group = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + first)
    page = slot // PAGE_SIZE
    before = tl.load(slots + first - 1, mask=first > 0, other=-1)
    if (slot < 0) | ((before >= 0) & (before // PAGE_SIZE == page)):
        return
    token = first.to(tl.int64) + tl.arange(0, SLOTS)
    theirs = tl.load(slots + token, mask=token < T, other=-1)
    mine = (theirs >= 0) & (theirs // PAGE_SIZE == page)
    offset = theirs % PAGE_SIZE
    begins = tl.max((mine & (offset == 0)).to(tl.int32), axis=0) > 0
    start = page * page_stride + group * head_stride
    _store_page(
        k, k_pages + start, k_scale + page * G + group, group, token, offset, mine, begins, k_token, k_head,
        slot_stride, D, PAGE_SIZE, SLOTS, BLOCK,
    )  # fmt: skip
    _store_page(
        v, v_pages + start, v_scale + page * G + group, group, token, offset, mine, begins, v_token, v_head,
        slot_stride, D, PAGE_SIZE, SLOTS, BLOCK,
    )  # fmt: skip


def check_scales(op: str, k_pages: Tensor, k_scale: Tensor, v_scale: Tensor) -> None:
    """Raises ValueError unless there is a contiguous float32 scale for each page and head."""
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if (
            scale.shape != k_pages.shape[:1] + k_pages.shape[2:3]
            or scale.dtype != torch.float32
            or not scale.is_contiguous()
        ):
            raise ValueError(
                f"{op}: {name} is {scale.dtype} {tuple(scale.shape)}, the pages {tuple(k_pages.shape)}: expected float32 [P, G]"
            )


def _store_kv_fp8_triton(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, k_scale: Tensor, v_scale: Tensor, slots: Tensor
) -> None:
    check_pages("store_kv_fp8", k_pages, v_pages)
    check_scales("store_kv_fp8", k_pages, k_scale, v_scale)
    num_tokens, groups, width = k.shape
    page_size = k_pages.shape[1]
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    launch(
        _store_kv_fp8_kernel, (num_tokens, groups), k, v, k_pages, v_pages, k_scale, v_scale,
        slots.contiguous(), num_tokens, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        *k_pages.stride()[:3], D=width, G=groups, PAGE_SIZE=page_size, SLOTS=next_power(page_size),
        BLOCK=next_power(width), num_warps=4,
    )  # fmt: skip


def store_kv_fp8(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, k_scale: Tensor, v_scale: Tensor, slots: Tensor
) -> None:
    """Write k, v [T, G, D] into pages of float8_e4m3fn [P, S, G, D] and their scales
    [P, G]; see store_kv_fp8_ref.

    The tokens of a page must stand side by side, as those of a row do.
    """
    store = _store_kv_fp8_triton if choose("store_kv_fp8", k) == TRITON else store_kv_fp8_ref
    store(k, v, k_pages, v_pages, k_scale, v_scale, slots)
