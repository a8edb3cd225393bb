"""Paged attention   y = softmax(scale q K^T + bias) V, causal
q: [T, H, D]   pages: [P, S, G, D]   ->   [T, H, D]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from innervoice_kernels.backend import LIBRARIES, REF, choose
from innervoice_kernels.language.attention_libraries import attend
from innervoice_kernels.language.paged_batch import PagedBatch

if TYPE_CHECKING:
    from innervoice_kernels.language.attention_decode import Workspace

_QUERY_BLOCK = 256  # bounds the score matrix [H, block, keys] of a long prefill


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q [T, H, D], k and v [N, G, D], bias [T, N] -> [T, H, D]; head h reads group h // (H / G)."""
    num_tokens, num_heads, head_dim = q.shape
    groups = k.shape[1]
    q = (
        torch.unflatten(q, 1, (groups, -1)).permute(1, 2, 0, 3).reshape(groups, -1, head_dim)
    )  # [G, H/G * T, D]
    scores = torch.unflatten(q @ k.permute(1, 2, 0) * scale, 1, (-1, num_tokens)) + bias  # [G, H/G, T, N]
    y = torch.softmax(scores, dim=-1).flatten(1, 2) @ v.transpose(0, 1)  # [G, H/G * T, D]
    return (
        torch.unflatten(y, 1, (-1, num_tokens)).permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)
    )


def _gathered(x: Tensor, scale: Tensor | None, pages: Tensor, wide: torch.dtype) -> Tensor:
    """The tokens of some pages, [N, G, D]."""
    found = x[pages].to(wide)
    return (found if scale is None else found * scale[pages].to(wide)[:, None, :, None]).flatten(0, 1)


def paged_attention_ref(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    scale: float,
    query_tag: Tensor | None = None,
    key_tag: Tensor | None = None,
    log_weight: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """y_t = sum_j softmax_j(scale q_t.k_j + bias_tj) v_j over the keys j of the row up to t's own position.

    q [T, H, D]; k_pages, v_pages [P, S, G, D], H a multiple of G; page_table [B, N], query_start [B+1],
    context_len [B] int32. Row b's queries are the last query_start[b+1] - query_start[b] of its
    context_len[b] positions; position i lies in page page_table[b, i // S] at offset i % S. bias is
    log_weight[t] where query_tag[t] == key_tag[j] != 0, else 0; query_tag [T] and key_tag [P, S] int32,
    log_weight [T]: all three or none. k_scale, v_scale [P, G] float32, both or none: what multiplies the
    numbers of a page, which are fp8. Tokens that no row owns come out 0. In float32 (float64 for float64
    input), rounded once. Vaswani et al., 2017; grouped queries: Ainslie et al., 2023.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    page_size = k_pages.shape[1]
    out = torch.zeros_like(q)
    starts, lengths = query_start.tolist(), context_len.tolist()
    for row, length in enumerate(lengths):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        pages = page_table[row, : -(-length // page_size)].long()
        k, v = (
            _gathered(x, scale_of, pages, wide)[:length]
            for x, scale_of in ((k_pages, k_scale), (v_pages, v_scale))
        )  # [N, G, D]
        tags = None if key_tag is None else key_tag[pages].flatten()[:length]
        key_position = torch.arange(length, device=q.device, dtype=torch.int64)
        for first in range(begin, end, _QUERY_BLOCK):
            last = min(first + _QUERY_BLOCK, end)
            seen = length - (end - last)  # keys up to this block's last query
            query_position = key_position[seen - (last - first) : seen]
            bias = torch.zeros(last - first, seen, dtype=wide, device=q.device)
            if query_tag is not None and tags is not None and log_weight is not None:
                tag = query_tag[first:last, None]
                bias += log_weight[first:last, None].to(wide) * ((tag == tags[:seen]) & (tag != 0))
            bias.masked_fill_(key_position[:seen] > query_position[:, None], float("-inf"))
            out[first:last] = _attend(q[first:last].to(wide), k[:seen], v[:seen], bias, scale).to(q.dtype)
    return out


def _paged_attention_triton(
    batch: PagedBatch,
    min_queries: int,
    max_queries: int | None,
    is_tiled: bool,
    out: Tensor | None,
    workspace: Workspace | None,
) -> Tensor:
    from innervoice_kernels.language.attention_decode import decode
    from innervoice_kernels.language.attention_prefill import prefill

    batch.check()
    if out is None:
        out = torch.zeros(batch.q.shape, dtype=batch.q.dtype, device=batch.q.device)
    if batch.num_rows == 0 or batch.num_tokens == 0:
        return out
    if min_queries < 2 and not is_tiled:
        decode(batch, out, workspace)
    if max_queries is None or max_queries > 1 or is_tiled:
        prefill(batch, out, 1 if is_tiled else 2)
    return out


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    scale: float,
    query_tag: Tensor | None = None,
    key_tag: Tensor | None = None,
    log_weight: Tensor | None = None,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    min_queries: int = 1,
    max_queries: int | None = None,
    is_tiled: bool = False,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Causal attention of a ragged batch of rows, prefill and decode mixed, over paged keys and
    values: q [T, H, D] -> [T, H, D].

    Arguments as in paged_attention_ref. min_queries, max_queries: no row has fewer, or more, which spares a
    launch where the one is above 1 or the other is 1. is_tiled: a row with one query is added up as it would be
    among others, not in splits of its keys. out: contiguous, its tokens that no row owns are left as
    they are. workspace: kept from call to call, as a captured graph needs it.
    """
    chosen = choose("paged_attention", q)
    if chosen == REF:
        y = paged_attention_ref(
            q, k_pages, v_pages, page_table, query_start, context_len, scale,
            query_tag, key_tag, log_weight, k_scale, v_scale,
        )  # fmt: skip
        return y if out is None else out.copy_(y)
    tags = scales = None
    if query_tag is not None and key_tag is not None and log_weight is not None:
        tags = (query_tag, key_tag, log_weight)
    if k_scale is not None and v_scale is not None:
        scales = (k_scale, v_scale)
    batch = PagedBatch(q, k_pages, v_pages, page_table, query_start, context_len, scale, tags, scales)
    if chosen in LIBRARIES:
        found = attend(chosen, batch, is_captured=workspace is not None)
        if found is not None:
            return found if out is None else out.copy_(found)
    return _paged_attention_triton(batch, min_queries, max_queries, is_tiled, out, workspace)
