"""The vocoder's source over a stream   e = tanh(W s + b),   s_h = A sin(2 pi h c + phi_h) voiced + sigma z    [B, T] -> [B, L T]

L: samples a frame; c: cycles of the fundamental, summed in float64 modulo 1; z: unit noise; sigma: A / 3 where unvoiced.
(Wang et al. 2019, the neural source filter)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, choose
from innervoice_kernels.native import floats, team


@dataclass(frozen=True)
class SourceSettings:
    """Hz and samples; weight [1, H], bias [1] merge the harmonics."""

    weight: Tensor
    bias: Tensor
    sample_rate: int
    frame_len: int
    amplitude: float
    sigma: float
    voiced_above: float


def stream_source_ref(
    f0: Tensor, cycles: Tensor, n: Tensor, settings: SourceSettings, phases: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition. f0 [B, T] in Hz, any float; cycles [B] float64; phases [B, H]; noise [B, H, L T] -> e [B, L T], cycles'.

    None: zero phases, no noise. Row b brings n[b] frames.
    """
    steps = f0.double() / settings.sample_rate  # cycles a sample
    ends = cycles[:, None] + (steps * settings.frame_len).cumsum(-1)
    begins = torch.cat([cycles[:, None], ends], -1)
    inside = torch.arange(1, settings.frame_len + 1, device=f0.device)
    fundamental = begins[:, :-1, None] % 1 + steps[..., None] * inside  # [B, T, frame_len]
    harmonics = torch.arange(1, settings.weight.shape[1] + 1, device=f0.device)[:, None]
    angle = (2 * math.pi) * (fundamental.flatten(1)[:, None] * harmonics % 1).float()  # [B, H, T frame_len]
    if phases is not None:
        angle = angle + phases[..., None]
    voiced = (f0 > settings.voiced_above).float().repeat_interleave(settings.frame_len, -1)[:, None]
    sines = settings.amplitude * torch.sin(angle) * voiced
    if noise is not None:
        sines = sines + (voiced * settings.sigma + (1 - voiced) * (settings.amplitude / 3)) * noise
    merged = torch.tanh(settings.weight.float() @ sines + settings.bias.float()[:, None])[:, 0]
    return merged, begins.gather(1, n[:, None])[:, 0] % 1


def _stream_source_native(
    f0: Tensor, cycles: Tensor, n: Tensor, settings: SourceSettings, phases: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = torch.empty(f0.shape[0], f0.shape[1] * settings.frame_len)
    after = torch.empty_like(cycles, dtype=torch.float64)
    phases, noise = (None if x is None else floats(x) for x in (phases, noise))
    _C.stream_source(
        team(), f0.double().contiguous(), cycles.double().contiguous(), n.contiguous(), phases, noise,
        floats(settings.weight[0]), float(settings.bias), settings.sample_rate, settings.frame_len, settings.amplitude,
        settings.sigma, settings.voiced_above, y, after,
    )  # fmt: skip
    return y, after


def stream_source(
    f0: Tensor, cycles: Tensor, n: Tensor, settings: SourceSettings, phases: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One chunk of the source: f0 [B, T] -> samples [B, T frame_len] float32, and the cycles after n[b] frames."""
    run = _stream_source_native if choose("stream_source", f0, has_native=True) == NATIVE else stream_source_ref
    return run(f0, cycles, n, settings, phases, noise)
