"""Inverse STFT   y = sum_t w * irfft(X_t) at t * hop / sum_t w^2, without n_fft/2 samples at either end

real, imag: [B, n_fft/2 + 1, T]   window: [n_fft]   ->   [B, hop * (T - 1)]      (Griffin and Lim 1984)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, next_power, tl
from innervoice_kernels.native import floats, team
from innervoice_kernels.speech_codec.conv import add_overlap, beyond
from innervoice_kernels.speech_codec.fourier import inverse_table, native_transform

_STEPS = 32  # of `hop` samples that a program makes


def istft_ref(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """The definition, in float32 or wider. Imaginary parts of the lowest and highest bin are ignored."""
    n_fft, wide = window.shape[0], torch.promote_types(real.dtype, torch.float32)
    w = window.to(wide)
    frames = _frames(real.to(wide), imag.to(wide), w)
    envelope = _overlap_add(w.square()[:, None].expand(1, -1, frames.shape[-1]), hop)
    trimmed = slice(n_fft // 2, envelope.shape[-1] - n_fft // 2)
    return _overlap_add(frames, hop)[:, trimmed] / envelope[:, trimmed]


def istft(real: Tensor, imag: Tensor, window: Tensor, hop: int) -> Tensor:
    """Samples of a one-sided spectrum: real, imag [B, n_fft/2 + 1, T] ->
    [B, hop * (T - 1)], float32 or wider.
    """
    chosen = _chosen("istft", real, window)
    if chosen is None:
        return istft_ref(real, imag, window, hop)
    rows, _, frames = real.shape
    n = torch.full((rows,), frames, device=real.device, dtype=torch.int64)
    half, columns = window.shape[0] // 2, hop * (frames - 1)
    return chosen(real, imag, None, n, window, hop, torch.zeros_like(n), n, half, columns)[0]


def stream_istft_ref(
    real: Tensor, imag: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The same over a stream.

    start [B]: position of the first frame; end [B]: number of frames; state [B, n_fft - hop]: overlap.

    -> y [B, hop T], state'. Column 0 of y is sample hop * start - n_fft / 2 of the whole: it is the caller's
    to drop what lies before 0 or after hop * (end - 1). Frames outside [0, end) count for nothing.
    """
    steps = real.shape[-1]
    wide = torch.promote_types(real.dtype, torch.float32)
    w = window.to(wide)
    frames = _frames(real.to(wide), imag.to(wide), w)
    position = start[:, None] + torch.arange(steps, device=real.device, dtype=torch.int64)
    outside = (position < 0) | (position >= end[:, None])
    summed = _overlap_add(frames.masked_fill((outside | beyond(n, steps))[:, None], 0), hop)
    summed, after = add_overlap(summed, state, n * hop)
    y = summed[:, : hop * steps] / _envelope(w, hop, start, end, steps)
    return y, torch.where((n == 0)[:, None], state, after)


