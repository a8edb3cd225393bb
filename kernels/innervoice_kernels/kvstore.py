"""Store keys and values   pages[slot // S, slot % S] = k, v        k, v: [T, G, D]   pages: [P, S, G, D]   slots: [T]"""

from __future__ import annotations

from torch import Tensor


def store_kv_ref(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """pages[slot // S, slot % S] = token, in place; a token with a negative slot is not written.

    k, v [T, G, D]; k_pages, v_pages [P, S, G, D]; slots [T] int64, distinct. Nothing else in the pages changes.
    Paged KV cache: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023.
    """
    page_size = k_pages.shape[1]
    kept = slots >= 0
    where = (slots[kept] // page_size, slots[kept] % page_size)
    k_pages[where] = k[kept]
    v_pages[where] = v[kept]


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Write k, v [T, G, D] into k_pages, v_pages [P, S, G, D] at slots [T] (page * S + offset; negative: not written)."""
    store_kv_ref(k, v, k_pages, v_pages, slots)
