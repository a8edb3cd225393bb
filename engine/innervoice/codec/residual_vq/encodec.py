"""EnCodec: the causal one (24 kHz) as a stream, the one of chunks (48 kHz, stereo) chunk by chunk.

Défossez et al. 2022. Chunks are a second long and overlap a little; each is scaled to its loudness, coded by
itself, normed over its whole time, and faded into its neighbours by triangular weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.codecs import EncodecConfig
from innervoice.codec.layers import Affine
from innervoice.codec.residual_vq.causal import CausalPass, Level, run_lstm
from innervoice.codec.residual_vq.causal_stream import (
    CausalDecodeStream,
    CausalEncodeStream,
    causal_decode_stream,
    causal_encode_stream,
)
from innervoice.codec.residual_vq.chunk_stream import ChunkDecodeStream, ChunkEncodeStream
from innervoice.codec.residual_vq.seanet import Seanet, load_decoder, load_encoder
from innervoice.codec.residual_vq.slot_stream import StreamPlace
from innervoice.codec.residual_vq.weights import CodecWeights
from innervoice.codec.streaming import StreamState
from innervoice_kernels.residual_vq.elu_unit import EluUnit
from innervoice_kernels.residual_vq.rvq import Codebooks, rvq_decode, rvq_encode
from innervoice_kernels.residual_vq.taps import Taps, apply_taps

_LOUDNESS_FLOOR = 1e-8


@dataclass(frozen=True)
class EncodecEncoder:
    """EnCodec's causal encoder.

    A stream begins with first_frames whole frames, because every layer mirrors its first columns.
    """

    config: EncodecConfig
    seanet: Seanet
    codes: Tensor
    first_frames: int

    def stream(self, place: StreamPlace) -> CausalEncodeStream:
        """Open a stream of sessions over this half."""
        return causal_encode_stream(self, self.config.frame_len, place)

    def new_rings(self, rows: int, max_frames: int) -> dict[str, Tensor]:
        """No state: this half writes none in place."""
        return {}

    def __call__(
        self,
        x: Tensor,
        state: StreamState,
        rings: Mapping[str, Tensor],
        slots: Tensor,
        at: Level,
        num_codebooks: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C], T a multiple of the frame -> ids [B, K, T / frame], state'."""
        run = CausalPass(state, "reflect")
        x, _ = self.seanet.encode(run, x, at)
        return rvq_encode(x, self.codes[:num_codebooks]), run.after