def stream_istft(
    real: Tensor, imag: Tensor, state: Tensor, n: Tensor, window: Tensor, hop: int, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of frames to samples: real, imag [B, n_fft/2 + 1, T] -> y [B, hop T], state'."""
    chosen = _chosen("stream_istft", real, window)
    if chosen is None:
        return stream_istft_ref(real, imag, state, n, window, hop, start, end)
    y, after = chosen(real, imag, state, n, window, hop, start, end, 0, hop * real.shape[-1])
    assert after is not None
    return y, after


_Fast = Callable[..., tuple[Tensor, Tensor | None]]


def _chosen(op: str, real: Tensor, window: Tensor) -> _Fast | None:
    """What runs; None: the reference, for float64 too."""
    if (
        real.dtype == torch.float64
        or window.dtype == torch.float64
        or window.shape[0] % 2
        or window.shape[0] < 4
    ):
        return None
    return {NATIVE: _istft_native, TRITON: _istft_triton}.get(choose(op, real, has_native=True))


def _istft_native(
    real: Tensor, imag: Tensor, state: Tensor | None, n: Tensor, window: Tensor, hop: int, start: Tensor,
    end: Tensor, first: int, columns: int, isa: str | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    y = torch.empty(real.shape[0], columns, dtype=torch.float32, device="cpu")
    before, after = (
        (None, None)
        if state is None
        else (state.contiguous(), torch.empty(state.shape, dtype=torch.float32, device="cpu"))
    )
    native_transform(window.shape[0], isa).istft(
        team(), floats(real), floats(imag), before, n, floats(window), hop, start, end, first, y, after
    )
    return y, after


@jit
def _istft_kernel(
    real: Ptr, imag: Ptr, state: Ptr, n: Ptr, window: Ptr, table: Ptr, start: Ptr, end: Ptr, y: Ptr,
    after: Ptr, T: Num, FIRST: Count, COLUMNS: Num, HOP: constexpr, N: constexpr, REACH: constexpr,
    STATE: constexpr, STEPS: constexpr, BLOCK_HOP: constexpr, DEPTH: constexpr,
) -> None:  # fmt: skip
    """STEPS steps of HOP samples a program, each what REACH frames give it; with STATE
    the last one keeps the overlap.
    """
    row, lane = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK_HOP)
    count = tl.load(n + row)
    begin = tl.load(start + row)
    stop = tl.load(end + row)
    keeps = STATE & (tl.program_id(0) == tl.num_programs(0) - 1)
    step = tl.where(keeps, count, FIRST // HOP + tl.program_id(0) * STEPS) + tl.arange(0, STEPS)
    sample = step[:, None] * HOP + lane[None, :]  # from the first frame's begin on
    total = tl.zeros([STEPS, BLOCK_HOP], tl.float32)
    if STATE:
        was = (lane < HOP)[None, :] & (sample < N - HOP)
        total += tl.load(state + row * (N - HOP) + sample, mask=was, other=0.0)
    weight = tl.zeros([STEPS, BLOCK_HOP], tl.float32)
    for back in range(REACH):
        i = REACH - 1 - back  # the earliest frame first
        frame = step - i
        place = i * HOP + lane
        inside = (lane < HOP) & (place < N)
        shape = tl.load(window + place, mask=inside, other=0.0).to(tl.float32)
        there = (begin + frame >= 0) & (begin + frame < stop)
        weight += tl.where(there[:, None], (shape * shape)[None, :], 0.0)
        brought = there & (frame >= 0) & (frame < count)
        for first in range(0, N // 2 + 1, DEPTH):
            k = first + tl.arange(0, DEPTH)
            is_bin = k < N // 2 + 1
            at = (row * (N // 2 + 1) + k[None, :]) * T + frame[:, None]
            mask = brought[:, None] & is_bin[None, :]
            to = table + k[:, None] * N + place[None, :]
            known = is_bin[:, None] & inside[None, :]
            part = tl.load(real + at, mask=mask, other=0.0).to(tl.float32)
            total = dot(part, tl.load(to, mask=known, other=0.0) * shape[None, :], total)
            part = tl.load(imag + at, mask=mask, other=0.0).to(tl.float32)
            total = dot(part, tl.load(to + (N // 2 + 1) * N, mask=known, other=0.0) * shape[None, :], total)
    column = sample - FIRST
    is_new = (lane < HOP)[None, :] & (column >= 0) & (column < COLUMNS) & (keeps == 0)
    tl.store(y + row * COLUMNS + column, total / tl.where(weight > 1e-6, weight, 1.0), mask=is_new)
    if STATE:
        left = sample - count * HOP
        is_kept = (lane < HOP)[None, :] & (left < N - HOP) & keeps
        tl.store(after + row * (N - HOP) + left, total, mask=is_kept)


def _istft_triton(
    real: Tensor, imag: Tensor, state: Tensor | None, n: Tensor, window: Tensor, hop: int, start: Tensor,
    end: Tensor, first: int, columns: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    (rows, _, frames), n_fft = real.shape, window.shape[0]
    y = torch.empty(rows, columns, device=real.device, dtype=torch.float32)
    after = None if state is None else torch.empty_like(state, memory_format=torch.contiguous_format)
    before = y if state is None else state.contiguous()
    steps = cdiv(first + columns, hop) - first // hop if columns > 0 else 0
    reach = cdiv(n_fft, hop)
    assert reach <= _STEPS, (
        f"a window of {n_fft} with a hop of {hop}: {reach} frames overlap, at most {_STEPS} may"
    )
    launch(
        _istft_kernel, (cdiv(steps, _STEPS) + (state is not None), rows), real.contiguous(),
        imag.contiguous(), before, n.contiguous(), window.contiguous(), inverse_table(n_fft, real.device),
        start.contiguous(), end.contiguous(), y, y if after is None else after, frames, first, columns,
        HOP=hop, N=n_fft, REACH=reach, STATE=state is not None, STEPS=_STEPS, BLOCK_HOP=next_power(hop, 16),
        DEPTH=16, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y, after


def _frames(real: Tensor, imag: Tensor, window: Tensor) -> Tensor:
    """Windowed samples of each frame, [B, n_fft, T]."""
    if not real.numel():  # which the FFT refuses
        return real.new_zeros(real.shape[0], len(window), real.shape[2])
    inner = F.pad(imag[:, 1:-1], (0, 0, 1, 1))
    frames: Tensor = torch.fft.irfft(torch.complex(real, inner), len(window), dim=1)
    return frames * window[:, None]


def _envelope(window: Tensor, hop: int, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Sum of squared windows of the frames that there are, at each sample:
    [B, hop * steps]; 1 where there is none.
    """
    count = len(window) // hop
    taps = window.square().view(count, hop)  # tap i: how a frame i places back ends up here
    position = (start[:, None] + torch.arange(steps, device=window.device, dtype=torch.int64))[
        ..., None
    ] - torch.arange(count, device=window.device, dtype=torch.int64)
    there = ((position >= 0) & (position < end[:, None, None])).to(window.dtype)  # [B, T, count]
    total: Tensor = (there @ taps).flatten(1)
    return torch.where(total > 1e-6, total, torch.ones_like(total))


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, n_fft, T] -> [B, n_fft + hop * (T - 1)]."""
    n_fft, count = frames.shape[1:]
    return F.fold(frames, (1, n_fft + hop * (count - 1)), (1, n_fft), stride=(1, hop))[:, 0, 0]
