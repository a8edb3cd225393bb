"""A stage of the flow's U-Net: two convolutions with a skip, then transformers.

h = norm_mish(conv(x) + a) + shift;  y = norm_mish(conv(h)) + skip x + b        x: [R, T, K]   ->   [R, T, C]
norm_mish: GroupNorm of 8 groups over a row's true length, then Mish. A transformer, all frames of a row seeing
each other: y += out(attention(norm(y))); y += down(gelu(up(norm(y)))). (Matcha-TTS, Mehta et al. 2023)
a, b: [R, T, C], the parts of the first convolution and of the skip that stay the same from call to call; or none.
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
from innervoice_kernels.native import (
    WeightAndBias,
    are_halves,
    are_multiples,
    floats,
    takes,
    taps_first,
    team,
)
from innervoice_kernels.speech_codec.conv import beyond
from innervoice_kernels.speech_codec.flow_block import TransformerWeights, flow_block, flow_block_ref
from innervoice_kernels.speech_codec.frame_conv import FrameConvWeights, frame_conv
from innervoice_kernels.speech_codec.groupnorm import group_norm_mish, group_norm_mish_ref
from innervoice_kernels.torch_layers import conv1d

GROUPS = 8
_Op = Callable[..., Tensor]
Condition = tuple[Tensor, Tensor] | None
"""a and b of the formula, [R, T, C] each; None: neither."""


@dataclass(frozen=True, eq=False)
class StageWeights:
    """Weight and bias of convolutions over three frames, norms [C] and the skip [C, K, 1]; heads of the
    transformers.
    """

    conv1: WeightAndBias
    norm1: WeightAndBias
    conv2: WeightAndBias
    norm2: WeightAndBias
    skip: WeightAndBias
    transformers: tuple[TransformerWeights, ...]
    heads: int

    @cached_property
    def has_native(self) -> bool:
        """Whether native code takes these sizes."""
        channels = self.conv1[0].shape[0]
        inner = [block.qkv.shape[0] // (3 * self.heads) for block in self.transformers]
        sizes = [
            channels,
            self.conv1[0].shape[1],
            *inner,
            *(block.up[0].shape[0] for block in self.transformers),
        ]
        return channels % GROUPS == 0 and are_multiples(sizes)

    @cached_property
    def frame_convs(self) -> tuple[FrameConvWeights, FrameConvWeights, FrameConvWeights]:
        """Both convolutions and the skip over frames whose channels lie side by side."""
        return (
            FrameConvWeights(*self.conv1, 1),
            FrameConvWeights(*self.conv2, 1),
            FrameConvWeights(*self.skip, 0),
        )

    @cached_property
    def native(self) -> _C.FlowStage:
        """The weights as native code reads them, packed when they are first used."""
        return self.packed(are_halves(self.conv1[0]))

    def packed(self, halves: bool = False, isa: str | None = None) -> _C.FlowStage:
        """The same for products in bfloat16, or for other instructions. Raises ValueError for what is not
        there.
        """
        parts = (self.conv1, self.norm1, self.conv2, self.norm2, self.skip)
        tensors = [part for pair in parts for part in _packed(pair)]
        return _C.FlowStage(
            tensors, [self._block(block) for block in self.transformers], self.heads, halves, isa
        )

    def _block(self, block: TransformerWeights) -> list[Tensor]:
        inner = block.qkv.shape[0] // 3
        qkv = torch.cat([block.qkv[:inner] * (inner // self.heads) ** -0.5, block.qkv[inner:]])
        rest = (block.out, block.norm_ffn, block.up, block.down)
        return [
            *_packed(block.norm_attention),
            taps_first(qkv),
            *(part for pair in rest for part in _packed(pair)),
        ]


def _packed(pair: WeightAndBias) -> WeightAndBias:
    weight, bias = pair
    return (floats(weight) if weight.ndim == 1 else taps_first(weight)), floats(bias)


def flow_stage_ref(
    x: Tensor, n: Tensor | None, shift: Tensor, weights: StageWeights, condition: Condition = None
) -> Tensor:
    """The definition. n None: all rows have T frames."""
    return _by_ops((group_norm_mish_ref, flow_block_ref), x, n, shift, weights, condition)


def _by_ops(
    ops: tuple[_Op, _Op],
    x: Tensor,
    n: Tensor | None,
    shift: Tensor,
    weights: StageWeights,
    condition: Condition,
) -> Tensor:
    normalise, transform = ops
    added, skipped = (0, 0) if condition is None else (part.transpose(1, 2) for part in condition)
    outside = None if n is None else beyond(n, x.shape[1])[:, None]  # [R, 1, T]

    def clear(y: Tensor) -> Tensor:
        return y if outside is None else y.masked_fill(outside, 0)

    def norm_mish(y: Tensor, norm: WeightAndBias) -> Tensor:
        return F.mish(F.group_norm(y, GROUPS, *norm, 1e-5)) if n is None else normalise(y, n, *norm, GROUPS)

    x = clear(x.transpose(1, 2))
    h = norm_mish(conv1d(x, *weights.conv1, padding=1) + added, weights.norm1) + shift[:, None]
    h = (
        norm_mish(conv1d(clear(h), *weights.conv2, padding=1), weights.norm2)
        + conv1d(x, *weights.skip)
        + skipped
    )
    h = h.transpose(1, 2)
    for block in weights.transformers:
        h = transform(h, n, block, weights.heads)
    return h if outside is None else h.masked_fill(outside.transpose(1, 2), 0)


def _flow_stage_native(
    x: Tensor, n: Tensor | None, shift: Tensor, weights: StageWeights, condition: Condition
) -> Tensor:
    rows, frames, _ = x.shape
    y = torch.empty(rows, frames, weights.conv1[0].shape[0], dtype=torch.float32, device="cpu")
    lengths = torch.full((rows,), frames, dtype=torch.int64, device="cpu") if n is None else n
    more = None if condition is None else (floats(condition[0]), floats(condition[1]))
    weights.native(team(), floats(x), lengths, floats(shift), y, more)
    return y.to(x.dtype)


def flow_stage(
    x: Tensor, n: Tensor | None, shift: Tensor, weights: StageWeights, condition: Condition = None
) -> Tensor:
    """A stage over each row's own frames: x [R, T, K], n [R] or None, shift [C] -> y [R, T, C], zero from
    n[r] on.
    """
    if (
        weights.has_native
        and takes(x, weights.conv1[0])
        and choose("flow_stage", x, has_native=True) == NATIVE
    ):
        return _flow_stage_native(x, n, shift, weights, condition)
    if choose("frame_conv", x, has_native=True) == TRITON and x.dtype != torch.float64:
        return _by_frames(x, n, shift, weights, condition)
    return _by_ops((group_norm_mish, flow_block), x, n, shift, weights, condition)


def _by_frames(
    x: Tensor, n: Tensor | None, shift: Tensor, weights: StageWeights, condition: Condition
) -> Tensor:
    """A stage whose convolutions read frames as they lie, and multiply float32 as such: cuDNN's take TF32."""

    def norm_mish(y: Tensor, norm: WeightAndBias) -> Tensor:
        y = y.transpose(1, 2)
        made = (
            F.mish(F.group_norm(y, GROUPS, *norm, 1e-5))
            if n is None
            else group_norm_mish(y, n, *norm, GROUPS)
        )
        return made.transpose(1, 2)

    conv1, conv2, skip = weights.frame_convs
    added, skipped = (0, 0) if condition is None else condition
    h = norm_mish(frame_conv(x, n, conv1) + added, weights.norm1) + shift
    h = norm_mish(frame_conv(h, n, conv2), weights.norm2) + frame_conv(x, n, skip) + skipped
    for block in weights.transformers:
        h = flow_block(h, n, block, weights.heads)
    return h if n is None else h.masked_fill(beyond(n, x.shape[1])[:, :, None], 0)
