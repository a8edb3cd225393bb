"""The token-rate half of the flow: a conformer-like encoder in blocks, and the regulator that brings it to
mel frames.

Source: Zeng et al., "GLM-4-Voice", 2024, after Du et al., "CosyVoice", 2024, and their public code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from training.features.mel import NUM_MELS

NUM_CODES = 1024
WIDTH = 128
NUM_HEADS = 4
FFN_WIDTH = 384
NUM_LAYERS = 3
BLOCK = 10  # codes that see one another
REGULATOR_STAGES = 8


class Attention(nn.Module):
    """Self-attention with relative positions. Source: Dai et al., "Transformer-XL", 2019."""

    def __init__(self) -> None:
        super().__init__()
        for part in ("q", "k", "v", "out"):
            setattr(self, f"linear_{part}", nn.Linear(WIDTH, WIDTH))
        self.linear_pos = nn.Linear(WIDTH, WIDTH, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(NUM_HEADS, WIDTH // NUM_HEADS))
        self.pos_bias_v = nn.Parameter(torch.zeros(NUM_HEADS, WIDTH // NUM_HEADS))

    def forward(self, x: torch.Tensor, distances: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [B, N, D], distances [2 N - 1, D] from the farthest before to the farthest after, mask
        [N, N] is added.
        """
        batch, length, _ = x.shape

        def heads(values: torch.Tensor) -> torch.Tensor:
            return values.unflatten(-1, (NUM_HEADS, -1)).transpose(-3, -2)

        query, key, value = heads(self.linear_q(x)), heads(self.linear_k(x)), heads(self.linear_v(x))
        place = heads(self.linear_pos(distances))
        by_content = (query + self.pos_bias_u[:, None]) @ key.transpose(-1, -2)
        by_place = (query + self.pos_bias_v[:, None]) @ place.transpose(-1, -2)  # [B, H, N, 2 N - 1]
        # Row i needs the distances i to i - N + 1: shift every row by one more than the row above.
        shifted = F.pad(by_place, (1, 0)).reshape(batch, NUM_HEADS, 2 * length, length)[:, :, 1:]
        by_place = shifted.reshape(batch, NUM_HEADS, length, 2 * length - 1)[..., :length]
        weights = ((by_content + by_place) / math.sqrt(WIDTH // NUM_HEADS) + mask).softmax(-1)
        return self.linear_out((weights @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers around SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w_1 = nn.Linear(WIDTH, FFN_WIDTH)
        self.w_2 = nn.Linear(FFN_WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]"""
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each normed before and added."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.feed_forward = FeedForward()
        self.norm_ff = nn.LayerNorm(WIDTH)
        self.norm_mha = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, distances: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]"""
        x = x + self.self_attn(self.norm_mha(x), distances, mask)
        return x + self.feed_forward(self.norm_ff(x))


class InputLayer(nn.Module):
    """A linear layer and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))


class Encoder(nn.Module):
    """Codes in blocks: each sees its block and all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = InputLayer()
        self.encoders = nn.ModuleList(EncoderLayer() for _ in range(NUM_LAYERS))
        self.after_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]"""
        length = x.shape[1]
        x = self.embed.out(x) * math.sqrt(WIDTH)
        distances = sinusoids(torch.arange(length - 1, -length, -1.0), WIDTH)
        block = torch.arange(length) // BLOCK
        mask = torch.where(block[None] <= block[:, None], 0.0, -1e9)
        for layer in self.encoders:
            x = layer(x, distances, mask)
        return self.after_norm(x)


def sinusoids(places: torch.Tensor, width: int) -> torch.Tensor:
    """Return sine and cosine of places at falling rates, in turn. [N] -> [N, width]"""
    rates = torch.exp(torch.arange(0, width, 2.0) * -(math.log(10000.0) / width))
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Regulator(nn.Module):
    """Nearest interpolation to the number of mel frames, then convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(REGULATOR_STAGES):
            layers += [nn.Conv1d(NUM_MELS, NUM_MELS, 3, padding=1), nn.GroupNorm(1, NUM_MELS), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(NUM_MELS, NUM_MELS, 1))

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        """[B, N, 80] -> [B, 80, F]"""
        length = x.shape[1]
        code_of = (torch.arange(num_frames) * (length / num_frames)).floor().long().clamp(max=length - 1)
        return self.model(x[:, code_of].transpose(1, 2))
