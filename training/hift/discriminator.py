"""Discriminators that hear whether a spectrum was made: one for each of three resolutions, for training alone.

Source: Jang et al., "UnivNet: A Neural Vocoder with Multi-Resolution Spectrogram Discriminators", 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from training.features.mel import hann

RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))  # transform, hop
CHANNELS = 16
SLOPE = 0.1


class SpectrumDiscriminator(nn.Module):
    """2-D convolutions over the magnitudes of one resolution."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self._size, self._hop = size, hop
        self.layers = nn.ModuleList(
            nn.Conv2d(1 if layer == 0 else CHANNELS, CHANNELS, (7, 3), (2, 1), (3, 1)) for layer in range(4)
        )
        self.last = nn.Conv2d(CHANNELS, 1, 3, padding=1)

    def forward(self, audio: torch.Tensor) -> list[torch.Tensor]:
        """Return what each layer gives, the verdict last. [B, n] -> [B, C, bins, frames] each"""
        window = hann(self._size)
        spectrum = torch.stft(audio, self._size, self._hop, self._size, window, return_complex=True)
        x = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-7).log()[:, None]
        found = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            found.append(x)
        return [*found, self.last(x)]


class Discriminators(nn.Module):
    """All resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectrumDiscriminator(*resolution) for resolution in RESOLUTIONS)

    def forward(self, audio: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return the layers of each resolution. [B, n]"""
        return [one(audio) for one in self.each]


def verdict_loss(real: list[list[torch.Tensor]], made: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return how far verdicts are from 1 on what is real and from 0 on what is made.

    Source: Mao et al., "Least Squares Generative Adversarial Networks", 2017.
    """
    losses = [(a[-1] - 1).square().mean() + b[-1].square().mean() for a, b in zip(real, made, strict=True)]
    return torch.stack(losses).mean()


def deceit_loss(made: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return how far verdicts on what is made are from 1."""
    return torch.stack([(one[-1] - 1).square().mean() for one in made]).mean()


def feature_loss(real: list[list[torch.Tensor]], made: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return how far the layers on what is made are from those on what is real.

    Source: Kumar et al., "MelGAN", 2019.
    """
    distances = [
        (a.detach() - b).abs().mean()
        for each, other in zip(real, made, strict=True)
        for a, b in zip(each[:-1], other[:-1], strict=True)
    ]
    return torch.stack(distances).mean()
