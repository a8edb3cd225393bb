"""DAC and SNAC: centred convolutions with Snake, codes found in a narrow space with projections of their own.

Kumar et al. 2023; Siuzdak et al. 2024, which lets codebooks tick at different rates and adds depthwise
convolutions, attention within windows, and noise in the decoder. Nothing is causal: a column depends on
`reach` frames to both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.codecs import DacConfig
from innervoice.codec.layers import Affine, layer_norm, linear
from innervoice.codec.residual_vq.slot_stream import StreamPlace
from innervoice.codec.residual_vq.weights import CodecWeights
from innervoice.codec.residual_vq.window_stream import WindowDecodeStream, WindowEncodeStream
from innervoice_kernels.language.rope import rotary
from innervoice_kernels.residual_vq.rvq import Codebooks, rvq_decode
from innervoice_kernels.residual_vq.taps import Taps, apply_depthwise, apply_taps
from innervoice_kernels.speech_codec.noise import CODEC_STREAM, normals
from innervoice_kernels.speech_codec.snake import snake
from innervoice_kernels.speech_codec.vq import nearest_code

_DILATIONS = (1, 3, 9)
_HEAD_DIM = 64


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution: weight [k, C], bias [C]."""

    weight: Tensor
    bias: Tensor
    dilation: int


@dataclass(frozen=True)
class ResidualUnit:
    """x + narrow(snake(wide(snake(x))))."""

    alpha: Tensor
    wide: Taps | Depthwise
    beta: Tensor
    narrow: Taps

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        inner = _conv(_snake(x, self.alpha), self.wide)
        return x + apply_taps(_snake(inner, self.beta), self.narrow)


@dataclass(frozen=True)
class DacBlock:
    """Units and a change of rate; noise [C, C]: SNAC's, of the decoder."""

    units: tuple[ResidualUnit, ...]
    alpha: Tensor
    change: Taps
    noise: Taps | None = None