@dataclass(frozen=True)
class EncodecDecoder:
    """EnCodec's causal decoder. A call's columns are frames."""

    config: EncodecConfig
    seanet: Seanet
    codebooks: Codebooks
    first_frames: int

    def stream(self, place: StreamPlace) -> CausalDecodeStream:
        """Open a stream of sessions over this half."""
        return causal_decode_stream(self, self.config.frame_len, place)

    def new_rings(self, rows: int, max_frames: int) -> dict[str, Tensor]:
        """No state: this half writes none in place."""
        return {}

    def __call__(
        self, ids: Tensor, state: StreamState, rings: Mapping[str, Tensor], slots: Tensor, at: Level
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """ids [B, K, T] -> samples [B, T * frame, C], state'."""
        run = CausalPass(state, "reflect")
        x = rvq_decode(ids, self.codebooks.first(ids.shape[1]))
        return self.seanet.decode(run, x, at), run.after


class _WholePass:
    """A pass over whole chunks: padding on both sides, the convolution, its norm.

    All rows have the tensor's length.
    """

    def __init__(self, norms: Mapping[str, Affine]) -> None:
        self._norms = norms

    def conv(self, name: str, x: Tensor, at: Level, layer: Taps) -> Tensor:
        """x [B, T, C] -> [B, ceil(T / stride) or T * up, C']."""
        if layer.up > 1:
            y = self._normed(name, apply_taps(F.pad(x, (0, 0, 1, 1)), layer))
            trim = layer.up - layer.up // 2
            return y[:, trim : trim + x.shape[1] * layer.up]
        right = layer.past // 2
        extra = -x.shape[1] % layer.stride
        return self._normed(name, apply_taps(_mirrored(x, layer.past - right, right + extra), layer))

    def unit(self, name: str, x: Tensor, at: Level, layer: EluUnit, elu: bool = False) -> Tensor:
        """A residual unit, layer by layer: every convolution is normed."""
        inner = self.conv(f"{name}.wide", F.elu(x), at, layer.wide)
        inner = self.conv(f"{name}.narrow", F.elu_(inner), at, layer.narrow)
        x = inner + (x if layer.shortcut is None else self.conv(f"{name}.shortcut", x, at, layer.shortcut))
        return F.elu_(x) if elu else x

    def lstm(self, name: str, x: Tensor, at: Level, weights: list[Tensor]) -> Tensor:
        """x + LSTM(x) from zeros."""
        zeros = x.new_zeros(len(x), len(weights) // 4, x.shape[-1])
        return x + run_lstm(x, at, (zeros, zeros), weights)[0]

    def _normed(self, name: str, x: Tensor) -> Tensor:
        layer = self._norms.get(name)
        if layer is None:
            return x
        return F.group_norm(x.mT, 1, layer.weight, layer.bias, 1e-5).mT


@dataclass(frozen=True)
class EncodecChunkEncoder:
    """One chunk of samples to codes and its loudness."""

    config: EncodecConfig
    seanet: Seanet
    codes: Tensor

    def stream(self, place: StreamPlace) -> ChunkEncodeStream:
        """Open a stream of sessions over this half."""
        return ChunkEncodeStream(
            half=self,
            num_codebooks=place.num_codebooks,
            dtype=place.dtype,
            **_chunks(self.config),
            **place.common,
        )

    def __call__(self, x: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        """x [B, T, C], T at most a chunk -> ids [B, K, ceil(T / frame)], scales [B]."""
        scale = x.new_ones(len(x))
        if self.config.normalize:
            scale = x.mean(-1).square().mean(-1).sqrt() + _LOUDNESS_FLOOR
            x = x / scale[:, None, None]
        x, _ = self.seanet.encode(_WholePass(self.seanet.norms), x, _whole(x))
        return rvq_encode(x, self.codes[:num_codebooks]), scale


@dataclass(frozen=True)
class EncodecChunkDecoder:
    """One chunk of codes to samples."""

    config: EncodecConfig
    seanet: Seanet
    codebooks: Codebooks

    def stream(self, place: StreamPlace) -> ChunkDecodeStream:
        """Open a stream of sessions over this half."""
        return ChunkDecodeStream(half=self, **_chunks(self.config), **place.common)

    def __call__(self, ids: Tensor, scales: Tensor) -> Tensor:
        """ids [B, K, T], scales [B] -> samples [B, T * frame, C]."""
        x = rvq_decode(ids, self.codebooks.first(ids.shape[1]))
        x = self.seanet.decode(_WholePass(self.seanet.norms), x, _whole(x))
        return x * scales.to(x.dtype)[:, None, None]


def load_encodec_encoder(
    weights: CodecWeights, config: EncodecConfig
) -> EncodecEncoder | EncodecChunkEncoder:
    """Raises ValueError for missing and misshapen tensors."""
    seanet = load_encoder(
        weights, config.seanet, lstm_layers=config.num_lstm_layers, group_norm=config.group_norm
    )
    codes = _codes(weights, config)
    if config.chunk_len is not None:
        return EncodecChunkEncoder(config, seanet, codes)
    return EncodecEncoder(config, seanet, codes, _first_frames(seanet, config, upwards=False))


def load_encodec_decoder(
    weights: CodecWeights, config: EncodecConfig
) -> EncodecDecoder | EncodecChunkDecoder:
    """Raises ValueError for missing and misshapen tensors."""
    seanet = load_decoder(
        weights, config.seanet, lstm_layers=config.num_lstm_layers, group_norm=config.group_norm
    )
    codebooks = Codebooks(_codes(weights, config), (config.num_codebooks,))
    if config.chunk_len is not None:
        return EncodecChunkDecoder(config, seanet, codebooks)
    return EncodecDecoder(config, seanet, codebooks, _first_frames(seanet, config, upwards=True))


def _chunks(config: EncodecConfig) -> dict[str, Any]:
    assert config.chunk_len is not None and config.chunk_stride is not None, "no chunks"
    return {"chunk_len": config.chunk_len, "chunk_stride": config.chunk_stride}


def _codes(weights: CodecWeights, config: EncodecConfig) -> Tensor:
    shape = (config.codebook_size, config.seanet.width)
    names = (f"quantizer.layers.{index}.codebook.embed" for index in range(config.num_codebooks))
    return torch.stack([weights.get(name, *shape) for name in names])


def _first_frames(seanet: Seanet, config: EncodecConfig, upwards: bool) -> int:
    """Whole frames after which every layer has more columns than it mirrors."""
    columns = 1 if upwards else config.frame_len
    needed = [(seanet.first.past, columns)]
    for stage in seanet.stages:
        columns *= stage.change.up
        needed += [(unit.wide.past, columns) for unit in stage.units]
        needed.append((stage.change.past, columns // stage.change.up))
        columns //= stage.change.stride
    needed.append((seanet.last.past, columns))
    return max(-(-(past + 1) // rate) for past, rate in needed)


def _mirrored(x: Tensor, left: int, right: int) -> Tensor:
    """x [B, T, C] with its mirror images; zeros lengthen a signal that is too short, as in the original."""
    extra = max(0, max(left, right) - x.shape[1] + 1)
    padded = F.pad(F.pad(x, (0, 0, 0, extra)).mT, (left, right), mode="reflect").mT
    return padded[:, : padded.shape[1] - extra]


def _whole(x: Tensor) -> Level:
    size = torch.full((len(x),), x.shape[1], device=x.device, dtype=torch.int64)
    return Level(size, torch.zeros_like(size), True)
