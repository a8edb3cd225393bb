"""A layer of the flow's encoder over a stream   y = x + out(attention(norm x));  y + down(silu(up(norm y)))

Pre-norm, attention with relative positions over cached and new tokens, as relative.py has it.
x: [B, U, D]   ->   [B, U, D]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, choose
from innervoice_kernels.native import WeightAndBias, are_multiples, floats, taps_first, team
from innervoice_kernels.speech_codec.relative import relative_attention, relative_attention_ref


@dataclass(frozen=True, eq=False)
class RelativeLayer:
    """Weight and bias of norms [D] and linear maps; qkv [3 D, D]; bias_u, bias_v [H, d].

    positions [H, C + 2 U - 1, d], by falling distance: of calls of U tokens behind C cached ones.
    """

    norm: WeightAndBias
    qkv: WeightAndBias
    bias_u: Tensor
    bias_v: Tensor
    out: WeightAndBias
    norm_ffn: WeightAndBias
    up: WeightAndBias
    down: WeightAndBias
    positions: Tensor

    @cached_property
    def has_native(self) -> bool:
        """Whether native code takes these sizes and types."""
        return are_multiples([self.positions.shape[-1]]) and self.qkv[0].dtype == torch.float32

    @cached_property
    def native(self) -> _C.RelativeLayer:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed()

    def packed(self, isa: str | None = None) -> _C.RelativeLayer:
        """The same for other instructions. Raises ValueError for what is not there."""
        pairs = (self.norm, self.qkv, self.out, self.norm_ffn, self.up, self.down)
        tensors = [part for weight, bias in pairs for part in (_weight(weight), floats(bias))]
        return _C.RelativeLayer(
            tensors, floats(self.bias_u), floats(self.bias_v), floats(self.positions), isa
        )


def _weight(weight: Tensor) -> Tensor:
    return floats(weight) if weight.ndim == 1 else taps_first(weight)


def relative_layer_ref(
    x: Tensor, cache: Tensor, layer: RelativeLayer, visible: Tensor, closed: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition. cache [B, C, 2, D]: keys and values of the tokens before; visible [B, U, C + U] bool.

    Row b keeps the keys and values of its first closed[b] tokens, and as many fewer of the oldest ones.
    """
    return _by_ops(relative_attention_ref, x, cache, layer, visible, closed)


def _by_ops(
    attend: Callable[..., Tensor],
    x: Tensor,
    cache: Tensor,
    layer: RelativeLayer,
    visible: Tensor,
    closed: Tensor,
) -> tuple[Tensor, Tensor]:
    (rows, tokens, size), heads = x.shape, len(layer.bias_u)
    made = F.linear(F.layer_norm(x, (size,), *layer.norm, 1e-5), *layer.qkv).view(rows, tokens, 3, size)
    both = torch.cat([cache, made[:, :, 1:]], 1)  # [B, C + U, 2, D]
    q, k, v = (
        torch.unflatten(part, -1, (heads, -1)).transpose(1, 2)
        for part in (made[:, :, 0], both[:, :, 0], both[:, :, 1])
    )
    attended = attend(q, k, v, layer.bias_u, layer.bias_v, layer.positions, visible)  # [B, H, U, d]
    x = x + F.linear(attended.transpose(1, 2).reshape(rows, tokens, size), *layer.out)
    x = x + F.linear(
        F.silu(F.linear(F.layer_norm(x, (size,), *layer.norm_ffn, 1e-5), *layer.up)), *layer.down
    )
    place = closed[:, None] + torch.arange(cache.shape[1], device=x.device, dtype=torch.int64)
    return x, both.gather(1, place[:, :, None, None].expand(cache.shape))


def _relative_layer_native(
    x: Tensor, cache: Tensor, layer: RelativeLayer, visible: Tensor, closed: Tensor
) -> tuple[Tensor, Tensor]:
    y, after = (
        torch.empty(x.shape, dtype=torch.float32, device="cpu"),
        torch.empty(cache.shape, dtype=torch.float32, device="cpu"),
    )
    layer.native(
        team(), x.contiguous(), cache.contiguous(), visible.contiguous(), closed.contiguous(), y, after
    )
    return y, after


def relative_layer(
    x: Tensor, cache: Tensor, layer: RelativeLayer, visible: Tensor, closed: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer over U new tokens behind C cached ones: x [B, U, D], cache [B, C, 2, D] -> y [B, U, D],
    cache'.
    """
    chosen = choose("relative_layer", x, has_native=True)
    if chosen == NATIVE and layer.has_native and x.dtype == torch.float32 and x.numel() > 0:
        return _relative_layer_native(x, cache, layer, visible, closed)
    return _by_ops(relative_attention, x, cache, layer, visible, closed)
