"""Cases of the codec's ops, and which code ids are near-ties."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.speech_codec import istft, mel, noise, snake, source, stft, vq
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, normal, on_host, rows

_EPS = torch.finfo(torch.float32).eps


def _snake_case(
    name: str, batch: int, channels: int, time: int, skip: int = 0, transposed: bool = False
) -> Case:
    """transposed: a view of [B, T, C]. The first channel's alpha is 0."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        shape = (batch, time, channels) if transposed else (batch, channels, time)
        x = rows(*shape, dtype=dtype, device=device, generator=generator, skip=skip)
        alpha = 1 + 0.5 * normal(channels, dtype=dtype, device=device, generator=generator)
        alpha[:1] = 0
        return {"x": x.mT if transposed else x, "alpha": alpha}

    return Case(name, make)


def _istft_case(
    name: str, batch: int, time: int, n_fft: int = 16, hop: int = 4, transposed: bool = False, skip: int = 0
) -> Case:
    """transposed: views of [B, T, F]. The imaginary parts of the lowest and highest bin are not 0: they are
    to be ignored.
    """

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        bins = n_fft // 2 + 1
        shape = (batch, time, bins) if transposed else (batch, bins, time)
        parts = [rows(*shape, dtype=dtype, device=device, generator=generator, skip=skip) for _ in range(2)]
        real, imag = (x.mT if transposed else x for x in parts)
        return {
            "real": real,
            "imag": imag,
            "window": torch.hann_window(n_fft, dtype=torch.float32, device="cpu").to(dtype).to(device),
            "hop": hop,
        }

    return Case(name, make)


# Row by row: columns brought (frames for the inverse), position of the first, end of the signal.
_Rows = list[tuple[int, int, int]]


def _placed(places: _Rows, device: DeviceName) -> Inputs:
    parts = [torch.tensor([place[i] for place in places], dtype=torch.int64, device=device) for i in range(3)]
    return dict(zip(("n", "start", "end"), parts, strict=True))


