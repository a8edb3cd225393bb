"""A transformer layer over the last W positions of a stream   y = x + s out(attention(norm x));
y + s' down(gelu(up(norm y)))

Pre-norm, rotary positions, a scale a channel on both branches (Mimi, Défossez et al. 2024).
x: [B, T, D]   ->   [B, T, D]
Keys and values are in a ring, as windowed.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, choose
from innervoice_kernels.language.rope import rotary, rotary_ref
from innervoice_kernels.native import are_multiples, floats, taps_first, team
from innervoice_kernels.residual_vq.taps import is_native
from innervoice_kernels.residual_vq.windowed import (
    store_window,
    store_window_ref,
    window_attention,
    window_attention_ref,
)

MaybeBiased = tuple[Tensor, Tensor | None]
"""A weight and its bias, None: it has none."""

_Op = Callable[..., Any]


class RingRows(NamedTuple):
    """The positions of a call's rows: slots, start, n [B] int64, as windowed.py says; cos and sin
    [B T, d / 2] of their positions.
    """

    slots: Tensor
    start: Tensor
    n: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class WindowLayer:
    """Weights and biases of norms [D] and linear maps; qkv [(H + 2 G) d, D]; scales [D]."""

    norm: MaybeBiased
    qkv: MaybeBiased
    out: MaybeBiased
    scale: Tensor
    norm_ffn: MaybeBiased
    up: MaybeBiased
    down: MaybeBiased
    scale_ffn: Tensor
    heads: int
    groups: int
    window: int
    eps: float

    @property
    def width(self) -> int:
        """The width d of a head."""
        return len(self.qkv[0]) // (self.heads + 2 * self.groups)

    @cached_property
    def has_native(self) -> bool:
        """Whether native code takes these sizes."""
        return (
            are_multiples((self.qkv[0].shape[1], self.width))
            and self.norm[1] is not None
            and self.norm_ffn[1] is not None
        )

    @cached_property
    def native(self) -> _C.WindowLayer:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed()

    def packed(self, isa: str | None = None) -> _C.WindowLayer:
        """The same for other instructions. Raises ValueError for what is not there."""
        (norm, shift), (norm_ffn, shift_ffn) = self.norm, self.norm_ffn
        assert shift is not None and shift_ffn is not None
        linear = (self.qkv, self.out, self.up, self.down)
        qkv, out, up, down = (taps_first(weight) for weight, _ in linear)
        tensors = [norm, shift, qkv, out, self.scale, norm_ffn, shift_ffn, up, down, self.scale_ffn]
        biases = [None if bias is None else floats(bias) for _, bias in linear]
        return _C.WindowLayer(
            [floats(x) for x in tensors], biases, self.heads, self.groups, self.window, self.eps, isa
        )


def window_layer_ref(x: Tensor, layer: WindowLayer, ring: Tensor, rows: RingRows) -> Tensor:
    """The definition; the ring [S, 2, R, G, d] is written. Undefined for tokens from n[b] on."""
    return _by_ops((rotary_ref, store_window_ref, window_attention_ref), x, layer, ring, rows)


def _by_ops(ops: tuple[_Op, _Op, _Op], x: Tensor, layer: WindowLayer, ring: Tensor, rows: RingRows) -> Tensor:
    batch, tokens, size = x.shape
    heads = layer.heads
    groups = layer.groups
    width = layer.width
    turn, keep, attend = ops
    split = F.linear(F.layer_norm(x, (size,), *layer.norm, layer.eps), *layer.qkv).view(
        batch * tokens, heads + 2 * groups, width
    )
    turned = turn(split[:, : heads + groups], rows.cos, rows.sin, False).view(
        batch, tokens, heads + groups, width
    )
    keep(turned[:, :, heads:], split[:, heads + groups :].view(batch, tokens, groups, width), ring, *rows[:3])
    attended = attend(turned[:, :, :heads], ring, *rows[:3], layer.window)
    x = x + layer.scale * F.linear(attended.reshape(batch, tokens, heads * width), *layer.out)
    inner = F.gelu(F.linear(F.layer_norm(x, (size,), *layer.norm_ffn, layer.eps), *layer.up))
    return x + layer.scale_ffn * F.linear(inner, *layer.down)


def _window_layer_native(x: Tensor, layer: WindowLayer, ring: Tensor, rows: RingRows) -> Tensor:
    y = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    layer.native(team(), x.contiguous(), rows.cos, rows.sin, ring, rows.slots, rows.start, rows.n, y)
    return y


def window_layer(x: Tensor, layer: WindowLayer, ring: Tensor, rows: RingRows) -> Tensor:
    """One layer over new tokens: x [B, T, D], ring [S, 2, R, G, d], written in place -> [B, T, D]."""
    is_whole = layer.has_native and x.numel() > 0 and ring.is_contiguous()
    if is_whole and is_native(x, layer.qkv[0]) and choose("window_layer", x, has_native=True) == NATIVE:
        return _window_layer_native(x, layer, ring, rows)
    return _by_ops((rotary, store_window, window_attention), x, layer, ring, rows)
