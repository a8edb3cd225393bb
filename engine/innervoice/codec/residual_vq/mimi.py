"""Mimi: sound to codes and back, causal in every layer; one code path serves whole files and streams.

Défossez et al. 2024 (Moshi). SEANet, a transformer at twice the frame rate, a halving of the rate, and two
residual quantisers side by side: one codebook of meaning, the others of sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice.checkpoint.codecs import MimiConfig
from innervoice.codec.residual_vq.causal import CausalPass, Level
from innervoice.codec.residual_vq.causal_stream import (
    CausalDecodeStream,
    CausalEncodeStream,
    causal_decode_stream,
    causal_encode_stream,
)
from innervoice.codec.residual_vq.seanet import Seanet, load_decoder, load_encoder
from innervoice.codec.residual_vq.slot_stream import StreamPlace
from innervoice.codec.residual_vq.weights import CodecWeights
from innervoice.codec.residual_vq.windowed_transformer import WindowedTransformer, load_transformer
from innervoice.codec.streaming import StreamState
from innervoice_kernels.residual_vq.rvq import Codebooks, rvq_decode, rvq_encode
from innervoice_kernels.residual_vq.taps import Taps

_USAGE_FLOOR = 1e-5


@dataclass(frozen=True)
class MimiEncoder:
    """Mimi's encoder. A call's columns are samples; first_frames: whole frames that a stream begins with."""

    config: MimiConfig
    seanet: Seanet
    transformer: WindowedTransformer
    downsample: Taps
    semantic: Tensor
    acoustic: Tensor
    semantic_in: Taps | None
    acoustic_in: Taps | None
    first_frames: int = 1

    def stream(self, place: StreamPlace) -> CausalEncodeStream:
        """Open a stream of sessions over this half."""
        return causal_encode_stream(self, self.config.frame_len, place)

    def new_rings(self, rows: int, max_frames: int) -> dict[str, Tensor]:
        """Keys and values of so many slots, when a call brings at most max_frames frames."""
        return _rings(self.transformer, rows, max_frames * self.config.downsample, self.semantic)

    def __call__(
        self,
        x: Tensor,
        state: StreamState,
        rings: Mapping[str, Tensor],
        slots: Tensor,
        at: Level,
        num_codebooks: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, 1], T a multiple of the frame -> ids [B, K, T / frame], state'."""
        run = CausalPass(state)
        x, at = self.seanet.encode(run, x, at)
        x = self.transformer(x, rings, slots, at)
        x = run.conv("downsample", x, at, self.downsample, "replicate")
        num_semantic = len(self.semantic)
        sources = [
            (self.semantic, self.semantic_in, num_codebooks),
            (self.acoustic, self.acoustic_in, num_codebooks - num_semantic),
        ]
        ids = [
            rvq_encode(x if project is None else run.conv("project", x, at, project), codes[:num])
            for codes, project, num in sources
            if num > 0
        ]
        return torch.cat(ids, 1), run.after


