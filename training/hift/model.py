"""HiFT with a harmonic source, as it is trained; every tensor has the name that hift.pt gives it.

Source: Li et al., "HiFTNet: A Fast High-Quality Neural Vocoder with Harmonic-plus-Noise Filter and Inverse
Short Time Fourier Transform", 2023, and the public code of CosyVoice.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import weight_norm

from training.features.mel import HOP, NUM_MELS, SAMPLE_RATE

BASE_CHANNELS = 192
RATES = (4, 4)
KERNELS = (8, 8)
N_FFT = 64
FFT_HOP = 16
BLOCK_KERNELS = (3, 7)
SOURCE_KERNELS = (3, 3)
DILATIONS = (1, 3, 5)
F0_CHANNELS = 96
NUM_HARMONICS = 8
SINE = 0.1
NOISE = 0.003
VOICED_HZ = 10.0
BINS = N_FFT + 2
SLOPE = 0.1
MAX_MAGNITUDE = 100.0


def normed(conv: nn.Module) -> nn.Module:
    """Return a convolution whose weight is a length and a direction; torch's newer way names the
    tensors otherwise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(conv)


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with one `a` a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]"""
        alpha = self.alpha[None, :, None]
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Pairs of dilated and plain convolutions, each added to what came in."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def convs(dilations: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(_small_conv(channels, kernel, dilation) for dilation in dilations)

        self.convs1 = convs(DILATIONS)
        self.convs2 = convs((1,) * len(DILATIONS))
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]"""
        for first, second, before, between in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + second(between(first(before(x))))
        return x


def _small_conv(channels: int, kernel: int, dilation: int) -> nn.Module:
    conv = nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
    nn.init.normal_(conv.weight, 0, 0.03)
    return normed(conv)


class F0Predictor(nn.Module):
    """The pitch of each frame, from the mel alone."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in range(5):
            channels = F0_CHANNELS if layer else NUM_MELS
            layers += [normed(nn.Conv1d(channels, F0_CHANNELS, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(F0_CHANNELS, 1)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """[B, 80, F] -> Hz [B, F]"""
        return self.classifier(self.condnet(mel).transpose(1, 2))[..., 0].abs()


class Source(nn.Module):
    """The weights that mix the harmonics."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(NUM_HARMONICS + 1, 1)


class Hift(nn.Module):
    """The vocoder."""

    def __init__(self) -> None:
        super().__init__()
        self.m_source = Source()
        self.conv_pre = normed(nn.Conv1d(NUM_MELS, BASE_CHANNELS, 7, padding=3))
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = BASE_CHANNELS
        for stage, (rate, kernel) in enumerate(zip(RATES, KERNELS, strict=True)):
            half = channels // 2
            self.ups.append(normed(nn.ConvTranspose1d(channels, half, kernel, rate, (kernel - rate) // 2)))
            below = math.prod(RATES[stage + 1 :])
            down = (
                nn.Conv1d(BINS, half, 2 * below, below, below // 2) if below > 1 else nn.Conv1d(BINS, half, 1)
            )
            self.source_downs.append(down)
            self.source_resblocks.append(ResBlock(half, SOURCE_KERNELS[stage]))
            self.resblocks.extend(ResBlock(half, size) for size in BLOCK_KERNELS)
            channels = half
        post = nn.Conv1d(channels, BINS, 7, padding=3)
        nn.init.constant_(post.bias[: N_FFT // 2 + 1], -3.0)  # quiet at first
        self.conv_post = normed(post)
        self.f0_predictor = F0Predictor()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def harmonics(self, f0: torch.Tensor) -> torch.Tensor:
        """Sines of the pitch and its multiples, and noise. Hz [B, F] -> [B, 9, n]"""
        hz = f0.repeat_interleave(HOP, 1)[:, None]
        multiples = torch.arange(1, NUM_HARMONICS + 2)[:, None]
        cycles = ((hz * multiples / SAMPLE_RATE).double().cumsum(-1) % 1).float()
        start = (torch.rand(len(f0), NUM_HARMONICS + 1, 1) * 2 - 1) * math.pi
        start[:, 0] = 0
        voiced = (hz > VOICED_HZ).float()
        level = voiced * NOISE + (1 - voiced) * SINE / 3
        return SINE * torch.sin(2 * math.pi * cycles + start) * voiced + level * torch.randn_like(cycles)

    def forward(self, mel: torch.Tensor, harmonics: torch.Tensor) -> torch.Tensor:
        """Samples of normalised mel frames. [B, 80, F], [B, 9, n] -> [B, n]"""
        source = torch.tanh(self.m_source.l_linear(harmonics.transpose(1, 2)))[..., 0]
        spectrum = torch.stft(source, N_FFT, FFT_HOP, N_FFT, self.window, return_complex=True)
        spectrum = torch.cat([spectrum.real, spectrum.imag], 1)
        x = self.conv_pre(mel)
        num_blocks = len(BLOCK_KERNELS)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectrum))
            blocks = self.resblocks[stage * num_blocks : (stage + 1) * num_blocks]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        x = self.conv_post(F.leaky_relu(x, 0.01))
        half = N_FFT // 2 + 1
        magnitude = torch.exp(x[:, :half]).clamp(max=MAX_MAGNITUDE)
        angle = torch.sin(x[:, half:])
        spectrum = torch.complex(magnitude * torch.cos(angle), magnitude * torch.sin(angle))
        return torch.istft(spectrum, N_FFT, FFT_HOP, N_FFT, self.window)

    @torch.no_grad()
    def speak(self, mel: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Samples of normalised mel frames with the predicted pitch. [80, F] -> [n]"""
        torch.manual_seed(seed)
        harmonics = self.harmonics(self.f0_predictor(mel[None]))
        return self(mel[None], harmonics)[0].clamp(-0.99, 0.99)
