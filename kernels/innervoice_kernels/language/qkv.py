"""After the QKV product   bias, norms of queries and keys, rotary position, keys and values into their pages

qkv = [q | k | v]: [T, (H + 2G) D]   pages: [P, S, G, D]   ->   q: [T, H, D]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import (
    Block,
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.language.kvstore import check_pages, slot_place, store_kv_ref
from innervoice_kernels.language.norm import rms_norm_ref
from innervoice_kernels.language.rope import FEW, FEW_TOKENS, MANY, partner, rotary_ref, turned


class HeadNorm(NamedTuple):
    """RMSNorm of every query and key over its width: q, k [D]."""

    q: Tensor
    k: Tensor
    eps: float


def qkv_rope_store_ref(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    interleaved: bool,
    bias: Tensor | None = None,
    norm: HeadNorm | None = None,
) -> Tensor:
    """Apply bias, norms, `rotary` and `store_kv`: queries [T, H, D]; the pages are written in place.

    qkv [T, (H + 2G) D] with G, D those of the pages; cos, sin [T, R/2]; slots [T] int64, negative: not
    stored; bias [(H + 2G) D]. Every stage rounds to the type of qkv.
    """
    groups, width = k_pages.shape[2:]
    heads = torch.unflatten(qkv if bias is None else qkv + bias, -1, (-1, width))
    q, k, v = torch.split(heads, [heads.shape[1] - 2 * groups, groups, groups], dim=1)
    if norm is not None:
        q, k = rms_norm_ref(q, norm.q, norm.eps), rms_norm_ref(k, norm.k, norm.eps)
    store_kv_ref(rotary_ref(k, cos, sin, interleaved), v, k_pages, v_pages, slots)
    return rotary_ref(q, cos, sin, interleaved)


@jit
def head_values(start: Block, bias: Block, column: Block, mask: Block, BIAS: constexpr) -> Block:
    """Values of heads that begin at these addresses, with their bias."""
    values = tl.load(start + column, mask=mask, other=0.0)
    if BIAS:
        values = narrow(
            values.to(tl.float32) + tl.load(bias + column, mask=mask, other=0.0).to(tl.float32), bias
        )
    return values


@jit
def rotated_heads(
    start: Block, bias: Block, weight: Ptr, cos: Ptr, sin: Ptr, token: Block, column: Block, mask: Block, known: Block,
    like: Ptr, eps: Num, D: constexpr, R: constexpr, INTERLEAVED: constexpr, BIAS: constexpr, NORM: constexpr,
) -> Block:  # fmt: skip
    """Heads [T, BLOCK] that begin at start [T, 1], with their bias and norm, rotated by the angles of their tokens.

    token: [T], or [1] for heads of one token; known: mask of its angles.
    """
    x = head_values(start, bias, column[None, :], mask, BIAS).to(tl.float32)
    pair = partner(column, R, INTERLEAVED)
    other = head_values(start, bias, pair[None, :], mask, BIAS).to(tl.float32)
    if NORM:
        scale = 1 / tl.sqrt_rn(tl.sum(x * x, axis=1) / D + eps)[:, None]
        x = narrow(x * scale * tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32), like).to(
            tl.float32
        )
        other = narrow(
            other * scale * tl.load(weight + pair, mask=column < D, other=0.0).to(tl.float32), like
        ).to(tl.float32)
    return narrow(turned(x, other, cos, sin, token, column, known, R, INTERLEAVED), like)


@jit
def _qkv_kernel(
    qkv: Ptr, bias: Ptr, cos: Ptr, sin: Ptr, q_norm: Ptr, k_norm: Ptr, q: Ptr, k_pages: Ptr, v_pages: Ptr,
    slots: Ptr, T: Count, qkv_token: Num, page: Num, offset: Num, stride: Num, eps: Num, H: constexpr,
    G: constexpr, D: constexpr, R: constexpr, PAGE_SIZE: constexpr, INTERLEAVED: constexpr, BIAS: constexpr,
    NORM: constexpr, BLOCK: constexpr, TOKENS: constexpr,
) -> None:  # fmt: skip
    """One head of TOKENS tokens a program: queries first, then the groups' keys, then their values."""
    token, head = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    mask = (token < T)[:, None] & (column < D)[None, :]
    start, bias = qkv + token[:, None] * qkv_token + head * D, bias + head * D
    slot = tl.load(slots + token, mask=token < T, other=-1)
    if head >= H + G:
        own = head_values(start, bias, column[None, :], mask, BIAS)
        place = slot_place(slot, head - H - G, page, offset, stride, PAGE_SIZE)[:, None] + column
        tl.store(v_pages + place, own, mask=mask & (slot >= 0)[:, None])
        return
    weight = k_norm
    if head < H:
        weight = q_norm
    result = rotated_heads(
        start, bias, weight, cos, sin, token, column, mask, mask, q, eps, D, R, INTERLEAVED, BIAS, NORM
    )
    if head < H:
        tl.store(q + (token[:, None] * H + head) * D + column, result, mask=mask)
    else:
        place = slot_place(slot, head - H, page, offset, stride, PAGE_SIZE)[:, None] + column
        tl.store(k_pages + place, result, mask=mask & (slot >= 0)[:, None])


def _qkv_rope_store_triton(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    interleaved: bool,
    bias: Tensor | None = None,
    norm: HeadNorm | None = None,
) -> Tensor:
    check_pages("qkv_rope_store", k_pages, v_pages)
    num_tokens, (groups, width) = len(qkv), k_pages.shape[2:]
    heads = qkv.shape[1] // width - 2 * groups
    if qkv.dtype != k_pages.dtype or heads < 1 or qkv.shape[1] % width or 2 * cos.shape[1] > width:
        raise ValueError(
            f"qkv_rope_store: qkv is {qkv.dtype} {tuple(qkv.shape)}, cos {tuple(cos.shape)}, the pages are {k_pages.dtype} "
            f"{tuple(k_pages.shape)}: expected one type, [T, (H + 2G) D], [T, R/2] and [P, S, G, D]"
        )
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    q = torch.empty(num_tokens, heads, width, dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm, eps = (qkv, qkv, 0.0) if norm is None else norm
    tokens, warps = FEW if num_tokens <= FEW_TOKENS else MANY
    launch(
        _qkv_kernel, (cdiv(num_tokens, tokens), heads + 2 * groups), qkv, qkv if bias is None else bias,
        cos.contiguous(), sin.contiguous(), q_norm, k_norm, q, k_pages, v_pages, slots, num_tokens,
        qkv.stride(0), *k_pages.stride()[:3], eps, H=heads, G=groups, D=width, R=2 * cos.shape[1],
        PAGE_SIZE=k_pages.shape[1], INTERLEAVED=interleaved, BIAS=bias is not None, NORM=norm is not None,
        BLOCK=next_power(width), TOKENS=tokens, num_warps=warps,
    )  # fmt: skip
    return q


def qkv_rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    interleaved: bool,
    bias: Tensor | None = None,
    norm: HeadNorm | None = None,
) -> Tensor:
    """Queries [T, H, D], rotated; keys and values of the same tokens go into their pages.

    Arguments as in the reference.
    """
    run = _qkv_rope_store_triton if choose("qkv_rope_store", qkv) == TRITON else qkv_rope_store_ref
    return run(qkv, cos, sin, k_pages, v_pages, slots, interleaved, bias, norm)