@dataclass(frozen=True)
class MimiDecoder:
    """Mimi's decoder. A call's columns are frames."""

    config: MimiConfig
    codebooks: Codebooks
    upsample: Taps
    transformer: WindowedTransformer
    seanet: Seanet
    first_frames: int = 1

    def stream(self, place: StreamPlace) -> CausalDecodeStream:
        """Open a stream of sessions over this half."""
        return causal_decode_stream(self, self.config.frame_len, place)

    def new_rings(self, rows: int, max_frames: int) -> dict[str, Tensor]:
        """Keys and values of so many slots, when a call brings at most max_frames frames."""
        return _rings(self.transformer, rows, max_frames * self.config.downsample, self.codebooks.codes)

    def __call__(
        self, ids: Tensor, state: StreamState, rings: Mapping[str, Tensor], slots: Tensor, at: Level
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """ids [B, K, T] -> samples [B, T * frame, 1], state'."""
        run = CausalPass(state)
        x = rvq_decode(ids, self.codebooks.first(ids.shape[1]))
        x = self._upsample(run, x, at)
        at = at.up(self.config.downsample)
        x = self.transformer(x, rings, slots, at)
        return self.seanet.decode(run, x, at), run.after

    def _upsample(self, run: CausalPass, x: Tensor, at: Level) -> Tensor:
        """Each channel by itself: [B, T, D] -> [B, T * 2, D]; its two taps are a product a column."""
        weight = self.upsample.weight  # [2, 2, D]: the column before, the column
        before = run.delay("upsample", x, at, 1)
        y = torch.addcmul(before[:, :, None] * weight[0], x[:, :, None], weight[1])
        return y.flatten(1, 2)


def load_mimi_encoder(weights: CodecWeights, config: MimiConfig) -> MimiEncoder | None:
    """The encoder, None where the checkpoint has none. Raises ValueError for missing or misshapen tensors."""
    if not config.has_encoder:
        return None
    width, taps = config.seanet.width, 2 * config.downsample
    num = (config.num_semantic, config.num_codebooks - config.num_semantic)
    (semantic, semantic_in), (acoustic, acoustic_in) = (
        (_codes(weights, config, part, size), _projection(weights, config, part, "input_proj", inwards=True))
        for part, size in zip(_PARTS, num, strict=True)
    )
    return MimiEncoder(
        config, load_encoder(weights, config.seanet), load_transformer(weights, config, "encoder_transformer"),
        weights.conv("downsample.conv", width, width, taps, stride=config.downsample, bias=False),
        semantic, acoustic, semantic_in, acoustic_in,
    )  # fmt: skip


def load_mimi_decoder(weights: CodecWeights, config: MimiConfig) -> MimiDecoder | None:
    """The decoder, None where the checkpoint has none. Raises ValueError for missing or misshapen tensors."""
    if not config.has_decoder:
        return None
    sizes = (config.num_semantic, config.num_codebooks - config.num_semantic)
    codes = torch.cat([_codes(weights, config, part, size) for part, size in zip(_PARTS, sizes, strict=True)])
    projections = [_projection(weights, config, part, "output_proj", inwards=False) for part in _PARTS]
    project = torch.stack([p.weight[0].T for p in projections if p is not None]) if config.projected else None
    upsample = weights.affine(
        "upsample.conv", config.seanet.width, 1, 2 * config.downsample
    ).weight  # [D, 1, 4]
    halves = upsample[:, 0].T.reshape(2, config.downsample, -1).flip(0)
    return MimiDecoder(
        config, Codebooks(codes, sizes, project), Taps(halves.contiguous(), None, up=config.downsample),
        load_transformer(weights, config, "decoder_transformer"), load_decoder(weights, config.seanet),
    )  # fmt: skip


_PARTS = ("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer")


def _codes(weights: CodecWeights, config: MimiConfig, part: str, size: int) -> Tensor:
    """Codebooks [K, N, D]: each code's sum of training vectors divided by their number."""
    found = []
    for index in range(size):
        name = f"quantizer.{part}.layers.{index}.codebook"
        total = weights.get(
            f"{name}.embed_sum", config.codebook_size, config.codebook_dim, dtype=torch.float32
        )
        usage = weights.get(f"{name}.cluster_usage", config.codebook_size, dtype=torch.float32)
        found.append((total / usage.clamp(min=_USAGE_FLOOR)[:, None]).to(weights.dtype))
    return torch.stack(found)


def _projection(
    weights: CodecWeights, config: MimiConfig, part: str, name: str, inwards: bool
) -> Taps | None:
    if not config.projected:
        return None
    shape = (
        (config.codebook_dim, config.seanet.width) if inwards else (config.seanet.width, config.codebook_dim)
    )
    return weights.conv(f"quantizer.{part}.{name}", *shape, 1, bias=False)


def _rings(transformer: WindowedTransformer, rows: int, max_tokens: int, like: Tensor) -> dict[str, Tensor]:
    shape = transformer.ring_shape(max_tokens)
    return {name: like.new_zeros(rows, *shape) for name in transformer.rings}
