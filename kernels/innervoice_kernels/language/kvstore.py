"""Store keys and values   pages[slot // S, slot % S] = k, v        k, v: [T, G, D]   pages: [P, S, G, D]
slots: [T]
"""

from __future__ import annotations

from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Block, Num, Ptr, constexpr, jit, launch, next_power, tl


def store_kv_ref(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """pages[slot // S, slot % S] = token, in place; a token with a negative slot is not written.

    k, v [T, G, D]; k_pages, v_pages [P, S, G, D]; slots [T] int64, distinct. Nothing else in
    the pages changes. Paged KV cache: Kwon et al., "Efficient Memory Management for LLM
    Serving with PagedAttention", 2023.
    """
    page_size = k_pages.shape[1]
    kept = slots >= 0
    where = (slots[kept] // page_size, slots[kept] % page_size)
    k_pages[where] = k[kept]
    v_pages[where] = v[kept]


@jit
def slot_place(slot: Block, group: Num, page: Num, offset: Num, head: Num, PAGE_SIZE: constexpr) -> Block:
    """The address of a group's vector of a slot; page, offset, head: strides of the pages [P, S, G, D]."""
    return slot // PAGE_SIZE * page + slot % PAGE_SIZE * offset + group * head


@jit
def _store_kv_kernel(
    k: Ptr, v: Ptr, k_pages: Ptr, v_pages: Ptr, slots: Ptr, k_token: Num, k_head: Num, v_token: Num,
    v_head: Num, page: Num, offset: Num, head: Num, D: constexpr, PAGE_SIZE: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One token and group a program."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    column = tl.arange(0, BLOCK)
    mask = column < D
    place = slot_place(slot, group, page, offset, head, PAGE_SIZE) + column
    tl.store(k_pages + place, tl.load(k + token * k_token + group * k_head + column, mask=mask), mask=mask)
    tl.store(v_pages + place, tl.load(v + token * v_token + group * v_head + column, mask=mask), mask=mask)


def check_pages(op: str, k_pages: Tensor, v_pages: Tensor) -> None:
    """Raise ValueError unless k and v have pages of one shape, type and layout, vectors contiguous."""
    if (
        k_pages.shape != v_pages.shape
        or k_pages.dtype != v_pages.dtype
        or k_pages.stride() != v_pages.stride()
    ):
        raise ValueError(
            f"{op}: k_pages are {k_pages.dtype} {tuple(k_pages.shape)}, v_pages {v_pages.dtype} {tuple(v_pages.shape)}"
        )
    if k_pages.shape[-1] > 1 and k_pages.stride(-1) != 1:
        raise ValueError(f"{op}: pages have strides {k_pages.stride()}, expected 1 in the last dimension")


def _store_kv_triton(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    check_pages("store_kv", k_pages, v_pages)
    if (
        k.dtype != k_pages.dtype
        or v.dtype != k_pages.dtype
        or k.shape != v.shape
        or k.shape[1:] != k_pages.shape[2:]
    ):
        raise ValueError(
            f"store_kv: k is {k.dtype} {tuple(k.shape)}, the pages are {k_pages.dtype} {tuple(k_pages.shape)}"
        )
    num_tokens, groups, width = k.shape
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    launch(
        _store_kv_kernel, (num_tokens, groups), k, v, k_pages, v_pages, slots.contiguous(), k.stride(0),
        k.stride(1), v.stride(0), v.stride(1), *k_pages.stride()[:3], D=width, PAGE_SIZE=k_pages.shape[1],
        BLOCK=next_power(width), num_warps=1,
    )  # fmt: skip


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Write k, v [T, G, D] into k_pages, v_pages [P, S, G, D] at slots [T] (page * S +
    offset; negative: not written).
    """
    store = _store_kv_triton if choose("store_kv", k) == TRITON else store_kv_ref
    store(k, v, k_pages, v_pages, slots)
