"""The speech tokenizer's network: two causal convolutions, block-causal transformer layers, pooling.

Weights by checkpoint name.

A position sees everything before it and its own block to its end, so a block costs its own positions only:
what it needs of the earlier ones is the keys and values of each layer, and 4 mel frames. Within a block
every real key is seen: no mask.

Source: Zeng et al., "GLM-4-Voice", 2024, and Radford et al., "Robust Speech Recognition via
Large-Scale Weak Supervision", 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from innervoice.checkpoint.speech_tokenizer import CONV_KERNEL, CONV_STRIDE, SpeechTokenizerConfig

WhisperWeights = Mapping[str, torch.Tensor]
_LEFT = CONV_KERNEL - 1  # inputs that a causal convolution of stride 1 sees before the present one
LEFT_FRAMES = 2 * _LEFT  # mel frames before a block that its first position sees


class Context:
    """Keys and values [T, D] of one piece's real positions so far, for each layer."""

    def __init__(self, weights: WhisperWeights, config: SpeechTokenizerConfig) -> None:
        empty = weights["conv1.weight"].new_empty(0, config.hidden_size)
        self.layers = [(empty, empty)] * config.num_layers

    def write(
        self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [T, D] of a layer from position `start` on, dropping all
        after it -> all of that layer.

        They are copied: a view would keep the whole batch. Written twice is written once, so a call
        that failed can be repeated.
        """
        old_keys, old_values = self.layers[layer]
        self.layers[layer] = torch.cat([old_keys[:start], keys]), torch.cat([old_values[:start], values])
        return self.layers[layer]


@dataclass(frozen=True)
class AudioBlock:
    """Positions to encode: one row of a call.

    features [F, M]: two frames a position, after LEFT_FRAMES earlier ones unless the block is the piece's
    first. start: first position; num_real: positions that are no padding, which keys are made of;
    context: the piece's, written.
    """

    features: torch.Tensor
    start: int
    num_real: int
    context: Context


def encode_blocks(
    weights: WhisperWeights, config: SpeechTokenizerConfig, blocks: Sequence[AudioBlock]
) -> list[torch.Tensor]:
    """States after the last layer: blocks of different pieces -> [T, D] each; the
    contexts get the real positions.
    """
    features = [_pad_start(block, block.features.to(weights["conv1.weight"].dtype)) for block in blocks]
    x = _causal_conv(features, weights, "conv1", 1)
    x = _causal_conv(
        [_pad_start(*pair) for pair in zip(blocks, x, strict=True)], weights, "conv2", CONV_STRIDE
    )
    lens = [len(row) for row in x]
    places = [
        weights["embed_positions.weight"][block.start : block.start + n]
        for block, n in zip(blocks, lens, strict=True)
    ]
    packed = torch.cat(x) + torch.cat(places)  # [T of all rows, D]
    for i in range(config.num_layers):
        name = f"layers.{i}"
        normed = _norm(packed, weights, f"{name}.self_attn_layer_norm")
        packed = packed + _attend(normed, weights, config, i, blocks, lens)
        packed = packed + _feed_forward(_norm(packed, weights, f"{name}.final_layer_norm"), weights, name)
    return list(torch.split(packed, lens))


def pool(x: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of every `size` positions: [T, D], T a multiple of size -> [T / size, D]."""
    return torch.unflatten(x, 0, (len(x) // size, size)).mean(1)


def _pad_start(block: AudioBlock, x: torch.Tensor) -> torch.Tensor:
    """Zeros before the input of a convolution at a piece's true beginning: [T, C] -> [T or T + 2, C]."""
    return x if block.start else F.pad(x, (0, 0, _LEFT, 0))


def _causal_conv(
    rows: Sequence[torch.Tensor], weights: WhisperWeights, name: str, stride: int
) -> list[torch.Tensor]:
    """Rows [T + 2, C] -> [T / stride, D], after GELU.

    A matrix product of windows: cuDNN would round float32 to TF32.
    """
    windows = [row.unfold(0, CONV_KERNEL, stride).flatten(1) for row in rows]  # [T / stride, C * kernel]
    y = F.linear(torch.cat(windows), weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"])
    return list(torch.split(F.gelu(y), [len(row) for row in windows]))


def _norm(x: torch.Tensor, weights: WhisperWeights, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def _linear(x: torch.Tensor, weights: WhisperWeights, name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _attend(
    x: torch.Tensor,
    weights: WhisperWeights,
    config: SpeechTokenizerConfig,
    layer: int,
    blocks: Sequence[AudioBlock],
    lens: list[int],
) -> torch.Tensor:
    """Projections of all rows at once, attention row by row: each at its true length,
    with no copy of another's keys.
    """
    name = f"layers.{layer}.self_attn"
    q, k, v = (torch.split(_linear(x, weights, f"{name}.{part}_proj"), lens) for part in "qkv")
    rows = []
    for block, queries, keys, values in zip(blocks, q, k, v, strict=True):
        all_keys, all_values = block.context.write(
            layer, block.start, keys[: block.num_real], values[: block.num_real]
        )
        heads = [_split_heads(t, config.num_heads) for t in (queries, all_keys, all_values)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])  # [1, H, T, D / H]
        rows.append(y[0].transpose(0, 1).flatten(1))
    return _linear(torch.cat(rows), weights, f"{name}.out_proj")


def _split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[T, D] -> [1, H, T, D / H]."""
    return torch.unflatten(x, -1, (num_heads, -1)).transpose(0, 1)[None]


def _feed_forward(x: torch.Tensor, weights: WhisperWeights, name: str) -> torch.Tensor:
    return _linear(F.gelu(_linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")
