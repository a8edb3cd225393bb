"""Mel frames -> samples: HiFT-GAN, a neural source filter with an inverse STFT at its end (Li
et al. 2023, as in CosyVoice).

F0 and source run in float32 whatever the dtype (their phase accumulates), as do the
exponential and the inverse STFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.decoder_tensors import is_delicate
from innervoice.checkpoint.speech_decoder import HiftConfig
from innervoice.codec.layers import Tensors, affine, linear, widened
from innervoice_kernels.speech_codec.istft import istft
from innervoice_kernels.speech_codec.noise import harmonic_phases, sample_noise
from innervoice_kernels.speech_codec.residual import ResidualWeights, residual
from innervoice_kernels.speech_codec.source import SourceSettings, stream_source
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights, whole_conv, whole_conv_ref

_LAST_SLOPE = 0.01
"""Of the leaky ReLU before the last convolution, whatever the configuration says of the others."""


class Excitation(NamedTuple):
    """Random part of the source: phase [1, H, 1] in radians, unit noise [1, H, n]; H
    harmonics, the fundamental first.
    """

    phase: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ResBlock:
    """Pairs of a dilated and a plain convolution, each behind a snake, each pair with its residual."""

    units: list[ResidualWeights]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, C, T]."""
        for unit in self.units:
            x = residual(x, unit)
        return x

    @property
    def delay(self) -> int:
        """Steps that the block sees ahead."""
        return sum(unit.delay for unit in self.units)


@dataclass(frozen=True)
class HiftStage:
    """One upsampling with the source that joins it."""

    up: StreamConvWeights
    source_down: StreamConvWeights
    source_block: ResBlock
    blocks: list[ResBlock]


