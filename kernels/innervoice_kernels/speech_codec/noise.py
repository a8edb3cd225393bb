"""Normal noise by absolute place   N(seed, stream, place, lane)
the same however a stream is cut, on every device

Philox4x32-10 with key (seed, stream) and counter (c0, c1, 0, 0) gives four words w0 ... w3; with u = ((w >>
9) + 1/2) / 2**23, Box and Muller (1958) make four normals: r cos a, r sin a, r' cos a', r' sin a' of r =
sqrt(-2 ln u0), a = 2 pi u1 and of u2, u3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Block, Num, Ptr, cdiv, constexpr, jit, launch, tl
from innervoice_kernels.native import team
from innervoice_kernels.sampling.philox import LOW, philox_ref

FLOW_STREAM = 0
SOURCE_STREAM = 1
PHASE_STREAM = 2
CODEC_STREAM = 3


def uniforms(
    seed: Tensor, stream: int, first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """In (0, 1): seed, first, second int64 broadcast to [...] -> [..., 4]."""
    zero = torch.zeros((), dtype=torch.int64, device=first.device)
    words = philox_ref((first & LOW, second & LOW, zero, zero), (seed & LOW, zero + stream))
    return ((torch.stack(words, -1) >> 9).to(dtype) + 0.5) * 2.0**-23


def normals(
    seed: Tensor, stream: int, first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Four normals a counter: seed, first, second int64 broadcast to [...] -> [..., 4]."""
    u = uniforms(seed, stream, first, second, dtype)
    radius, angle = (-2 * u[..., 0::2].contiguous().log()).sqrt(), u[..., 1::2].contiguous() * (2 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)


def normal_grid_ref(
    seed: Tensor, stream: int, first: Tensor, seconds: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The definition of the noise."""
    lanes = torch.arange(seconds, device=first.device, dtype=torch.int64)[:, None]
    return normals(seed[:, None, None], stream, first[:, None], lanes, dtype)


def _grid_native(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    rows, count = first.shape
    made = torch.empty(rows, seconds, count, 4, dtype=torch.float32, device="cpu")
    _C.fill_normals(team(), seed.expand(rows).contiguous(), stream, first.contiguous(), made)
    return made


@jit
def _half(word: Block) -> Block:
    """A word as a number in (0, 1)."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23


@jit
def _normals_kernel(
    seed: Ptr, first: Ptr, y: Ptr, F: Num, SECONDS: constexpr, STREAM: constexpr, BLOCK: constexpr
) -> None:
    """BLOCK counters of one row and one second counter a program, four normals each."""
    row, second = tl.program_id(1).to(tl.int64) // SECONDS, tl.program_id(1) % SECONDS
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = f < F
    counter = tl.load(first + row * F + f, mask=known, other=0).to(tl.uint32)
    zero = tl.zeros_like(counter)
    key = (tl.load(seed + row) & 0xFFFFFFFF) + STREAM * 4294967296
    w0, w1, w2, w3 = tl.philox(key, counter, zero + second.to(tl.uint32), zero, zero)
    near, far = tl.sqrt_rn(-2 * tl.log(_half(w0))), tl.sqrt_rn(-2 * tl.log(_half(w2)))
    one, two = _half(w1) * 6.283185307179586, _half(w3) * 6.283185307179586
    cosines = tl.join(near * tl.cos(one), far * tl.cos(two))
    made = tl.reshape(tl.join(cosines, tl.join(near * tl.sin(one), far * tl.sin(two))), [4 * BLOCK])
    place = tl.program_id(0) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(y + tl.program_id(1).to(tl.int64) * (4 * F) + place, made, mask=place < 4 * F)


_BLOCK = 256  # two counters a thread of 4 warps, each of ten rounds


def _grid_triton(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    rows, count = first.shape
    made = torch.empty(rows, seconds, count, 4, device=first.device, dtype=torch.float32)
    launch(
        _normals_kernel, (cdiv(count, _BLOCK), rows * seconds), seed.expand(rows).contiguous(),
        first.contiguous(), made, count, SECONDS=seconds, STREAM=stream, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return made


def normal_grid(seed: Tensor, stream: int, first: Tensor, seconds: int) -> Tensor:
    """Four normals of each counter (first[b, f], s): seed [B], first [B, F] int64
    -> [B, seconds, F, 4] float32.
    """
    runs = {NATIVE: _grid_native, TRITON: _grid_triton}
    return runs.get(choose("normal_grid", first, has_native=True), normal_grid_ref)(
        seed, stream, first, seconds
    )


def frame_noise(seed: Tensor, frames: Tensor, channels: int) -> Tensor:
    """The flow's noise: seed [B], absolute frames [B, T] -> [B, channels, T]; channel 4 i +
    j is normal j of (frame, i).
    """
    made = normal_grid(seed, FLOW_STREAM, frames, -(-channels // 4))  # [B, channels / 4, T, 4]
    return made.transpose(2, 3).flatten(1, 2)[:, :channels]


def sample_noise(seed: Tensor, start: Tensor, count: int, harmonics: int) -> Tensor:
    """The source's noise: seed, absolute start [B], start and count multiples of 4 -> [B, harmonics, count].

    Sample 4 i + j of harmonic h is normal j of (i, h).
    """
    quads = (start // 4)[:, None] + torch.arange(count // 4, device=start.device, dtype=torch.int64)
    return normal_grid(seed, SOURCE_STREAM, quads, harmonics).flatten(2)


def harmonic_phases(seed: Tensor, harmonics: int) -> Tensor:
    """Random phases in radians, [-pi, pi), 0 for the fundamental: seed [B] -> [B, harmonics];
    harmonic h: word 0 of (h, 0).
    """
    lanes = torch.arange(harmonics, device=seed.device, dtype=torch.int64)
    phase = (
        uniforms(seed[:, None], PHASE_STREAM, lanes, torch.zeros_like(lanes))[..., 0] * (2 * math.pi)
        - math.pi
    )
    return phase.masked_fill(lanes == 0, 0)
