"""The mel-rate half of the flow: a U-Net of residual blocks and transformers.

Source: Mehta et al., "Matcha-TTS", 2023, as CosyVoice's public code has it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from training.features.mel import NUM_MELS

CHANNELS = (96, 96)
HEAD_WIDTH = 32
NUM_HEADS = 3
BLOCKS_PER_STAGE = 1
MIDDLE_STAGES = 3
TIME_WIDTH = 4 * CHANNELS[0]
INPUTS = 4 * NUM_MELS  # noise, mu, speaker, prompt


class Block(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.Mish()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, F] -> [B, C', F]"""
        return self.block(x)


class ResBlock(nn.Module):
    """Two blocks with the time between them, and a way around."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(TIME_WIDTH, outputs))
        self.block1 = Block(inputs, outputs)
        self.block2 = Block(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[B, C, F], [B, T] -> [B, C', F]"""
        return self.block2(self.block1(x) + self.mlp(time)[..., None]) + self.res_conv(x)


class Attention(nn.Module):
    """Plain self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for part in "qkv":
            setattr(self, f"to_{part}", nn.Linear(width, NUM_HEADS * HEAD_WIDTH, bias=False))
        self.to_out = nn.Sequential(nn.Linear(NUM_HEADS * HEAD_WIDTH, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, F, C] -> [B, F, C]"""
        heads = [
            part(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        ]
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Gelu(nn.Module):
    """A linear layer to four times the width, then GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, F, C] -> [B, F, 4 C]"""
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Out to four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gelu(width), nn.Identity(), nn.Linear(4 * width, width))


class Transformer(nn.Module):
    """Attention and feed-forward, each normed before and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, F, C] -> [B, F, C]"""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff.net(self.norm3(x))


class Resample(nn.Module):
    """A convolution that halves or doubles the frames, under the name it has in the checkpoint."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, F] -> [B, C, F / 2 or 2 F]"""
        return self.conv(x)


class TimeEmbedding(nn.Module):
    """The time of the solver, as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(INPUTS, TIME_WIDTH)
        self.linear_2 = nn.Linear(TIME_WIDTH, TIME_WIDTH)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        """[B], from 0 to 1 -> [B, T]"""
        half = INPUTS // 2
        rates = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
        angles = 1000 * time[:, None] * rates
        return self.linear_2(F.silu(self.linear_1(torch.cat([angles.sin(), angles.cos()], -1))))


def _stage(inputs: int, outputs: int, *after: nn.Module) -> nn.ModuleList:
    blocks = nn.ModuleList(Transformer(outputs) for _ in range(BLOCKS_PER_STAGE))
    return nn.ModuleList([ResBlock(inputs, outputs), blocks, *after])


def _down(channels: int, is_last: bool) -> nn.Module:
    plain = nn.Conv1d(channels, channels, 3, padding=1)
    return plain if is_last else Resample(nn.Conv1d(channels, channels, 3, 2, 1))


def _up(channels: int, is_last: bool) -> nn.Module:
    plain = nn.Conv1d(channels, channels, 3, padding=1)
    return plain if is_last else Resample(nn.ConvTranspose1d(channels, channels, 4, 2, 1))


class Estimator(nn.Module):
    """The U-Net: the direction in which noise becomes a mel."""

    def __init__(self) -> None:
        super().__init__()
        self.time_mlp = TimeEmbedding()
        last = len(CHANNELS) - 1
        steps = list(zip((INPUTS, *CHANNELS), CHANNELS, strict=False))
        self.down_blocks = nn.ModuleList(
            _stage(inputs, outputs, _down(outputs, place == last))
            for place, (inputs, outputs) in enumerate(steps)
        )
        self.mid_blocks = nn.ModuleList(_stage(CHANNELS[-1], CHANNELS[-1]) for _ in range(MIDDLE_STAGES))
        back = (*CHANNELS[::-1], CHANNELS[0])
        self.up_blocks = nn.ModuleList(
            _stage(2 * back[place], back[place + 1], _up(back[place + 1], place == last))
            for place in range(len(CHANNELS))
        )
        self.final_block = Block(CHANNELS[0], CHANNELS[0])
        self.final_proj = nn.Conv1d(CHANNELS[0], NUM_MELS, 1)

    def forward(
        self,
        x: torch.Tensor,
        mu: torch.Tensor,
        speaker: torch.Tensor,
        prompt: torch.Tensor,
        time: torch.Tensor,
    ) -> torch.Tensor:
        """x, mu, prompt [B, 80, F], speaker [B, 80], time [B] -> [B, 80, F]"""
        vector = self.time_mlp(time)
        h = torch.cat([x, mu, speaker[:, :, None].expand_as(mu), prompt], 1)
        skipped = []
        for stage in self.down_blocks:
            h = self._run(stage, h, vector)
            skipped.append(h)
            h = stage[2](h)
        for stage in self.mid_blocks:
            h = self._run(stage, h, vector)
        for stage in self.up_blocks:
            skip = skipped.pop()
            h = self._run(stage, torch.cat([h[..., : skip.shape[-1]], skip], 1), vector)
            h = stage[2](h)
        return self.final_proj(self.final_block(h))

    @staticmethod
    def _run(stage: nn.ModuleList, h: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = stage[0](h, time).transpose(1, 2)
        for block in stage[1]:
            h = block(h)
        return h.transpose(1, 2)
