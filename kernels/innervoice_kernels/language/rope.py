"""Rotary position   (a, b) -> (a cos - b sin, b cos + a sin)
x: [T, H, D]   cos, sin: [T, R/2]   ->   [T, H, D]
"""

from __future__ import annotations

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

# (tokens a program, warps): one warp a head while tokens are few and launches are short, tiles
# of 16 x 128 for a prefill.
FEW, MANY = (1, 1), (16, 4)
FEW_TOKENS = 64


def rotary_ref(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pair i of the first R dimensions by the angle of its position; dimensions R and up pass through.

    x [T, H, D], cos and sin [T, R/2]; pair i is (2i, 2i+1) when interleaved, else (i, i + R/2). The
    arithmetic is in float32 (float64 for float64 input), rounded once. Su et al., "RoFormer", 2021.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    num_pairs = cos.shape[-1]
    rotated, rest = x[..., : 2 * num_pairs].to(wide), x[..., 2 * num_pairs :]
    pairs = torch.unflatten(rotated, -1, (num_pairs, 2) if interleaved else (2, num_pairs))
    a, b = pairs.unbind(-1 if interleaved else -2)  # [T, H, R/2]
    c, s = cos[:, None].to(wide), sin[:, None].to(wide)
    turned = torch.stack((a * c - b * s, b * c + a * s), dim=-1 if interleaved else -2)
    return torch.cat((turned.flatten(-2).to(x.dtype), rest), dim=-1)


@jit
def partner(column: Block, R: constexpr, INTERLEAVED: constexpr) -> Block:
    """The other column of each column's pair; columns from R on are their own."""
    other = column ^ 1 if INTERLEAVED else tl.where(column < R // 2, column + R // 2, column - R // 2)
    return tl.where(column < R, other, column)


@jit
def turned(own: Block, other: Block, cos: Ptr, sin: Ptr, token: Block, column: Block, mask: Block, R: constexpr,
           INTERLEAVED: constexpr) -> Block:  # fmt: skip
    """Own values [T, D], rotated with their partners by the angles of their tokens [T]."""
    if INTERLEAVED:
        pair, is_first = column // 2, column % 2 == 0
    else:
        pair, is_first = column % (R // 2), column < R // 2
    place = token[:, None] * (R // 2) + pair[None, :]
    mask = mask & (column < R)[None, :]
    c = tl.load(cos + place, mask=mask, other=1.0).to(tl.float32)
    s = tl.load(sin + place, mask=mask, other=0.0).to(tl.float32)
    return own * c + tl.where(is_first, -1.0, 1.0)[None, :] * other * s


@jit
def _rotary_kernel(
    x: Ptr, cos: Ptr, sin: Ptr, y: Ptr, T: Count, x_token: Num, x_head: Num, H: Num, D: constexpr, R: constexpr,
    INTERLEAVED: constexpr, BLOCK: constexpr, TOKENS: constexpr,
) -> None:  # fmt: skip
    """One head of TOKENS tokens a program."""
    token, head = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    mask = (token < T)[:, None] & (column < D)[None, :]
    start = x + token[:, None] * x_token + head * x_head
    own = tl.load(start + column, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(start + partner(column, R, INTERLEAVED), mask=mask, other=0.0).to(tl.float32)
    result = turned(own, other, cos, sin, token, column, mask, R, INTERLEAVED)
    tl.store(y + (token[:, None] * H + head) * D + column, narrow(result, y), mask=mask)


def _rotary_triton(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    num_tokens, heads, width = x.shape
    if cos.shape != sin.shape or cos.shape[:1] != x.shape[:1] or 2 * cos.shape[1] > width:
        raise ValueError(
            f"rotary: x is {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}: expected [T, R/2] twice"
        )
    if cos.shape[1] == 0:
        return x.clone()
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens, warps = FEW if num_tokens <= FEW_TOKENS else MANY
    launch(
        _rotary_kernel, (cdiv(num_tokens, tokens), heads), x, cos.contiguous(), sin.contiguous(), y,
        num_tokens, x.stride(0), x.stride(1), heads, D=width, R=2 * cos.shape[1], INTERLEAVED=interleaved,
        BLOCK=next_power(width), TOKENS=tokens, num_warps=warps,
    )  # fmt: skip
    return y


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary position embedding of queries or keys: x [T, H, D], cos and sin [T, R/2] -> [T, H, D]."""
    return (
        _rotary_triton(x, cos, sin, interleaved)
        if choose("rotary", x) == TRITON
        else rotary_ref(x, cos, sin, interleaved)
    )