def fold_weight_norm(tensors: Tensors) -> dict[str, Tensor]:
    """name.weight_g, name.weight_v -> name.weight = g v / |v|, the norm over all but the first dimension."""
    folded = {name: value for name, value in tensors.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in tensors.items():
        if name.endswith(".weight_v"):
            gain = tensors[f"{name[:-1]}g"]
            folded[name.removesuffix("_v")] = gain * direction / direction.norm(dim=(1, 2), keepdim=True)
    return folded


class Hift:
    """The vocoder with its weights; tensors are named as in hift.pt and float32."""

    def __init__(
        self,
        config: HiftConfig,
        tensors: Tensors,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        self.dtype = dtype
        folded = fold_weight_norm(tensors)
        weights = {
            name: value.to(device, torch.float32 if is_delicate(name) else dtype)
            for name, value in folded.items()
        }
        self.f0_layers = [_conv(weights, f"f0_predictor.condnet.{2 * i}") for i in range(5)]
        self.f0_out = affine(weights, "f0_predictor.classifier")
        self._merge = affine(weights, "m_source.l_linear")
        self.pre, self.post = _conv(weights, "conv_pre"), _conv(weights, "conv_post", slope=_LAST_SLOPE)
        self.stages = [_stage(config, weights, i) for i in range(len(config.upsample_rates))]
        self.window = torch.hann_window(config.n_fft, device=device, dtype=torch.float32)
        self.source_settings = SourceSettings(
            weight=self._merge.weight,
            bias=weights["m_source.l_linear.bias"],
            sample_rate=config.sample_rate,
            frame_len=config.frame_len,
            amplitude=config.sine_amplitude,
            sigma=config.noise_sigma,
            voiced_above=config.voiced_threshold,
        )

    def __call__(
        self, mel: Tensor, *, generator: torch.Generator | None = None, cached_source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """mel [1, C, T] float32 -> samples [1, n], source [1, 1, n]; n = T * frame_len.

        generator draws random phases and noise (None: neither). cached_source [1, 1, m] replaces
        the source's first m values.
        """
        excitation = None if generator is None else self.draw(mel.shape[-1], generator)
        source = self.source(self.f0(mel), excitation)
        if cached_source is not None:
            source = torch.cat([cached_source, source[..., cached_source.shape[-1] :]], -1)
        return self.render(mel, source), source

    def f0(self, mel: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """mel [B, C, T] -> fundamental frequency in Hz, [B, T]. float64: where rounding would
        add up, in `steady` streaming.
        """
        x = mel.to(dtype)
        for layer in self.f0_layers:
            x = F.elu(whole_conv_ref(x, layer.widened(dtype), 1))
        return linear(x.transpose(1, 2), widened(self.f0_out, dtype))[..., 0].abs()

    def draw(self, num_frames: int, generator: torch.Generator) -> Excitation:
        """Phases in [-pi, pi), then noise, as the original draws them on the CPU;
        the fundamental's phase is 0.
        """
        harmonics, device = self.config.num_harmonics + 1, self.window.device
        phase = (
            torch.rand(1, harmonics, 1, generator=generator, dtype=torch.float32, device="cpu")
            * (2 * math.pi)
            - math.pi
        )
        phase[:, 0] = 0
        noise = torch.randn(
            1,
            harmonics,
            num_frames * self.config.frame_len,
            generator=generator,
            dtype=torch.float32,
            device="cpu",
        )
        return Excitation(phase.to(device), noise.to(device))

    def source(self, f0: Tensor, excitation: Excitation | None = None) -> Tensor:
        """f0 [B, T] in Hz -> sines of all harmonics, merged: [B, 1, n] float32.

        None: zero phases and no noise.
        """
        config = self.config
        f0 = f0.repeat_interleave(config.frame_len, -1)[:, None]  # [B, 1, n]
        harmonics = torch.arange(1, config.num_harmonics + 2, device=f0.device, dtype=torch.int64)[:, None]
        # Float32 steps summed in float64: what torch's own float32 cumsum does on a CPU,
        # and the same on every device.
        cycles = (f0 * harmonics / config.sample_rate).double().cumsum(-1).float() % 1
        angle = 2 * math.pi * cycles
        if excitation is not None:
            angle = angle + excitation.phase
        voiced = (f0 > config.voiced_threshold).float()
        sines = config.sine_amplitude * torch.sin(angle) * voiced
        if excitation is not None:
            sines = (
                sines
                + (voiced * config.noise_sigma + (1 - voiced) * config.sine_amplitude / 3) * excitation.noise
            )
        return torch.tanh(linear(sines.transpose(1, 2), self._merge)).transpose(1, 2)

    def steady_source(self, mel: Tensor, seed: int | None) -> Tensor:
        """The source of `steady` streaming: mel [1, C, T] -> [1, 1, n]; F0 and phase in float64,
        noise by sample, None: none.
        """
        f0 = self.f0(mel, torch.float64)
        phases = noise = None
        if seed is not None:
            key, start = f0.new_full((1,), seed, dtype=torch.int64), f0.new_zeros(1, dtype=torch.int64)
            phases = harmonic_phases(key, self.config.num_harmonics + 1)
            noise = sample_noise(
                key, start, f0.shape[-1] * self.config.frame_len, self.config.num_harmonics + 1
            )
        n, cycles = f0.new_tensor([f0.shape[-1]], dtype=torch.int64), f0.new_zeros(1, dtype=torch.float64)
        return stream_source(f0, cycles, n, self.source_settings, phases, noise)[0][:, None]

    def render(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel [B, C, T], source [B, 1, n] -> samples [B, n] float32, clipped to audio_limit."""
        config = self.config
        spectrum = self._stft(source[:, 0]).to(self.dtype)
        x = whole_conv(mel.to(self.dtype), self.pre, 3)
        for stage in self.stages:
            x = self._upsample(x, spectrum, stage, is_last=stage is self.stages[-1])
        real, imag = self.head(whole_conv(x, self.post, 3))
        samples = istft(real, imag, self.window, config.hop_len)
        return samples.clamp(-config.audio_limit, config.audio_limit)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the last convolution's output [B, n_fft + 2, T] into a spectrum: log-magnitudes and phases ->
        spectrum, real and imaginary parts.
        """
        log_magnitude, phase = x.float().chunk(2, 1)
        magnitude, angle = log_magnitude.exp().clamp(max=100.0), torch.sin(phase)
        return magnitude * torch.cos(angle), magnitude * torch.sin(angle)

    def _stft(self, source: Tensor) -> Tensor:
        """[B, n] -> real parts, then imaginary parts: [B, n_fft + 2, n / hop + 1]."""
        n_fft = self.config.n_fft
        spectrum = torch.stft(source, n_fft, self.config.hop_len, n_fft, self.window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], 1)

    def _upsample(self, x: Tensor, spectrum: Tensor, stage: HiftStage, is_last: bool) -> Tensor:
        x = whole_conv(x, stage.up, (stage.up.weight.shape[-1] - stage.up.stride) // 2)
        if is_last:
            x = F.pad(x, (1, 0), mode="reflect")
        x = x + stage.source_block(whole_conv(spectrum, stage.source_down, stage.source_down.stride // 2))
        blocks = [block(x) for block in stage.blocks]
        return sum(blocks[1:], blocks[0]) / len(blocks)


def _conv(
    weights: Tensors, name: str, stride: int = 1, *, is_transposed: bool = False, slope: float = 1.0
) -> StreamConvWeights:
    return StreamConvWeights(*affine(weights, name), stride, is_transposed=is_transposed, slope=slope)


def _stage(config: HiftConfig, weights: Tensors, stage: int) -> HiftStage:
    first = stage * len(config.resblock_kernels)
    return HiftStage(
        up=_conv(
            weights, f"ups.{stage}", config.upsample_rates[stage], is_transposed=True, slope=config.slope
        ),
        source_down=_conv(weights, f"source_downs.{stage}", math.prod(config.upsample_rates[stage + 1 :])),
        source_block=_resblock(weights, f"source_resblocks.{stage}", config.source_dilations[stage]),
        blocks=[
            _resblock(weights, f"resblocks.{first + i}", row)
            for i, row in enumerate(config.resblock_dilations)
        ],
    )


def _resblock(weights: Tensors, name: str, dilations: tuple[int, ...]) -> ResBlock:
    units = []
    for i, dilation in enumerate(dilations):
        first, second = affine(weights, f"{name}.convs1.{i}"), affine(weights, f"{name}.convs2.{i}")
        alpha, beta = (weights[f"{name}.activations{half}.{i}.alpha"] for half in (1, 2))
        units.append(
            ResidualWeights(alpha, first.weight, first.bias, beta, second.weight, second.bias, dilation)
        )
    return ResBlock(units)
