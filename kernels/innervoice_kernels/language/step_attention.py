"""Behind the QKV product of a decode step   bias, head norms, rotary position, keys and values into their pages, attention

qkv = [q | k | v]: [B, (H + 2G) D]   pages: [P, S, G, D]   ->   [B, H, D]

Every row has one token. Its keys and values are read by the one split that ends with them, which makes and stores them; all
splits make the queries, some KiB, so that nothing has to run before them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, constexpr, follow, jit, launch, tl
from innervoice_kernels.language.attention import paged_attention_ref
from innervoice_kernels.language.attention_decode import (
    Workspace,
    leave_split,
    sizes_of,
    span_of,
    workspace_of,
)
from innervoice_kernels.language.attention_tile import attend
from innervoice_kernels.language.kvstore import slot_place
from innervoice_kernels.language.paged_batch import PagedBatch
from innervoice_kernels.language.qkv import HeadNorm, head_values, qkv_rope_store_ref, rotated_heads

Tags = tuple[Tensor, Tensor, Tensor]
"""query_tag [B], key_tag [P, S] and log_weight [B] of a reflection weight."""


def step_attention_ref(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_len: Tensor,
    scale: float,
    interleaved: bool,
    bias: Tensor | None = None,
    norm: HeadNorm | None = None,
    tags: Tags | None = None,
) -> Tensor:
    """Apply `qkv_rope_store`, each token to the last place of its row, and `paged_attention`: [B, H, D]; the pages are
    written in place.

    qkv [B, (H + 2G) D] with G, D those of the pages; cos, sin [B, R/2]; page_table [B, N], context_len [B] int32.
    A row whose context_len is 0 takes no part: it writes nothing and comes out 0.
    """
    page_size, rows = k_pages.shape[1], torch.nonzero(context_len > 0).flatten()
    lengths, table = context_len[rows], page_table[rows]
    pages = table.gather(1, ((lengths - 1) // page_size).long()[:, None])[:, 0].long()
    slots = pages * page_size + (lengths - 1) % page_size
    q = qkv_rope_store_ref(qkv[rows], cos[rows], sin[rows], k_pages, v_pages, slots, interleaved, bias, norm)
    starts = torch.arange(len(rows) + 1, dtype=torch.int32, device=qkv.device)
    query_tag, key_tag, log_weight = (None, None, None) if tags is None else tags
    y = paged_attention_ref(
        q, k_pages, v_pages, table, starts, lengths, scale, None if query_tag is None else query_tag[rows], key_tag,
        None if log_weight is None else log_weight[rows],
    )  # fmt: skip
    out = qkv.new_zeros(len(qkv), *y.shape[1:])
    out[rows] = y
    return out


@jit
def _step_attention_kernel(
    qkv: Ptr, k_pages: Ptr, v_pages: Ptr, page_table: Ptr, context_len: Ptr, query_tag: Ptr, key_tag: Ptr,
    log_weight: Ptr, bias: Ptr, cos: Ptr, sin: Ptr, q_norm: Ptr, k_norm: Ptr, out: Ptr, partial: Ptr, stats: Ptr,
    arrived: Ptr, scale: Num, eps: Num, qkv_row: Num, table_row: Count, page_stride: Num, slot_stride: Num,
    head_stride: Num, tag_stride: Num, R: constexpr, INTERLEAVED: constexpr, BIAS: constexpr, NORM: constexpr,
    H: constexpr, G: constexpr, D: constexpr, PAGE_SIZE: constexpr, WEIGHTED: constexpr, M: constexpr,
    BLOCK_D: constexpr, KEYS: constexpr, SPLITS: constexpr, SPLIT_KEYS: constexpr, MOST_SPLITS: constexpr,
    PDL: constexpr,
) -> None:  # fmt: skip
    """One split of a row and group a program."""
    split, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if PDL:
        follow()
    length = tl.load(context_len + row)
    span = span_of(length, KEYS, SPLIT_KEYS, MOST_SPLITS)
    count = tl.cdiv(length, span)
    if split >= count:
        return
    index, column = tl.arange(0, M), tl.arange(0, BLOCK_D)
    is_column, token = (column < D)[None, :], row + tl.zeros([1], tl.int64)
    head = group * (H // G) + index
    mask = (index < H // G)[:, None] & is_column
    table = page_table + row * table_row
    if split == count - 1:
        last = length - 1
        slot = tl.load(table + last // PAGE_SIZE).to(tl.int64) * PAGE_SIZE + last % PAGE_SIZE
        place = slot_place(slot, group, page_stride, slot_stride, head_stride, PAGE_SIZE) + column[None, :]
        first = (H + group + tl.zeros([1, 1], tl.int32)) * D
        start = qkv + row * qkv_row + first
        key = rotated_heads(
            start, bias + first, k_norm, cos, sin, token, column, is_column, is_column, out, eps, D, R, INTERLEAVED,
            BIAS, NORM,
        )  # fmt: skip
        value = head_values(start + G * D, bias + first + G * D, column[None, :], is_column, BIAS)
        tl.store(k_pages + place, key, mask=is_column)
        tl.store(v_pages + place, value, mask=is_column)
        tl.debug_barrier()  # the program's own threads read them below
    queries = rotated_heads(
        qkv + row * qkv_row + head[:, None] * D, bias + head[:, None] * D, q_norm, cos, sin, token, column, mask,
        is_column, out, eps, D, R, INTERLEAVED, BIAS, NORM,
    )  # fmt: skip
    tag = tl.zeros([M], tl.int32)
    weight = tl.zeros([M], tl.float32)
    if WEIGHTED:
        tag += tl.load(query_tag + row)
        weight += tl.load(log_weight + row)
    begin = split * span
    top, total, y = attend(
        queries, tl.zeros([M], tl.int32) + length, tag, weight, k_pages, v_pages, key_tag, table, group, begin,
        tl.minimum(begin + span, length), scale, page_stride, slot_stride, head_stride, tag_stride, k_pages, v_pages,
        out, G, D, PAGE_SIZE, BLOCK_D, KEYS, WEIGHTED, False,
    )  # fmt: skip
    where = out + (row * H + head[:, None]) * D + column[None, :]
    leave_split(
        top,
        total,
        y,
        where,
        mask,
        out,
        partial,
        stats,
        arrived,
        row * G + group,
        split,
        count,
        SPLITS,
        M,
        BLOCK_D,
    )


def _step_attention_triton(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_len: Tensor,
    scale: float,
    interleaved: bool,
    bias: Tensor | None,
    norm: HeadNorm | None,
    tags: Tags | None,
    out: Tensor | None,
    workspace: Workspace | None,
) -> Tensor:
    groups, width = k_pages.shape[2:]
    heads = qkv.shape[1] // width - 2 * groups
    if heads < 1 or qkv.shape[1] % width or 2 * cos.shape[1] > width or len(qkv) != len(context_len):
        raise ValueError(
            f"step_attention: qkv is {tuple(qkv.shape)}, cos {tuple(cos.shape)}, the pages are {tuple(k_pages.shape)}, "
            f"context_len {tuple(context_len.shape)}: expected [B, (H + 2G) D], [B, R/2], [P, S, G, D] and [B]"
        )
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    queries = torch.unflatten(qkv, 1, (-1, width))[:, :heads]
    # Each row has one query, so that where they start is not asked for.
    batch = PagedBatch(queries, k_pages, v_pages, page_table, context_len, context_len, scale, tags)
    batch.check()
    if out is None:
        out = torch.zeros(queries.shape, dtype=qkv.dtype, device=qkv.device)
    room, sizes = workspace_of(batch, workspace), sizes_of(batch)
    query_tag, key_tag, log_weight = tags or (context_len, context_len, context_len)
    q_norm, k_norm, eps = (qkv, qkv, 0.0) if norm is None else norm
    launch(
        _step_attention_kernel, (sizes["SPLITS"], groups, len(qkv)), qkv, k_pages, v_pages, page_table, context_len,
        query_tag, key_tag, log_weight, qkv if bias is None else bias, cos.contiguous(), sin.contiguous(), q_norm,
        k_norm, out, room.partial, room.stats, room.arrived, scale, eps, qkv.stride(0), page_table.stride(0),
        *k_pages.stride()[:3], key_tag.stride(0), R=2 * cos.shape[1], INTERLEAVED=interleaved, BIAS=bias is not None,
        NORM=norm is not None, **sizes,
    )  # fmt: skip
    return out


def step_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_len: Tensor,
    scale: float,
    interleaved: bool,
    bias: Tensor | None = None,
    norm: HeadNorm | None = None,
    tags: Tags | None = None,
    *,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attention [B, H, D] of rows of one token each, whose keys and values go into the last places of their rows.

    Arguments as in step_attention_ref. out: contiguous, rows whose context_len is 0 are left as they are.
    workspace: kept from call to call, as a captured graph needs it.
    """
    batch = (qkv, cos, sin, k_pages, v_pages, page_table, context_len, scale, interleaved, bias, norm, tags)
    if choose("step_attention", qkv) == TRITON:
        return _step_attention_triton(*batch, out, workspace)
    y = step_attention_ref(*batch)
    return y if out is None else out.copy_(torch.where((context_len > 0)[:, None, None], y, out))
