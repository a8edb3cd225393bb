"""STFT over a stream   X_k = rfft(w * z[hop k - n_fft / 2 : hop k + n_fft / 2])
z: a signal reflected at both its ends

x: [B, T]   ->   real parts, then imaginary parts: [B, n_fft + 2, T / hop].
A frame is late by n_fft / (2 hop) - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Num, Ptr, cdiv, constexpr, dot, jit, launch, next_power, tl
from innervoice_kernels.native import team
from innervoice_kernels.speech_codec.conv import shifted
from innervoice_kernels.speech_codec.fourier import forward_table, native_transform


def stream_stft_ref(
    x: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition of the streaming transform.

    start [B]: position of x's column 0; end [B]: the signal's length; state [B, n_fft - hop]: the past.

    Column j is frame (start - n_fft / 2) / hop + 1 + j. What a frame that reaches over an end is made of must
    be in state ++ x. n_fft is a multiple of 2 hop.
    """
    n_fft = window.shape[0]
    if not x.shape[0]:  # which the FFT refuses
        return x.new_empty(0, n_fft + 2, x.shape[1] // hop), state
    past = torch.cat([state, x], -1)
    size = past.shape[-1]
    first = start - state.shape[-1]  # position of past's column 0
    place = torch.arange(x.shape[-1] // hop, device=x.device, dtype=torch.int64)[
        :, None
    ] * hop + torch.arange(n_fft, device=x.device, dtype=torch.int64)
    position = (first[:, None, None] + place).abs()  # [B, frames, n_fft]
    last = end[:, None, None] - 1
    position = torch.where(position > last, 2 * last - position, position)
    index = (position - first[:, None, None]).clamp(0, size - 1).flatten(1)
    spectrum = torch.fft.rfft(past.gather(1, index).view(position.shape) * window)
    return torch.cat([spectrum.real, spectrum.imag], -1).transpose(1, 2), shifted(past, n, state.shape[-1])


def _stream_stft_native(
    x: Tensor,
    state: Tensor,
    n: Tensor,
    window: Tensor,
    hop: int,
    start: Tensor,
    end: Tensor,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    n_fft = window.shape[0]
    y, after = (
        torch.empty(x.shape[0], n_fft + 2, x.shape[1] // hop, dtype=torch.float32, device="cpu"),
        torch.empty(state.shape, dtype=torch.float32, device="cpu"),
    )
    native_transform(n_fft, isa).stft(
        team(), x.contiguous(), state.contiguous(), n, window, hop, start, end, y, after
    )
    return y, after


@jit
def _stream_stft_kernel(
    x: Ptr, state: Ptr, n: Ptr, window: Ptr, table: Ptr, start: Ptr, end: Ptr, y: Ptr, after: Ptr, T: Num,
    FRAMES: Num, HOP: constexpr, N: constexpr, KEPT: constexpr, BLOCK_KEPT: constexpr, TILE: constexpr,
    DEPTH: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """TILE frames of a row and COLUMNS of its real and imaginary parts a program; the
    first one keeps the state too.
    """
    row, column = tl.program_id(2).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    frame = tl.program_id(0) * TILE + tl.arange(0, TILE)
    origin, last = tl.load(start + row) - KEPT, tl.load(end + row) - 1
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, N, DEPTH):
        i = first + tl.arange(0, DEPTH)
        position = tl.abs(origin + (frame * HOP)[:, None] + i[None, :])
        position = tl.where(position > last, 2 * last - position, position)
        place = tl.minimum(tl.maximum(position - origin, 0), KEPT + T - 1)
        known = (frame < FRAMES)[:, None] & (i < N)[None, :]
        old = tl.load(state + row * KEPT + place, mask=known & (place < KEPT), other=0.0)
        new = tl.load(x + row * T + place - KEPT, mask=known & (place >= KEPT), other=0.0)
        shape = tl.load(window + i, mask=i < N, other=0.0)[None, :]
        factors = tl.load(
            table + i[:, None] * (N + 2) + column[None, :],
            mask=(i < N)[:, None] & (column < N + 2)[None, :],
            other=0.0,
        )
        total = dot(tl.where(place < KEPT, old, new) * shape, factors, total)
    out = y + (row * (N + 2) + column[None, :]) * FRAMES + frame[:, None]
    tl.store(out, total, mask=(frame < FRAMES)[:, None] & (column < N + 2)[None, :])
    if tl.program_id(0) + tl.program_id(1) == 0:
        i = tl.arange(0, BLOCK_KEPT)
        place = tl.load(n + row) + i
        old = tl.load(state + row * KEPT + place, mask=(i < KEPT) & (place < KEPT), other=0.0)
        new = tl.load(x + row * T + place - KEPT, mask=(i < KEPT) & (place >= KEPT), other=0.0)
        tl.store(after + row * KEPT + i, tl.where(place < KEPT, old, new), mask=i < KEPT)


def _stream_stft_triton(
    x: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    (rows, columns), n_fft = x.shape, window.shape[0]
    frames, kept = columns // hop, n_fft - hop
    y = torch.empty(rows, n_fft + 2, frames, dtype=x.dtype, device=x.device)
    after = torch.empty_like(state, memory_format=torch.contiguous_format)
    launch(
        _stream_stft_kernel, (max(1, cdiv(frames, 64)), cdiv(n_fft + 2, 32), rows), x.contiguous(),
        state.contiguous(), n.contiguous(), window, forward_table(n_fft, x.device), start.contiguous(),
        end.contiguous(), y, after, columns, frames, HOP=hop, N=n_fft, KEPT=kept, BLOCK_KEPT=next_power(kept),
        TILE=64, DEPTH=16, COLUMNS=32, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y, after


def stream_stft(
    x: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of a centred STFT with reflected ends: x [B, T] -> [B, n_fft + 2, T / hop], state'."""
    run = stream_stft_ref
    if x.dtype == torch.float32 == window.dtype:
        run = {NATIVE: _stream_stft_native, TRITON: _stream_stft_triton}.get(
            choose("stream_stft", x, has_native=True), run
        )
    return run(x, state, n, window, hop, start, end)