@dataclass(frozen=True)
class LocalAttention:
    """Attention within windows of so many columns, rotary positions counted from each window's beginning."""

    norm: Affine
    qkv: Affine
    out: Affine
    window: int

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, D], T a multiple of the window."""
        rows, steps, width = x.shape
        split = linear(layer_norm(x, self.norm), self.qkv).view(
            -1, self.window, 3, width // _HEAD_DIM, _HEAD_DIM
        )
        place = torch.arange(self.window, device=x.device, dtype=torch.float32)
        exponent = torch.arange(0, _HEAD_DIM, 2, device=x.device, dtype=torch.float32) / _HEAD_DIM
        angle = (place[:, None] * 10000.0**-exponent).repeat(len(split), 1)
        turned = rotary(
            split[:, :, :2].reshape(-1, 2 * width // _HEAD_DIM, _HEAD_DIM),
            angle.cos().to(x),
            angle.sin().to(x),
            False,
        )
        q, k = turned.view(len(split), self.window, 2, -1, _HEAD_DIM).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, split[:, :, 2].transpose(1, 2)).transpose(1, 2)
        return x + linear(y.reshape(rows, steps, width), self.out)


@dataclass(frozen=True)
class DacEncoder:
    """The encoder. reach: frames to either side that a code depends on, attention left out."""

    config: DacConfig
    first: Taps
    blocks: tuple[DacBlock, ...]
    attention: LocalAttention | None
    alpha: Tensor | None
    last: Taps | Depthwise
    into: tuple[Affine, ...]
    out: tuple[Affine, ...]
    codes: Tensor
    unit_codes: Tensor

    @property
    def reach(self) -> Fraction:
        """Frames from a code to the farthest sample, attention left out."""
        rate, total = 1, 3
        for ratio in self.config.encoder_ratios:
            total += 3 * sum(_DILATIONS) * rate + 2 * ratio * rate
            rate *= ratio
        return Fraction(total, rate) + _half(self.last)

    @property
    def context_frames(self) -> int:
        """Frames of context on each side, whole blocks.

        After attention the last convolution sees further than a window.
        """
        return _whole_blocks(self.reach, self.config, self.attention)

    def stream(self, place: StreamPlace) -> WindowEncodeStream:
        """Open a stream of sessions over this half."""
        return WindowEncodeStream(
            half=self,
            num_codebooks=place.num_codebooks,
            chunk_frames=place.max_frames,
            dtype=place.dtype,
            **place.common,
        )

    def __call__(self, x: Tensor, num_codebooks: int) -> Tensor:
        """x [B, T, 1], T whole frames, of SNAC whole blocks -> ids [B, K, T / frame], repeated by stride."""
        x = _conv(x, self.first)
        for block in self.blocks:
            for unit in block.units:
                x = unit(x)
            x = _down(_snake(x, block.alpha), block.change)
        x = x if self.attention is None else self.attention(x)
        return self._quantize(
            _conv(x if self.alpha is None else _snake(x, self.alpha), self.last), num_codebooks
        )

    def _quantize(self, x: Tensor, num_codebooks: int) -> Tensor:
        found = []
        for index, stride in enumerate(self.config.strides[:num_codebooks]):
            pooled = x if stride == 1 else x.reshape(len(x), -1, stride, x.shape[-1]).mean(2)
            narrow = F.normalize(linear(pooled, self.into[index]).float(), dim=-1)
            ids = nearest_code(narrow, self.unit_codes[index])
            found.append(ids.repeat_interleave(stride, 1))
            x = x - linear(F.embedding(ids, self.codes[index]), self.out[index]).repeat_interleave(stride, 1)
        return torch.stack(found, 1)


@dataclass(frozen=True)
class DacDecoder:
    """The decoder of DAC and SNAC."""

    config: DacConfig
    codebooks: Codebooks
    biases: Tensor
    first: tuple[Taps | Depthwise, ...]
    attention: LocalAttention | None
    blocks: tuple[DacBlock, ...]
    alpha: Tensor
    last: Taps

    @property
    def reach(self) -> Fraction:
        """Frames from a sample to the farthest code, attention and the layers before it left out."""
        rate, total = Fraction(1), Fraction(0)
        for ratio in self.config.decoder_ratios:
            total += 2 / rate
            rate *= ratio
            total += 3 * sum(_DILATIONS) / rate
        total += 3 / rate
        return total if self.attention is not None else total + 3

    @property
    def context_frames(self) -> int:
        """Frames of context on each side, whole blocks.

        Before attention the first convolution sees further than a window.
        """
        return _whole_blocks(self.reach, self.config, self.attention)

    def stream(self, place: StreamPlace) -> WindowDecodeStream:
        """Open a stream of sessions over this half."""
        return WindowDecodeStream(half=self, chunk_frames=place.max_frames, seed=place.seed, **place.common)

    def __call__(self, ids: Tensor, seed: Tensor, start: Tensor) -> Tensor:
        """ids [B, K, T], frames from start [B], noise of seed [B] -> samples [B, T * frame or less, 1]."""
        num = ids.shape[1]
        x = rvq_decode(ids, self.codebooks.first(num)._replace(bias=self.biases[:num].sum(0)))
        for layer in self.first:
            x = _conv(x, layer)
        x = x if self.attention is None else self.attention(x)
        for index, block in enumerate(self.blocks):
            x = self._up(_snake(x, block.alpha), block.change)
            start = start * block.change.up
            if block.noise is not None:
                x = x + _noise(seed, index, start, x.shape[1]).to(x.dtype)[..., None] * apply_taps(
                    x, block.noise
                )
            for unit in block.units:
                x = unit(x)
        return torch.tanh(_conv(_snake(x, self.alpha), self.last))

    def _up(self, x: Tensor, taps: Taps) -> Tensor:
        """Upsample; SNAC keeps the column that an odd rate would lose."""
        y = apply_taps(F.pad(x, (0, 0, 1, 1)), taps)
        trim = (taps.up + 1) // 2
        return y[:, trim : y.shape[1] - trim + (taps.up % 2 if self.config.kind == "snac" else 0)]


def _whole_blocks(reach: Fraction, config: DacConfig, attention: LocalAttention | None) -> int:
    """The reach rounded up to blocks, which are whole windows of attention.

    One block more where there is attention, for the convolution beside it.
    """
    block = config.block_frames
    return int(-(-reach // block)) * block + (0 if attention is None else block)


def _noise(seed: Tensor, stage: int, start: Tensor, count: int) -> Tensor:
    """A stage's noise [B, count]: place 4 i + j is normal j of (i, stage)."""
    quads = (start // 4)[:, None] + torch.arange(count // 4 + 2, device=start.device, dtype=torch.int64)
    made = normals(seed[:, None], CODEC_STREAM, quads, torch.full_like(quads, stage)).flatten(1)
    return made.gather(1, (start % 4)[:, None] + torch.arange(count, device=start.device, dtype=torch.int64))


def _conv(x: Tensor, layer: Taps | Depthwise) -> Tensor:
    """Centred: [B, T, C] -> [B, T, C']."""
    half = _half(layer)
    padded = F.pad(x, (0, 0, half, half)) if half else x
    if isinstance(layer, Depthwise):
        return apply_depthwise(padded, layer.weight, layer.bias, layer.dilation)
    return apply_taps(padded, layer)


def _half(layer: Taps | Depthwise) -> int:
    return (len(layer.weight) - 1) * layer.dilation // 2


def _down(x: Tensor, taps: Taps) -> Tensor:
    """[B, T, C] -> [B, T / stride, C']."""
    left, steps = (taps.stride + 1) // 2, x.shape[1] // taps.stride
    return apply_taps(F.pad(x, (0, 0, left, (steps + 1) * taps.stride - x.shape[1] - left)), taps)


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    return snake(x.mT, alpha).mT


@dataclass(frozen=True)
class Names:
    """Loads layers by the names of DAC (transformers) or of SNAC (its own package)."""

    weights: CodecWeights
    config: DacConfig

    def conv(
        self, name: str, out: int, channels: int, width: int, dilation: int = 1, grouped: bool = False
    ) -> Taps | Depthwise:
        """A centred convolution; grouped: SNAC makes it depthwise."""
        if not (grouped and self.config.depthwise):
            return self.weights.conv(name, out, channels, width, dilation=dilation)
        layer = self.weights.affine(name, out, 1, width, bias=out)
        assert layer.bias is not None
        return Depthwise(layer.weight[:, 0].T.contiguous(), layer.bias, dilation)

    def alpha(self, name: str, channels: int) -> Tensor:
        """Snake's parameter [C]."""
        return self.weights.get(f"{name}.alpha", 1, channels, 1).view(channels)

    def unit(self, name: str, channels: int, dilation: int) -> ResidualUnit:
        """A residual unit: DAC names its four layers, SNAC numbers them."""
        parts = (
            ("snake1", "conv1", "snake2", "conv2")
            if self.config.kind == "dac"
            else [f"block.{i}" for i in range(4)]
        )
        first, wide, second, narrow = (f"{name}.{part}" for part in parts)
        return ResidualUnit(
            self.alpha(first, channels), self.conv(wide, channels, channels, 7, dilation, grouped=True),
            self.alpha(second, channels), self.weights.conv(narrow, channels, channels, 1),
        )  # fmt: skip

    def attention(self, name: str, width: int) -> LocalAttention:
        """Load the local attention layer of SNAC."""
        assert self.config.window is not None
        parts = (("to_qkv", 3 * width), ("to_out", width))
        qkv, out = (self.weights.affine(f"{name}.{part}", size, width) for part, size in parts)
        return LocalAttention(
            self.weights.affine(f"{name}.norm", width, bias=width), qkv, out, self.config.window
        )


def load_dac_encoder(weights: CodecWeights, config: DacConfig) -> DacEncoder:
    """Raises ValueError for missing and misshapen tensors."""
    names = Names(weights, config)
    width = config.encoder_width
    is_dac = config.kind == "dac"

    # Blocks of falling rate, each twice as wide.
    blocks = []
    first = weights.conv("encoder.conv1" if is_dac else "encoder.block.0", width, 1, 7)
    for index, ratio in enumerate(config.encoder_ratios):
        name = f"encoder.block.{index}" if is_dac else f"encoder.block.{index + 1}.block"
        units = tuple(
            names.unit(f"{name}.res_unit{i + 1}" if is_dac else f"{name}.{i}", width, dilation)
            for i, dilation in enumerate(_DILATIONS)
        )
        alpha = names.alpha(f"{name}.snake1" if is_dac else f"{name}.3", width)
        change = weights.conv(
            f"{name}.conv1" if is_dac else f"{name}.4", 2 * width, width, 2 * ratio, stride=ratio
        )
        blocks.append(DacBlock(units, alpha, change))
        width *= 2

    # SNAC may attend before the last convolution; DAC has a Snake there.
    place = len(config.encoder_ratios) + 1
    attention = None
    if config.window is not None:
        attention = names.attention(f"encoder.block.{place}", width)
        place += 1
    before_last = names.alpha("encoder.snake1", width) if is_dac else None
    last: Taps | Depthwise
    if is_dac:
        last = weights.conv("encoder.conv2", width, width, 3)
    else:
        last = names.conv(f"encoder.block.{place}", width, width, 7, grouped=True)

    codes, into, out = _quantizers(weights, config)
    unit_codes = F.normalize(codes.float(), dim=-1)
    return DacEncoder(
        config, first, tuple(blocks), attention, before_last, last, into, out, codes, unit_codes
    )


def load_dac_decoder(weights: CodecWeights, config: DacConfig) -> DacDecoder:
    """Raises ValueError for missing and misshapen tensors."""
    names = Names(weights, config)
    width = config.decoder_width
    is_dac = config.kind == "dac"

    # Into the width of the first block, by a depthwise convolution and a projection where SNAC has them.
    first: list[Taps | Depthwise] = []
    if config.depthwise:
        first.append(names.conv("decoder.model.0", config.latent_width, config.latent_width, 7, grouped=True))
        first.append(weights.conv("decoder.model.1", width, config.latent_width, 1))
    else:
        first.append(
            weights.conv("decoder.conv1" if is_dac else "decoder.model.0", width, config.latent_width, 7)
        )

    # SNAC may attend before the blocks.
    place, attention = len(first), None
    if config.window is not None:
        attention = names.attention(f"decoder.model.{place}", width)
        place += 1

    # Blocks of rising rate, each half as wide.
    blocks = []
    for index, ratio in enumerate(config.decoder_ratios):
        name, half = f"decoder.block.{index}" if is_dac else f"decoder.model.{place}.block", width // 2
        alpha = names.alpha(f"{name}.snake1" if is_dac else f"{name}.0", width)
        change = weights.transpose(f"{name}.conv_t1" if is_dac else f"{name}.1", width, half, ratio)
        noise = weights.conv(f"{name}.2.linear", half, half, 1, bias=False) if config.noise else None
        offset = 3 if config.noise else 2
        units = tuple(
            names.unit(f"{name}.res_unit{i + 1}" if is_dac else f"{name}.{i + offset}", half, d)
            for i, d in enumerate(_DILATIONS)
        )
        blocks.append(DacBlock(units, alpha, change, noise))
        place, width = place + 1, half

    alpha = names.alpha("decoder.snake1" if is_dac else f"decoder.model.{place}", width)
    last = weights.conv("decoder.conv2" if is_dac else f"decoder.model.{place + 1}", 1, width, 7)
    codes, _, out = _quantizers(weights, config)
    biases = torch.stack([layer.bias for layer in out if layer.bias is not None])
    codebooks = Codebooks(codes, (1,) * config.num_codebooks, torch.stack([layer.weight for layer in out]))
    return DacDecoder(config, codebooks, biases, tuple(first), attention, tuple(blocks), alpha, last)


def _quantizers(
    weights: CodecWeights, config: DacConfig
) -> tuple[Tensor, tuple[Affine, ...], tuple[Affine, ...]]:
    """Codebooks [K, N, d], and the projections into and out of their space."""
    codes: list[Tensor] = []
    into: list[Affine] = []
    out: list[Affine] = []
    for index in range(config.num_codebooks):
        name = f"quantizer.quantizers.{index}"
        wide, narrow = config.latent_width, config.codebook_dim
        codes.append(weights.get(f"{name}.codebook.weight", config.codebook_size, narrow))
        for found, part, shape in ((into, "in_proj", (narrow, wide)), (out, "out_proj", (wide, narrow))):
            layer = weights.affine(f"{name}.{part}", *shape, 1, bias=shape[0])
            found.append(Affine(layer.weight[..., 0], layer.bias))
    return torch.stack(codes), tuple(into), tuple(out)
