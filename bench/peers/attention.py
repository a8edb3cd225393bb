"""Decode attention by others: FlashInfer over the same pages, torch's SDPA over a dense cache of the same contents' size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def flashinfer_calls(
    q: Tensor, layers: Sequence[tuple[Tensor, Tensor]], page_table: Tensor, context: int
) -> list[Callable[[], Tensor]]:
    """One call a layer: FlashInfer's decode on tensor cores, planned once, ready to be captured.

    q [B, H, D], layers of pages [P, S, G, D], page_table [B, N] int32: the pages of `context` tokens a row. Raises ImportError.
    """
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    rows, heads, width = q.shape
    page_size, groups = layers[0][0].shape[1:3]
    pages = -(-context // page_size)
    indices = page_table[:, :pages].reshape(-1).contiguous()
    starts = torch.arange(rows + 1, dtype=torch.int32, device=q.device) * pages
    last = torch.full((rows,), context - (pages - 1) * page_size, dtype=torch.int32, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=q.device), "NHD", use_cuda_graph=True, use_tensor_cores=True,
        paged_kv_indptr_buffer=starts.clone(), paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=last.clone(),
    )  # fmt: skip
    wrapper.plan(
        starts, indices, last, heads, groups, width, page_size, q_data_type=q.dtype, kv_data_type=q.dtype
    )

    def call(k: Tensor, v: Tensor) -> Callable[[], Tensor]:
        return lambda: wrapper.run(q, (k, v))

    return [call(k, v) for k, v in layers]


def sdpa_calls(q: Tensor, groups: int, context: int, num_layers: int) -> list[Callable[[], Tensor]]:
    """One call a layer over dense keys and values [B, G, T, D]."""
    rows, _, width = q.shape
    shape = (rows, groups, context, width)

    def call() -> Callable[[], Tensor]:
        k, v = (torch.randn(shape, dtype=q.dtype, device=q.device) for _ in range(2))
        return lambda: F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)

    return [call() for _ in range(num_layers)]
