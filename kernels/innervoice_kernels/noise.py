"""Normal noise by absolute place   N(seed, stream, place, lane)        the same however a stream is cut, on every device

Philox4x32-10 with key (seed, stream) and counter (c0, c1, 0, 0) gives four words w0 ... w3; with u = ((w >> 9) + 1/2) / 2**23,
Box and Muller (1958) make four normals: r cos a, r sin a, r' cos a', r' sin a' of r = sqrt(-2 ln u0), a = 2 pi u1 and of u2, u3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, choose
from innervoice_kernels.native import team
from innervoice_kernels.philox import LOW, philox_ref

FLOW_STREAM, SOURCE_STREAM, PHASE_STREAM, CODEC_STREAM = 0, 1, 2, 3


def uniforms(seed: Tensor, stream: int, first: Tensor, second: Tensor) -> Tensor:
    """In (0, 1), float32: seed, first, second int64 broadcast to [...] -> [..., 4]."""
    zero = torch.zeros((), dtype=torch.int64, device=first.device)
    words = philox_ref((first & LOW, second & LOW, zero, zero), (seed & LOW, zero + stream))
    return ((torch.stack(words, -1) >> 9).float() + 0.5) * 2.0**-23


def normals(seed: Tensor, stream: int, first: Tensor, second: Tensor) -> Tensor:
    """Four normals a counter, float32: seed, first, second int64 broadcast to [...] -> [..., 4]."""
    u = uniforms(seed, stream, first, second)
    radius, angle = (-2 * u[..., 0::2].contiguous().log()).sqrt(), u[..., 1::2].contiguous() * (2 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)


def _grid_ref(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    lanes = torch.arange(seconds, device=first.device)[:, None]
    return normals(seed[:, None, None], stream, first[:, None], lanes)


def _grid_native(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    rows, count = first.shape
    made = torch.empty(rows, seconds, count, 4)
    _C.fill_normals(team(), seed.expand(rows).contiguous(), stream, first.contiguous(), made)
    return made


def normal_grid(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    """Four normals of each counter (first[b, f], s): seed [B], first [B, F] int64 -> [B, seconds, F, 4] float32."""
    run = _grid_native if choose("normal_grid", first, has_native=True) == NATIVE else _grid_ref
    return run(seed, stream, first, seconds)


def frame_noise(seed: Tensor, frames: Tensor, channels: int) -> Tensor:
    """The flow's noise: seed [B], absolute frames [B, T] -> [B, channels, T]; channel 4 i + j is normal j of (frame, i)."""
    made = normal_grid(seed, FLOW_STREAM, frames, -(-channels // 4))  # [B, channels / 4, T, 4]
    return made.transpose(2, 3).flatten(1, 2)[:, :channels]


def sample_noise(seed: Tensor, start: Tensor, count: int, harmonics: int) -> Tensor:
    """The source's noise: seed, absolute start [B], start and count multiples of 4 -> [B, harmonics, count].

    Sample 4 i + j of harmonic h is normal j of (i, h).
    """
    quads = (start // 4)[:, None] + torch.arange(count // 4, device=start.device)
    return normal_grid(seed, SOURCE_STREAM, quads, harmonics).flatten(2)


def harmonic_phases(seed: Tensor, harmonics: int) -> Tensor:
    """Random phases in radians, [-pi, pi), 0 for the fundamental: seed [B] -> [B, harmonics]; harmonic h: word 0 of (h, 0)."""
    lanes = torch.arange(harmonics, device=seed.device)
    phase = uniforms(seed[:, None], PHASE_STREAM, lanes, torch.zeros_like(lanes))[..., 0] * (2 * math.pi) - math.pi
    return phase.masked_fill(lanes == 0, 0)
