"""A residual unit of SEANet   y_t = s_t + W' elu(b + sum_j w_j elu(x_{t + d j})) + b'
x: [B, T + d (k - 1), C]  ->  [B, T, C]

s_t: the column of x that y_t stands at, the last one that it sees, or a linear map of it (Tagliasacchi et al.
2020). What follows a unit begins with ELU, which may be taken along. Native code keeps a piece of the stream
in the cache from the first ELU to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import (
    Block,
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    dot,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.native import team
from innervoice_kernels.residual_vq.taps import Taps, apply_taps, apply_taps_ref, is_native, window_rows


@dataclass(frozen=True, eq=False)
class EluUnit:
    """wide: k taps, dilated; narrow, and the shortcut if there is one, of one tap. No strides."""

    wide: Taps
    narrow: Taps
    shortcut: Taps | None = None

    @cached_property
    def native(self) -> _C.EluUnit:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed()

    def packed(self, isa: str | None = None) -> _C.EluUnit:
        """The same for other instructions. Raises ValueError for what is not there."""
        shortcut = None if self.shortcut is None else self.shortcut.layer
        return _C.EluUnit(self.wide.layer, self.narrow.layer, shortcut, self.wide.dilation, isa)


def elu_unit_ref(x: Tensor, unit: EluUnit, before: Tensor | None = None, elu: bool = False) -> Tensor:
    """The definition, layer by layer."""
    return _by_layers(apply_taps_ref, x, unit, before, elu)


def _by_layers(
    apply: Callable[[Tensor, Taps], Tensor], x: Tensor, unit: EluUnit, before: Tensor | None, elu: bool
) -> Tensor:
    x = x if before is None else torch.cat([before, x], 1)
    inner = apply(F.elu_(apply(F.elu(x), unit.wide)), unit.narrow)
    x = x[:, unit.wide.past :]
    y = inner + (x if unit.shortcut is None else apply(x, unit.shortcut))
    return F.elu_(y) if elu else y


def _elu_unit_native(x: Tensor, unit: EluUnit, before: Tensor | None, elu: bool) -> Tensor:
    past = x[:, :0] if before is None else before
    y = torch.empty(
        len(x),
        max(0, past.shape[1] + x.shape[1] - unit.wide.past),
        x.shape[2],
        dtype=torch.float32,
        device="cpu",
    )
    unit.native(team(), past.contiguous(), x.contiguous(), elu, y)
    return y


@jit
def _elu(x: Block) -> Block:
    return tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)


@jit
def _elu_unit_kernel(
    before: Ptr, x: Ptr, wide: Ptr, wide_bias: Ptr, slim: Ptr, slim_bias: Ptr, beside: Ptr, beside_bias: Ptr,
    y: Ptr, P: Count, T: Count, STEPS: Count, M: Count, C: Num, H: Num, TAPS: constexpr, DILATION: constexpr,
    WIDE_BIAS: constexpr, SLIM_BIAS: constexpr, BESIDE: constexpr, BESIDE_BIAS: constexpr, ELU: constexpr,
    ROWS: constexpr, DEPTH: constexpr, HIDDEN: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """ROWS steps, those of all rows of the batch in a line, and all channels a program; what
    is between stays in registers.
    """
    m, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    known, is_column = m < M, column < C
    row, step = (m // STEPS).to(tl.int64), m % STEPS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, H, HIDDEN):
        h = begin + tl.arange(0, HIDDEN)
        inner = tl.zeros([ROWS, HIDDEN], tl.float32)
        for tap in range(TAPS):
            for first in range(0, C, DEPTH):
                k = first + tl.arange(0, DEPTH)
                a = window_rows(before, x, row, step + tap * DILATION, known, k, P, T, C)
                place = wide + (tap * C + k[:, None]) * H + h[None, :]
                weights = tl.load(place, mask=(k < C)[:, None] & (h < H)[None, :], other=0.0)
                inner = dot(narrow(_elu(a.to(tl.float32)), x), weights, inner)
        if WIDE_BIAS:
            inner += tl.load(wide_bias + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
        inner = narrow(_elu(inner), x)
        weights = tl.load(
            slim + h[:, None] * C + column[None, :], mask=(h < H)[:, None] & is_column[None, :], other=0.0
        )
        total = dot(inner, weights, total)
    if SLIM_BIAS:
        total += tl.load(slim_bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    place = step + (TAPS - 1) * DILATION
    if BESIDE:
        for first in range(0, C, DEPTH):
            k = first + tl.arange(0, DEPTH)
            a = window_rows(before, x, row, place, known, k, P, T, C)
            weights = tl.load(
                beside + k[:, None] * C + column[None, :],
                mask=(k < C)[:, None] & is_column[None, :],
                other=0.0,
            )
            total = dot(a, weights, total)
        if BESIDE_BIAS:
            total += tl.load(beside_bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    else:
        total += window_rows(before, x, row, place, known, column, P, T, C).to(tl.float32)
    if ELU:
        total = _elu(total)
    out = y + m.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(out, narrow(total, y), mask=known[:, None] & is_column[None, :])


WIDEST = 128  # channels up to which a program holds them all; wider units have fewer columns to move


def _elu_unit_triton(x: Tensor, unit: EluUnit, before: Tensor | None, elu: bool) -> Tensor:
    x, past = x.contiguous(), (x[:, :0] if before is None else before).contiguous()
    taps, channels, hidden = unit.wide.weight.shape
    wide = unit.wide
    slim = unit.narrow
    beside = unit.shortcut
    steps = max(0, past.shape[1] + x.shape[1] - wide.past)
    y = torch.empty(len(x), steps, channels, dtype=x.dtype, device=x.device)
    layers = [
        part for layer in (wide, slim, beside or slim) for part in (layer.weight.contiguous(), layer.bias)
    ]
    rows, warps = (16, 4) if x.dtype == torch.float32 else (64, 8)
    launch(
        _elu_unit_kernel, (cdiv(len(x) * steps, rows),), past, x,
        *(wide.weight if part is None else part for part in layers), y, past.shape[1], x.shape[1], steps,
        len(x) * steps, channels, hidden, TAPS=taps, DILATION=wide.dilation, WIDE_BIAS=wide.bias is not None,
        SLIM_BIAS=slim.bias is not None, BESIDE=beside is not None,
        BESIDE_BIAS=beside is not None and beside.bias is not None, ELU=elu, ROWS=rows,
        DEPTH=min(32, next_power(channels, 16)), HIDDEN=min(32, next_power(hidden, 16)),
        COLUMNS=next_power(channels, 16), num_warps=warps, num_stages=2,
    )  # fmt: skip
    return y


def elu_unit(x: Tensor, unit: EluUnit, before: Tensor | None = None, elu: bool = False) -> Tensor:
    """A unit without padding: x [B, W, C] -> [B, P + W - (k - 1) d, C], its ELU if `elu`.

    before [B, P, C]: columns that count as x's first ones.
    """
    chosen = choose("elu_unit", x, has_native=True)
    if chosen == NATIVE and is_native(x, unit.wide.weight):
        return _elu_unit_native(x, unit, before, elu)
    if chosen == TRITON and x.shape[2] <= WIDEST and x.dtype != torch.float64:
        return _elu_unit_triton(x, unit, before, elu)
    return _by_layers(apply_taps, x, unit, before, elu)
