"""The convolutions in front of an audio encoder, chunk by chunk, with positions that begin anew in each chunk.

Qwen3-Omni   three 3 x 3 convolutions of stride 2 over [mel, time], GELU after each; channels and mel bins of a column
             are flattened and projected; 100 frames make 13 columns
Qwen2.5-Omni two convolutions over the time, the second of stride 2, GELU after each; 200 frames make 100 columns

A recording's last chunk is filled up with zeros to a whole one where another chunk is, and in Qwen3-Omni that shows in
its columns: it stays as short as it is where the recording has no whole chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.audio_encoder import CHUNK_COLUMNS, CHUNK_FRAMES, STEM_STEPS, AudioEncoderConfig
from innervoice.codec.audio_encoder.layers import EncoderWeights
from innervoice_kernels.torch_layers import conv1d, conv2d

ChunkFeatures = tuple[
    int, int, Tensor
]  # number of the recording, its own frames, features [M, F] filled up with zeros
_CHUNKS = 64  # that go through the convolutions at once


def columns_of(
    mels: Sequence[Tensor],
    weights: EncoderWeights,
    config: AudioEncoderConfig,
    is_long: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Log-mel features [M, F] of recordings, or of windows of them -> columns [T, D] of each.

    is_long: whether the whole recording has a chunk that is whole; None: the features are those of whole recordings.
    """
    size = CHUNK_FRAMES[config.kind]
    pieces: list[ChunkFeatures] = []
    for number, mel in enumerate(mels):
        fills = mel.shape[1] >= size if is_long is None else is_long[number]
        for start in range(0, mel.shape[1], size):
            chunk = mel[:, start : start + size]
            width = size if fills else chunk.shape[1]
            padded = F.pad(chunk, (0, width - chunk.shape[1]))
            pieces.append((number, chunk.shape[1], padded))
    # Chunks of one width are one batch.
    made: dict[int, Tensor] = {}
    for width in {piece.shape[1] for _, _, piece in pieces}:
        alike = [index for index, (_, _, piece) in enumerate(pieces) if piece.shape[1] == width]
        for first in range(0, len(alike), _CHUNKS):
            part = alike[first : first + _CHUNKS]
            made |= dict(zip(part, _convolved([pieces[i] for i in part], weights, config), strict=True))
    rows: list[list[Tensor]] = [[] for _ in mels]
    for index, (number, frames, _) in enumerate(pieces):
        rows[number].append(made[index][: config.chunk_columns(frames)])
    return [torch.cat(parts) for parts in rows]


def _convolved(
    pieces: Sequence[ChunkFeatures], weights: EncoderWeights, config: AudioEncoderConfig
) -> Tensor:
    """Chunks of one width -> [B, columns, D] with their positions."""
    x = torch.stack([piece for _, _, piece in pieces]).to(weights.dtype)  # [B, M, F]
    lens = [frames for _, frames, _ in pieces]
    columns = _flat(x, weights) if config.kind == "qwen3_omni" else _timed(x, lens, weights)
    places = _sinusoids(CHUNK_COLUMNS[config.kind], config.width, x.device)[: columns.shape[1]]
    return columns + places.to(columns.dtype)


def _flat(x: Tensor, weights: EncoderWeights) -> Tensor:
    y = x[:, None]  # [B, 1, M, F]
    for step in range(1, STEM_STEPS + 1):
        name = f"conv2d{step}"
        y = F.gelu(conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=1))
    rows = y.permute(0, 3, 1, 2).flatten(2)  # [B, columns, channels of each bin]
    return weights.linear(rows.flatten(0, 1), "conv_out").view(len(y), rows.shape[1], -1)


def _timed(x: Tensor, lens: Sequence[int], weights: EncoderWeights) -> Tensor:
    """lens: each chunk's own frames; past them the second convolution reads zeros."""
    y = F.gelu(conv1d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1))
    place = torch.arange(x.shape[2], dtype=torch.int64, device=x.device)
    is_own = place < torch.tensor(lens, dtype=torch.int64, device=x.device)[:, None]
    y = conv1d(y * is_own[:, None], weights["conv2.weight"], weights["conv2.bias"], stride=2, padding=1)
    return F.gelu(y).mT


@cache
def _sinusoids(count: int, width: int, device: torch.device) -> Tensor:
    """Sines, then cosines, of positions 0 to count - 1 at width / 2 rates from 1 to 1/10000: [count, width]."""
    with torch.inference_mode(False):
        half = width // 2
        step = math.log(10000) / max(half - 1, 1)
        rates = torch.exp(-step * torch.arange(half, dtype=torch.float32, device=device))
        angles = torch.arange(count, dtype=torch.float32, device=device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)
