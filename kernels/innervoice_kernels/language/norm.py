"""RMSNorm   y = x / sqrt(mean(x^2) + eps) * w        x: [..., D]   w: [D]   ->   [..., D]"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import (
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    follow,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)

# A tile of whole rows has at most so many values: 16 a thread of 8 warps at the model's width of
# 4096, 16 heads of 128 for the norms of queries and keys. It depends on D alone, so that a row's sum
# is the same in every batch.
_TILE = 4096
_WIDEST = 65536


def rms_norm_ref(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * w in float32 (float64 for float64 input),
    rounded once to the type of x.

    x [..., D], w [D] -> [..., D]. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * w.to(wide)).to(x.dtype)


def add_rms_norm_ref(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(s, rms_norm(s)) with s = x + residual rounded to their type, as a layer hands it on:
    x, residual [..., D], w [D].
    """
    total = x + residual
    return total, rms_norm_ref(total, w, eps)


@jit
def _rms_norm_kernel(
    x: Ptr, residual: Ptr, w: Ptr, total: Ptr, y: Ptr, num_rows: Count, inner: Num, x_outer: Num, x_inner: Num,
    r_outer: Num, r_inner: Num, eps: Num, D: constexpr, BLOCK: constexpr, ROWS: constexpr, ADD: constexpr,
    PDL: constexpr,
) -> None:  # fmt: skip
    """ROWS rows a program.

    Row r of x starts at (r // inner) * x_outer + (r % inner) * x_inner; of what is written, at r * D.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < num_rows)[:, None] & (column < D)[None, :]
    place = (row // inner * x_outer + row % inner * x_inner)[:, None] + column
    if PDL:
        follow()
    h = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    out = row[:, None] * D + column
    if ADD:
        other = (row // inner * r_outer + row % inner * r_inner)[:, None] + column
        h += tl.load(residual + other, mask=mask, other=0.0).to(tl.float32)
        rounded = narrow(h, total)
        tl.store(total + out, rounded, mask=mask)
        h = rounded.to(tl.float32)
    scale = 1 / tl.sqrt_rn(tl.sum(h * h, axis=1) / D + eps)
    weight = tl.load(w + column, mask=column < D, other=0.0).to(tl.float32)
    tl.store(y + out, narrow(h * scale[:, None] * weight, y), mask=mask)


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x, and how its rows lie: how many there are inside one step of the outer
    stride, that stride, and theirs.
    """
    if x.ndim > 3 or x.ndim == 0 or (x.shape[-1] > 1 and x.stride(-1) != 1):
        x = x.reshape(-1, x.shape[-1]).contiguous()
    if x.ndim == 3:
        return x, x.shape[1], x.stride(0), x.stride(1)
    return x, 1, x.stride(0) if x.ndim == 2 else 0, 0


def _rms_norm_triton(x: Tensor, residual: Tensor | None, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    if w.shape != (width,) or width > _WIDEST:
        raise ValueError(
            f"rms_norm: x is {tuple(x.shape)} and w {tuple(w.shape)}, expected [..., D] and [D], D at most {_WIDEST}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"add_rms_norm: x is {x.dtype} {tuple(x.shape)}, residual {residual.dtype} {tuple(residual.shape)}"
        )
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    flat, inner, x_outer, x_inner = _rows(x)
    other, other_inner, r_outer, r_inner = (flat, inner, 0, 0) if residual is None else _rows(residual)
    if inner != other_inner:  # one of them was copied
        flat, inner, x_outer, x_inner = _rows(x.reshape(-1, width).contiguous())
        other, _, r_outer, r_inner = _rows(other.reshape(-1, width).contiguous())
    block = next_power(width)
    rows_a_tile = max(1, _TILE // block)
    num_rows = x.numel() // width if width else 0
    launch(
        _rms_norm_kernel, (cdiv(num_rows, rows_a_tile),), flat, other, w.contiguous(), total, y, num_rows,
        inner, x_outer, x_inner, r_outer, r_inner, eps, D=width, BLOCK=block, ROWS=rows_a_tile,
        ADD=residual is not None, num_warps=8,
    )  # fmt: skip
    return total, y


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension: x [..., D], w [D]
    -> [..., D], in the type of x.
    """
    if choose("rms_norm", x) == TRITON:
        return _rms_norm_triton(x, None, w, eps)[1]
    return rms_norm_ref(x, w, eps)


def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and residual [..., D], and its root-mean-square normalisation; both in the type of x."""
    if choose("rms_norm", x) == TRITON:
        return _rms_norm_triton(x, residual, w, eps)
    return add_rms_norm_ref(x, residual, w, eps)
