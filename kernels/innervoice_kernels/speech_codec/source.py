"""The vocoder's source over a stream   e = tanh(W s + b),   s_h = A sin(2 pi h c + phi_h) voiced + sigma z
[B, T] -> [B, L T]

L: samples a frame; c: cycles of the fundamental, summed in float64 modulo 1; z: unit noise; sigma: A / 3
where unvoiced. (Wang et al. 2019, the neural source filter)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Block, Num, Ptr, cdiv, constexpr, jit, launch, tl
from innervoice_kernels.native import floats, team

_SAMPLES = 256  # that a program makes


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
    f0: Tensor,
    cycles: Tensor,
    n: Tensor,
    settings: SourceSettings,
    phases: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The definition. f0 [B, T] in Hz, any float; cycles [B] float64; phases [B, H]; noise
    [B, H, L T] -> e [B, L T], cycles'.

    None: zero phases, no noise. Row b brings n[b] frames.
    """
    steps = f0.double() / settings.sample_rate  # cycles a sample
    begins = _begins(steps, cycles, settings)
    inside = torch.arange(1, settings.frame_len + 1, device=f0.device, dtype=torch.int64)
    fundamental = begins[:, :-1, None] % 1 + steps[..., None] * inside  # [B, T, frame_len]
    harmonics = torch.arange(1, settings.weight.shape[1] + 1, device=f0.device, dtype=torch.int64)[:, None]
    angle = (2 * math.pi) * (fundamental.flatten(1)[:, None] * harmonics % 1).float()  # [B, H, T frame_len]
    if phases is not None:
        angle = angle + phases[..., None]
    voiced = (f0 > settings.voiced_above).float().repeat_interleave(settings.frame_len, -1)[:, None]
    sines = settings.amplitude * torch.sin(angle) * voiced
    if noise is not None:
        sines = sines + (voiced * settings.sigma + (1 - voiced) * (settings.amplitude / 3)) * noise
    merged = torch.tanh(settings.weight.to(sines.dtype) @ sines + settings.bias.to(sines.dtype)[:, None])[
        :, 0
    ]
    return merged, begins.gather(1, n[:, None])[:, 0] % 1


def _begins(steps: Tensor, cycles: Tensor, settings: SourceSettings) -> Tensor:
    """Cycles before each frame and after the last, [B, T + 1]."""
    return torch.cat([cycles[:, None], cycles[:, None] + (steps * settings.frame_len).cumsum(-1)], -1)


def _stream_source_native(
    f0: Tensor,
    cycles: Tensor,
    n: Tensor,
    settings: SourceSettings,
    phases: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    y = torch.empty(f0.shape[0], f0.shape[1] * settings.frame_len, dtype=torch.float32, device="cpu")
    after = torch.empty_like(cycles, dtype=torch.float64)
    phases, noise = (None if x is None else floats(x) for x in (phases, noise))
    _C.stream_source(
        team(), f0.double().contiguous(), cycles.double().contiguous(), n.contiguous(), phases, noise,
        floats(settings.weight[0]), float(settings.bias), settings.sample_rate, settings.frame_len,
        settings.amplitude, settings.sigma, settings.voiced_above, y, after,
    )  # fmt: skip
    return y, after


@jit
def _tanh(x: Block) -> Block:
    """In float32; near 0 by Cephes's polynomial of tanhf, which keeps its digits."""
    z = x * x
    y = z * -5.70498872745e-3 + 2.06390887954e-2
    y = y * z - 5.37397155531e-2
    y = y * z + 1.33314422036e-1
    y = y * z - 3.33332819422e-1
    near = y * z * x + x
    size = tl.minimum(tl.abs(x), 20.0)
    far = 1 - 2 / (tl.exp(2 * size) + 1)
    return tl.where(size < 0.625, near, tl.where(x < 0, -far, far))


@jit
def _stream_source_kernel(
    f0: Ptr, begins: Ptr, phases: Ptr, noise: Ptr, weight: Ptr, bias: Ptr, y: Ptr, T: Num, sample_rate: Num,
    amplitude: Num, sigma: Num, threshold: Num, H: constexpr, L: constexpr, PHASES: constexpr,
    NOISE: constexpr, SAMPLES: constexpr,
) -> None:  # fmt: skip
    """One program a row's SAMPLES samples: cycles in float64, their fraction and all after it in float32."""
    row, i = tl.program_id(1).to(tl.int64), tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    frame, known = i // L, i < T * L
    pitch = tl.load(f0 + row * T + frame, mask=known, other=0.0)
    begin = tl.load(begins + row * (T + 1) + frame, mask=known, other=0.0)
    fundamental = begin - tl.floor(begin) + pitch / sample_rate * (i % L + 1).to(tl.float64)
    is_voiced = pitch > threshold
    total = tl.zeros([SAMPLES], tl.float32)
    for h in range(H):
        cycles = fundamental * (h + 1)
        angle = (cycles - tl.floor(cycles)).to(tl.float32) * 6.283185307179586
        if PHASES:
            angle += tl.load(phases + row * H + h)
        value = tl.where(is_voiced, tl.sin(angle) * amplitude, 0.0)
        if NOISE:
            rough = tl.load(noise + (row * H + h) * T * L + i, mask=known, other=0.0)
            value += tl.where(is_voiced, sigma, amplitude / 3) * rough
        total += tl.load(weight + h).to(tl.float32) * value
    made = _tanh(total + tl.load(bias).to(tl.float32))
    tl.store(y + row * T * L + i, made, mask=known)


def _stream_source_triton(
    f0: Tensor,
    cycles: Tensor,
    n: Tensor,
    settings: SourceSettings,
    phases: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    pitch = f0.double().contiguous()
    (rows, frames), size = pitch.shape, settings.frame_len
    begins = _begins(pitch / settings.sample_rate, cycles.double(), settings)
    y = torch.empty(rows, frames * size, device=f0.device, dtype=torch.float32)
    angles, rough = (y if x is None else x.float().contiguous() for x in (phases, noise))
    launch(
        _stream_source_kernel, (cdiv(frames * size, _SAMPLES), rows), pitch, begins, angles, rough,
        settings.weight.contiguous(), settings.bias, y, frames, float(settings.sample_rate),
        settings.amplitude, settings.sigma, float(settings.voiced_above), H=settings.weight.shape[1], L=size,
        PHASES=phases is not None, NOISE=noise is not None, SAMPLES=_SAMPLES, num_warps=4,
    )  # fmt: skip
    return y, begins.gather(1, n[:, None])[:, 0] % 1


def stream_source(
    f0: Tensor,
    cycles: Tensor,
    n: Tensor,
    settings: SourceSettings,
    phases: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One chunk of the source: f0 [B, T] -> samples [B, T frame_len] float32, and
    the cycles after n[b] frames.
    """
    chosen = choose("stream_source", f0, has_native=True)
    run = {NATIVE: _stream_source_native, TRITON: _stream_source_triton}.get(chosen, stream_source_ref)
    return run(f0, cycles, n, settings, phases, noise)