def _stft_case(name: str, places: _Rows, columns: int, n_fft: int = 16, hop: int = 4) -> Case:
    """Where a row begins at position 0 the state must not be read, and neither must the columns after its end."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x, state = (
            rows(len(places), size, dtype=dtype, device=device, generator=generator)
            for size in (columns, n_fft - hop)
        )
        for row, (_, start, end) in enumerate(places):
            state[row, : max(0, n_fft - hop - start)] = 1e4
            x[row, max(0, end - start) :] = 1e4
        window = torch.hann_window(n_fft, dtype=dtype, device=device)
        return {"x": x, "state": state, "window": window, "hop": hop, **_placed(places, device)}

    return Case(name, make)


def _run_stft(function: Any, x: Tensor, n: Tensor, hop: int, **given: Tensor) -> tuple[Tensor, Tensor]:
    """Frames that begin behind a row's own columns are undefined: they are set to 0."""
    y, state = function(x, n=n, hop=hop, **given)
    return y.masked_fill(
        (torch.arange(y.shape[-1], device=x.device, dtype=torch.int64) >= (n // hop)[:, None])[:, None], 0
    ), state


def _source_case(
    name: str, n: list[int], frames: int, harmonics: int = 9, frame_len: int = 256, random: bool = True
) -> Case:
    """Every third frame is unvoiced."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        batch = len(n)
        f0 = (
            150
            + 100 * torch.rand(batch, frames, generator=on_host(generator), dtype=torch.float64, device="cpu")
        ).to(device)
        f0[:, ::3] = 0
        cycles = torch.rand(batch, generator=on_host(generator), dtype=torch.float64, device="cpu").to(device)
        shape = {"dtype": dtype, "device": device, "generator": generator}
        phases = normal(batch, harmonics, **shape) if random else None  # type: ignore[arg-type]
        noise = normal(batch, harmonics, frames * frame_len, **shape) if random else None  # type: ignore[arg-type]
        weight, bias = normal(1, harmonics, **shape), 0.1 * normal(1, **shape)  # type: ignore[arg-type]
        settings = {
            "sample_rate": 22050,
            "frame_len": frame_len,
            "amplitude": 0.1,
            "sigma": 0.003,
            "voiced_above": 10.0,
        }
        lengths = torch.tensor(n, dtype=torch.int64, device=device)
        return {"f0": f0, "cycles": cycles, "n": lengths, "phases": phases, "noise": noise, "weight": weight, "bias": bias,
                **settings}  # fmt: skip

    return Case(name, make)


def _run_source(
    function: Any,
    f0: Tensor,
    cycles: Tensor,
    n: Tensor,
    phases: Tensor | None,
    noise: Tensor | None,
    **given: Any,
) -> tuple[Tensor, Tensor]:
    return function(f0, cycles, n, source.SourceSettings(**given), phases, noise)  # type: ignore[no-any-return]


def _noise_case(name: str, rows: int, frames: int, seconds: int, stream: int = 1) -> Case:
    """Seeds of more than 32 bits, and counters that begin anywhere."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        seed = torch.randint(
            0, 1 << 40, (rows,), generator=on_host(generator), dtype=torch.int64, device="cpu"
        ).to(device)
        begin = torch.randint(
            0, 1 << 33, (rows, 1), generator=on_host(generator), dtype=torch.int64, device="cpu"
        )
        first = (begin + torch.arange(frames, dtype=torch.int64, device="cpu")).to(device)
        return {"seed": seed, "stream": stream, "first": first, "seconds": seconds}

    return Case(name, make)


def _stream_istft_case(name: str, places: _Rows, frames: int, n_fft: int = 16, hop: int = 4) -> Case:
    """Frames that count for nothing hold large numbers."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        shape = (len(places), n_fft // 2 + 1, frames)
        real, imag = (rows(*shape, dtype=dtype, device=device, generator=generator) for _ in range(2))
        state = rows(len(places), n_fft - hop, dtype=dtype, device=device, generator=generator)
        for row, (n, _, _) in enumerate(places):
            real[row, :, n:] = 1e4
        window = torch.hann_window(n_fft, dtype=dtype, device=device)
        return {
            "real": real,
            "imag": imag,
            "state": state,
            "window": window,
            "hop": hop,
            **_placed(places, device),
        }

    return Case(name, make)


def _code_case(name: str, *shape: int, codes: int, skip: int = 0, double: bool = False) -> Case:
    """double: every code stands twice in the codebook, of which the first is to be found."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        x = rows(*shape, dtype=dtype, device=device, generator=generator, skip=skip)
        codebook = rows(codes, shape[-1], dtype=dtype, device=device, generator=generator, skip=skip)
        return {"x": x, "codebook": codebook.repeat(2, 1) if double else codebook}

    return Case(name, make)


def near_tie(inputs: Inputs, ids: Tensor) -> Tensor:
    """A code whose squared distance exceeds the least by no more than float32's rounding of a sum of D terms.

    That is sqrt(D) eps (|x| + |c|)^2, c being the longest code.
    """
    codebook: Tensor = inputs["codebook"]  # [K, D]
    width = codebook.shape[-1]
    flat, picked = inputs["x"].reshape(-1, width), ids.flatten()
    known = (picked >= 0) & (picked < len(codebook))
    length = codebook.norm(dim=-1)
    least = (length.square() - 2 * flat @ codebook.T).amin(-1) + flat.square().sum(-1)
    own = (flat - codebook[picked.clamp(0, len(codebook) - 1)]).square().sum(-1)
    slack = width**0.5 * _EPS * (flat.norm(dim=-1) + length.max()).square()
    is_tie: Tensor = known & (own <= least + slack)
    return is_tie.reshape(ids.shape)


def _log_frames_case(name: str, *shape: int, n_fft: int = 400, hop: int = 160, bins: int = 128) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        samples = 0.1 * rows(*shape, dtype=dtype, device=device, generator=generator)
        return {"samples": samples, "filters": mel.mel_filters(bins, n_fft, 16000).to(device), "hop": hop}

    return Case(name, make)


def _mel_case(
    name: str,
    batch: int,
    time: int,
    n_fft: int = 400,
    hop: int = 160,
    bins: int = 128,
    rate: int = 16000,
    silent: int = 0,
    skip: int = 0,
) -> Case:
    """silent: rows that are 0 throughout."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        samples = 0.1 * rows(batch, time, dtype=dtype, device=device, generator=generator, skip=skip)
        samples[:silent] = 0
        return {"samples": samples, "filters": mel.mel_filters(bins, n_fft, rate).to(device), "hop": hop}

    return Case(name, make)


# A chunk of 26 tokens is 179 mel frames, of which the vocoder makes 8 and then 64 times as many.
_STAGES = ((256, 8 * 179), (128, 64 * 179 + 1))

OPS = (
    Op("snake", snake.snake, snake.snake_ref, (
        _snake_case("one", 1, 1, 1), _snake_case("primes", 2, 7, 131),
        _snake_case("wide rows", 2, 5, 64, skip=32), _snake_case("channels last", 2, 8, 33, transposed=True),
        _snake_case("empty", 0, 4, 8), _snake_case("no time", 2, 4, 0),
    ), real=tuple(_snake_case(f"{channels} x {time}", 1, channels, time) for channels, time in _STAGES)),
    Op("istft", istft.istft, istft.istft_ref, (
        _istft_case("two frames", 1, 2), _istft_case("one frame", 1, 1),
        _istft_case("primes", 3, 13, n_fft=22, hop=7), _istft_case("long", 1, 401),
        _istft_case("wide rows", 2, 9, skip=5), _istft_case("frames first", 2, 9, transposed=True),
        _istft_case("empty", 0, 5),
    ), real=(_istft_case("chunk of 26 tokens", 1, _STAGES[1][1]),)),
    Op("stream_stft", partial(_run_stft, stft.stream_stft), partial(_run_stft, stft.stream_stft_ref), (
        _stft_case("begins", [(64, 0, 1 << 40)], 64),
        _stft_case("ends", [(64, 400, 440), (0, 8, 9999), (20, 4, 24)], 64),
        _stft_case("goes on", [(812, 12, 1 << 40), (4, 0, 1 << 40)], 812),
        _stft_case("other sizes", [(44, 22, 60)], 44, 44, 11),
        _stft_case("short", [(4, 400, 404), (0, 400, 500)], 4), _stft_case("empty", [], 8),
    ), real=(_stft_case("chunk of 26 tokens", [(179 * 256, 5120, 1 << 40)], 179 * 256),
    ), dtypes=(torch.float32, )), Op("stream_source", partial(_run_source,
    source.stream_source), partial(_run_source, source.stream_source_ref), (
        _source_case("one", [1], 1, 1, 4, random=False), _source_case("primes", [7, 0], 11, 3, 13),
        _source_case("model", [5], 5), _source_case("empty", [], 3),
    ), real=(_source_case("chunk of 26 tokens", [179], 179),), dtypes=(torch.float32,)),
    Op("normal_grid", noise.normal_grid, noise.normal_grid_ref, (
        _noise_case("one", 1, 1, 1), _noise_case("primes", 3, 257, 5, 0), _noise_case("exact", 1, 256, 1),
        _noise_case("empty", 2, 0, 3),
    ), real=(_noise_case("the source's, a chunk of 26 tokens", 1, 179 * 64, 9),
             _noise_case("the flow's, a window", 1, 896, 20, 0)), dtypes=(torch.float32,),
       exact=partial(noise.normal_grid_ref, dtype=torch.float64)),
    Op("stream_istft", istft.stream_istft, istft.stream_istft_ref, (
        _stream_istft_case("begins", [(16, 0, 1 << 40), (5, -7, 1 << 40)], 16),
        _stream_istft_case("ends", [(19, 90, 101), (0, 3, 1 << 40), (1, 5, 6)], 19),
        _stream_istft_case("goes on", [(99, 44, 1 << 40), (70, -2, 60)], 99),
        _stream_istft_case("other sizes", [(9, 0, 12)], 11, 44, 11), _stream_istft_case("empty", [], 8),
    ), real=(_stream_istft_case("chunk of 26 tokens", [(179 * 64, 1280, 1 << 40)], 179 * 64),
    ), dtypes=(torch.float32, )), Op("log_frames", mel.log_frames, mel.log_frames_ref, (
        _log_frames_case("one frame", 64, n_fft=64, hop=16, bins=16),
        _log_frames_case("primes", 3, 7 * 13, n_fft=22, hop=7, bins=5),
        _log_frames_case("many", 2, 1700, n_fft=80, hop=32, bins=20), _log_frames_case("empty", 0, 800),
    ), real=(_log_frames_case("4 s", 1, 64240),), dtypes=(torch.float32,)),
    Op("nearest_code", vq.nearest_code, vq.nearest_code_ref, (
        _code_case("one", 1, 1, codes=1), _code_case("primes", 7, 13, codes=131),
        _code_case("three dims", 2, 3, 16, codes=64), _code_case("wide rows", 5, 32, codes=50, skip=16),
        _code_case("equal codes", 41, 8, codes=37, double=True), _code_case("crowded", 67, 2, codes=5000),
        _code_case("empty", 0, 16, codes=8),
    ), real=(
        _code_case("one token", 1, 1280, codes=16384), _code_case("2 s", 25, 1280, codes=16384),
        _code_case("30 s", 375, 1280, codes=16384),
    ), near_tie=near_tie),
    Op("log_mel", mel.log_mel, mel.log_mel_ref, (
        _mel_case("two frames", 1, 320), _mel_case("primes", 3, 7 * 13, n_fft=22, hop=7, bins=5, rate=8000),
        _mel_case("one mel", 1, 64, n_fft=16, hop=8, bins=1, rate=8000),
        _mel_case("wide rows", 2, 1600, skip=100), _mel_case("silent row", 3, 800, silent=1),
        _mel_case("empty", 0, 800),
    ), real=(_mel_case("2 s", 1, 32000), _mel_case("30 s", 1, 480000)), dtypes=(torch.float32,)),
)  # fmt: skip
