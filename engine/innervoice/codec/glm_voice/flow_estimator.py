"""The flow's velocity estimator: a 1-D U-Net of residual blocks and transformers over mel
frames (Matcha-TTS's decoder).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.speech_decoder import EstimatorConfig
from innervoice.codec.layers import Affine, Tensors, affine, group_norm, linear
from innervoice_kernels.speech_codec.conv import beyond
from innervoice_kernels.speech_codec.flow_block import TransformerWeights
from innervoice_kernels.speech_codec.flow_stage import GROUPS, StageWeights, flow_stage
from innervoice_kernels.speech_codec.frame_conv import FrameConvWeights, frame_conv
from innervoice_kernels.speech_codec.groupnorm import group_norm_mish


@dataclass(frozen=True)
class Lengths:
    """True lengths n [B] of padded rows of T frames; beyond [B, T] is true for frames that only pad."""

    n: Tensor
    beyond: Tensor

    @classmethod
    def of(cls, n: Tensor, frames: int) -> Lengths:
        """Rows of n [B] frames, padded to the same number."""
        return cls(n, beyond(n, frames))


def clear(x: Tensor, lengths: Lengths | None) -> Tensor:
    """x [B, C, T] with zeros where rows are padded, as a convolution wants it."""
    return x if lengths is None else x.masked_fill(lengths.beyond[:, None], 0)


def norm_mish(x: Tensor, layer: Affine, groups: int, lengths: Lengths | None) -> Tensor:
    """GroupNorm over true lengths, then Mish: [B, C, T], zero where rows are padded."""
    if lengths is None:
        return F.mish(group_norm(x, layer, groups))
    assert layer.bias is not None
    return group_norm_mish(x, lengths.n, layer.weight, layer.bias, groups)


@dataclass(frozen=True)
class _Stage:
    """A residual block with its transformers, what the time adds, and the convolution to the next
    resolution (not in the middle).

    Where doubles, that gives two frames for one, their channels side by side.
    """

    weights: StageWeights
    time: Affine
    resample: FrameConvWeights | None
    doubles: bool = False


class FlowEstimator:
    """dx/dt of the flow at (x, t), given mu, speaker and prompt frames; rows may have lengths of their own.

    Inside, frames lie channels last, [B, T, C].
    """

    def __init__(self, config: EstimatorConfig, tensors: Tensors) -> None:
        self.config = config
        root, levels = "decoder.estimator", len(config.channels)
        self._time = (
            affine(tensors, f"{root}.time_mlp.linear_1"),
            affine(tensors, f"{root}.time_mlp.linear_2"),
        )
        last = [i == levels - 1 for i in range(levels)]
        self._down = [
            _down_stage(config, tensors, f"{root}.down_blocks.{i}", is_last) for i, is_last in enumerate(last)
        ]
        self._down[0], self._given = _split(self._down[0])
        self._mid = [
            _stage(config, tensors, f"{root}.mid_blocks.{i}", None) for i in range(config.num_mid_blocks)
        ]
        self._up = [
            _up_stage(config, tensors, f"{root}.up_blocks.{i}", is_last) for i, is_last in enumerate(last)
        ]
        self._final = over_frames(affine(tensors, f"{root}.final_block.block.0"), 1)
        self._final_norm = affine(tensors, f"{root}.final_block.block.1")
        self._out = over_frames(affine(tensors, f"{root}.final_proj"), 0)

    def time_shifts(self, times: Tensor) -> list[Tensor]:
        """times [S] float32 -> each stage's shift at each time, one [S, C] a stage, in the order of use."""
        first, second = self._time
        embedded = time_embedding(times, first.weight.shape[1]).to(first.weight.dtype)
        shared = F.mish(linear(F.silu(linear(embedded, first)), second))
        return [linear(shared, stage.time) for stage in (*self._down, *self._mid, *self._up)]

    def __call__(
        self,
        x: Tensor,
        mu: Tensor,
        speaker: Tensor,
        cond: Tensor,
        shifts: Sequence[Tensor],
        n: Tensor | None = None,
    ) -> Tensor:
        """x, mu, cond [B, C, T]; speaker [B, C]; shifts: one [C'] a stage -> velocity [B, C, T].

        n [B]: true lengths; what lies beyond is not looked at and comes out as zero.
        None: all rows have T frames.
        """
        return self.velocity(x.transpose(1, 2), self.condition(mu, speaker, cond, n), shifts, n).transpose(
            1, 2
        )

    def condition(
        self, mu: Tensor, speaker: Tensor, cond: Tensor, n: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The first stage's share of mu, speaker and prompt frames, [B, T, C'] twice: the same
        at all times, zeros of zeros.
        """
        h = torch.cat([mu, speaker[:, :, None].expand_as(mu), cond], 1).transpose(1, 2)
        conv, skip = self._given
        return frame_conv(h, n, conv), frame_conv(h, n, skip)

    def velocity(
        self, x: Tensor, given: tuple[Tensor, Tensor], shifts: Sequence[Tensor], n: Tensor | None = None
    ) -> Tensor:
        """x [B, T, C], what `condition` gave -> velocity [B, T, C]; n and shifts as above."""
        h = x
        shift = iter(shifts)
        skips = []
        for index, stage in enumerate(self._down):
            h = flow_stage(h, n, next(shift), stage.weights, given if index == 0 else None)
            skips.append((h, n))
            assert stage.resample is not None
            h = frame_conv(h, n, stage.resample)
            n = n if n is None else (n + stage.resample.stride - 1) // stage.resample.stride
        for stage in self._mid:
            h = flow_stage(h, n, next(shift), stage.weights)
        for stage in self._up:
            skip, n = skips.pop()
            h = flow_stage(torch.cat([h[:, : skip.shape[1]], skip], -1), n, next(shift), stage.weights)
            assert stage.resample is not None
            h = frame_conv(h, n, stage.resample)
            if stage.doubles:
                h = h.reshape(len(h), 2 * h.shape[1], -1)
        h = frame_conv(h, n, self._final).transpose(1, 2)
        h = norm_mish(h, self._final_norm, GROUPS, None if n is None else Lengths.of(n, h.shape[-1]))
        return frame_conv(h.transpose(1, 2), n, self._out)


def time_embedding(times: Tensor, width: int) -> Tensor:
    """times [S] -> [S, width]: sines, then cosines, of 1000 t f_i with f_i from 1
    down to 1/10000 in equal ratios.
    """
    half = width // 2
    frequency = torch.exp(
        torch.arange(half, dtype=torch.float32, device=times.device) * -(math.log(10000.0) / (half - 1))
    )
    angle = 1000.0 * times[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def _down_stage(config: EstimatorConfig, tensors: Tensors, name: str, is_last: bool) -> _Stage:
    layer = affine(tensors, f"{name}.2" if is_last else f"{name}.2.conv")
    return _stage(config, tensors, name, over_frames(layer, 1, stride=1 if is_last else 2))


def _split(stage: _Stage) -> tuple[_Stage, tuple[FrameConvWeights, FrameConvWeights]]:
    """The first stage over x alone, a quarter of its input, and what the rest adds to its
    first convolution and its skip.
    """
    (conv, bias), (skip, skip_bias) = stage.weights.conv1, stage.weights.skip
    channels, none = conv.shape[1] // 4, torch.zeros_like(bias)
    own = replace(stage.weights, conv1=(conv[:, :channels], bias), skip=(skip[:, :channels], skip_bias))
    return replace(stage, weights=own), (
        FrameConvWeights(conv[:, channels:], none, 1),
        FrameConvWeights(skip[:, channels:], none, 0),
    )


def _up_stage(config: EstimatorConfig, tensors: Tensors, name: str, is_last: bool) -> _Stage:
    if is_last:
        return _stage(config, tensors, name, over_frames(affine(tensors, f"{name}.2"), 1))
    return replace(_stage(config, tensors, name, _doubling(affine(tensors, f"{name}.2.conv"))), doubles=True)


def _stage(config: EstimatorConfig, tensors: Tensors, name: str, resample: FrameConvWeights | None) -> _Stage:
    def pair(part: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"]

    weights = StageWeights(
        conv1=pair("0.block1.block.0"),
        norm1=pair("0.block1.block.1"),
        conv2=pair("0.block2.block.0"),
        norm2=pair("0.block2.block.1"),
        skip=pair("0.res_conv"),
        transformers=tuple(_transformer(tensors, f"{name}.1.{i}") for i in range(config.num_blocks)),
        heads=config.num_heads,
    )
    return _Stage(weights, affine(tensors, f"{name}.0.mlp.1"), resample)


def _transformer(tensors: Tensors, name: str) -> TransformerWeights:
    def pair(part: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"]

    qkv = torch.cat([tensors[f"{name}.attn1.to_{part}.weight"] for part in "qkv"])
    return TransformerWeights(
        pair("norm1"), qkv, pair("attn1.to_out.0"), pair("norm3"), pair("ff.net.0.proj"), pair("ff.net.2")
    )


def over_frames(layer: Affine, pad: int, stride: int = 1) -> FrameConvWeights:
    """A convolution as one over frames of true lengths, padded by so many before them
    and as many as it needs behind.
    """
    assert layer.bias is not None
    return FrameConvWeights(layer.weight, layer.bias, pad, stride)


def _doubling(layer: Affine) -> FrameConvWeights:
    """The transposed convolution of kernel 4, stride 2 and padding 1, as one over three frames
    that gives two: [2 C', C, 3].

    Frame 2 t is w_3 x_{t-1} + w_1 x_t, frame 2 t + 1 is w_2 x_t + w_0 x_{t+1}.
    """
    assert layer.bias is not None
    taps = layer.weight.permute(2, 1, 0)  # [4, C', C]
    none = torch.zeros_like(taps[0])
    even, odd = torch.stack([taps[3], taps[1], none], -1), torch.stack([none, taps[2], taps[0]], -1)
    return FrameConvWeights(torch.cat([even, odd]), torch.cat([layer.bias, layer.bias]), 1)
