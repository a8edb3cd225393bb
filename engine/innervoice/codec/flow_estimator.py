"""The flow's velocity estimator: a 1-D U-Net of residual blocks and transformers over mel frames (Matcha-TTS's decoder)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.layers import Affine, Tensors, affine, conv, conv_transpose, group_norm, layer_norm, linear
from innervoice.config.decoder import EstimatorConfig
from innervoice_kernels.conv import beyond
from innervoice_kernels.groupnorm import group_norm_mish

_GROUPS = 8


@dataclass(frozen=True)
class Lengths:
    """True lengths n [B] of padded rows of T frames; beyond [B, T] is true for frames that only pad."""

    n: Tensor
    beyond: Tensor

    @classmethod
    def of(cls, n: Tensor, frames: int) -> Lengths:
        """Rows of n [B] frames, padded to the same number."""
        return cls(n, beyond(n, frames))

    def halved(self) -> Lengths:
        """The same rows at half the resolution."""
        return Lengths.of((self.n + 1) // 2, (self.beyond.shape[1] + 1) // 2)


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
class _Transformer:
    norm_attention: Affine
    qkv: Tensor  # [3 * H * d, C]
    out: Affine
    norm_ffn: Affine
    up: Affine
    down: Affine

    def __call__(self, x: Tensor, heads: int, visible: Tensor | None) -> Tensor:
        """x [B, T, C]; all frames see each other, or those that are visible [B, 1, 1, T]."""
        rows, frames, _ = x.shape
        q, k, v = F.linear(layer_norm(x, self.norm_attention), self.qkv).view(rows, frames, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).reshape(rows, frames, -1)
        x = x + linear(attended, self.out)
        return x + linear(F.gelu(linear(layer_norm(x, self.norm_ffn), self.up)), self.down)


@dataclass(frozen=True)
class _Stage:
    """A residual block, its transformers, and the convolution to the next resolution (none in the middle)."""

    conv1: Affine
    norm1: Affine
    conv2: Affine
    norm2: Affine
    skip: Affine
    time: Affine
    transformers: list[_Transformer]
    resample: Affine | None

    def __call__(self, x: Tensor, shift: Tensor, heads: int, lengths: Lengths | None) -> Tensor:
        """x [B, C, T], zero where padded; shift [C', 1], what the time adds -> [B, C', T], zero where padded."""
        h = norm_mish(conv(x, self.conv1, padding=1), self.norm1, _GROUPS, lengths) + shift
        h = norm_mish(conv(clear(h, lengths), self.conv2, padding=1), self.norm2, _GROUPS, lengths) + conv(x, self.skip)
        h = h.transpose(1, 2)
        visible = None if lengths is None else ~lengths.beyond[:, None, None]
        for transformer in self.transformers:
            h = transformer(h, heads, visible)
        return clear(h.transpose(1, 2), lengths)


class FlowEstimator:
    """dx/dt of the flow at (x, t), given mu, speaker and prompt frames; rows may have lengths of their own."""

    def __init__(self, config: EstimatorConfig, tensors: Tensors) -> None:
        self.config = config
        root, levels = "decoder.estimator", len(config.channels)
        self._time = (affine(tensors, f"{root}.time_mlp.linear_1"), affine(tensors, f"{root}.time_mlp.linear_2"))
        self._down = [_stage(config, tensors, f"{root}.down_blocks.{i}", i == levels - 1) for i in range(levels)]
        self._mid = [_stage(config, tensors, f"{root}.mid_blocks.{i}", None) for i in range(config.num_mid_blocks)]
        self._up = [_stage(config, tensors, f"{root}.up_blocks.{i}", i == levels - 1) for i in range(levels)]
        self._final = (affine(tensors, f"{root}.final_block.block.0"), affine(tensors, f"{root}.final_block.block.1"))
        self._out = affine(tensors, f"{root}.final_proj")

    def time_shifts(self, times: Tensor) -> list[Tensor]:
        """times [S] float32 -> what each stage adds at each time, one [S, C, 1] a stage, in the order of use."""
        first, second = self._time
        embedded = time_embedding(times, first.weight.shape[1]).to(first.weight.dtype)
        shared = F.mish(linear(F.silu(linear(embedded, first)), second))
        return [linear(shared, stage.time)[..., None] for stage in (*self._down, *self._mid, *self._up)]

    def __call__(
        self, x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor, shifts: Sequence[Tensor], n: Tensor | None = None
    ) -> Tensor:
        """x, mu, cond [B, C, T]; speaker [B, C]; shifts: one [C', 1] a stage -> velocity [B, C, T].

        n [B]: true lengths; what lies beyond is not looked at and comes out as zero. None: all rows have T frames.
        """
        lengths = None if n is None else Lengths.of(n, x.shape[-1])
        h = clear(torch.cat([x, mu, speaker[:, :, None].expand_as(x), cond], 1), lengths)
        shift, heads, skips = iter(shifts), self.config.num_heads, []
        for level, stage in enumerate(self._down):
            h = stage(h, next(shift), heads, lengths)
            skips.append((h, lengths))
            assert stage.resample is not None
            is_last = level == len(self._down) - 1
            lengths = lengths if is_last or lengths is None else lengths.halved()
            h = clear(conv(h, stage.resample, stride=1 if is_last else 2, padding=1), lengths)
        for stage in self._mid:
            h = stage(h, next(shift), heads, lengths)
        h = self._ascend(h, skips, shift)
        lengths = skips[0][1]
        weights, norm = self._final
        return clear(conv(norm_mish(conv(h, weights, padding=1), norm, _GROUPS, lengths), self._out), lengths)

    def _ascend(self, h: Tensor, skips: list[tuple[Tensor, Lengths | None]], shift: Iterator[Tensor]) -> Tensor:
        for level, stage in enumerate(self._up):
            skip, lengths = skips[-1 - level]
            h = stage(torch.cat([clear(h[..., : skip.shape[-1]], lengths), skip], 1), next(shift), self.config.num_heads, lengths)
            assert stage.resample is not None
            is_last = level == len(self._up) - 1
            h = conv(h, stage.resample, padding=1) if is_last else conv_transpose(h, stage.resample, stride=2, padding=1)
        return clear(h, skips[0][1])


def time_embedding(times: Tensor, width: int) -> Tensor:
    """times [S] -> [S, width]: sines, then cosines, of 1000 t f_i with f_i from 1 down to 1/10000 in equal ratios."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=times.device) * -(math.log(10000.0) / (half - 1)))
    angle = 1000.0 * times[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def _stage(config: EstimatorConfig, tensors: Tensors, name: str, is_last: bool | None) -> _Stage:
    resample = None if is_last is None else affine(tensors, f"{name}.2" if is_last else f"{name}.2.conv")
    return _Stage(
        conv1=affine(tensors, f"{name}.0.block1.block.0"),
        norm1=affine(tensors, f"{name}.0.block1.block.1"),
        conv2=affine(tensors, f"{name}.0.block2.block.0"),
        norm2=affine(tensors, f"{name}.0.block2.block.1"),
        skip=affine(tensors, f"{name}.0.res_conv"),
        time=affine(tensors, f"{name}.0.mlp.1"),
        transformers=[_transformer(tensors, f"{name}.1.{i}") for i in range(config.num_blocks)],
        resample=resample,
    )


def _transformer(tensors: Tensors, name: str) -> _Transformer:
    return _Transformer(
        norm_attention=affine(tensors, f"{name}.norm1"),
        qkv=torch.cat([tensors[f"{name}.attn1.to_{part}.weight"] for part in "qkv"]),
        out=affine(tensors, f"{name}.attn1.to_out.0"),
        norm_ffn=affine(tensors, f"{name}.norm3"),
        up=affine(tensors, f"{name}.ff.net.0.proj"),
        down=affine(tensors, f"{name}.ff.net.2"),
    )
