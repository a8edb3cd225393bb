"""Every streaming layer: a stream cut anywhere, row by row, is one call over the whole; idle rows keep their
state bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from innervoice.checkpoint.speech_decoder import EncoderConfig, HiftConfig
from innervoice.codec.glm_voice import flow_encoder
from innervoice.codec.glm_voice.encoder_stream import EncoderStream
from innervoice.codec.glm_voice.flow_encoder import FlowEncoder
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.hift_stream import UNKNOWN_END, HiftStream
from innervoice_kernels.speech_codec.conv import stream_delay
from innervoice_kernels.speech_codec.groupnorm import group_norm_mish
from innervoice_kernels.speech_codec.istft import istft, stream_istft
from innervoice_kernels.speech_codec.noise import frame_noise, harmonic_phases, sample_noise
from innervoice_kernels.speech_codec.residual import ResidualWeights, stream_residual
from innervoice_kernels.speech_codec.snake import snake
from innervoice_kernels.speech_codec.source import SourceSettings, stream_source
from innervoice_kernels.speech_codec.stft import stream_stft
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights, stream_conv

Layer = Callable[[Tensor, list[Tensor], Tensor, Tensor], tuple[Tensor, list[Tensor]]]
KERNELS_IN_USE = [(3, 1, 1), (7, 1, 1), (11, 1, 1), (1, 1, 1), (16, 1, 8)] + [
    (k, d, 1) for k in (3, 7, 11) for d in (3, 5)
]
rows_of_cuts = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=3)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stream(
    layer: Layer, x: Tensor, state: list[Tensor], cuts: list[list[int]], unit: int, rate: float
) -> list[Tensor]:
    """Feed rows of x [B, C, T], each by its own cuts (in units of columns) until all is in: what comes out of
    each row.

    Columns that a row does not bring are NaN.
    """
    rows, total = x.shape[0], x.shape[-1]
    done, turn, out = [0] * rows, 0, [[] for _ in range(rows)]  # type: ignore[var-annotated]
    while min(done) < total:
        sizes = [cut[turn % len(cut)] * unit if turn < 50 else unit for cut in cuts]
        n = [min(size, total - at) for size, at in zip(sizes, done, strict=True)]
        turn += 1
        if max(n) == 0:
            continue
        chunk = torch.full((rows, x.shape[1], max(n)), torch.nan, dtype=x.dtype)
        for row in range(rows):
            chunk[row, :, : n[row]] = x[row, :, done[row] : done[row] + n[row]]
        before = [part.clone() for part in state]
        y, state = layer(chunk, state, torch.tensor(n), torch.tensor(done))
        for row in range(rows):
            out[row].append(y[row, ..., : int(n[row] * rate)])
            if n[row] == 0:
                assert all(torch.equal(new[row], old[row]) for new, old in zip(state, before, strict=True))
            done[row] += n[row]
    return [torch.cat(parts, -1) for parts in out]


def assert_close(ours: list[Tensor], whole: Tensor) -> None:
    bound = 1e-12 if whole.dtype == torch.float64 else 1e-6
    for row, expected in zip(ours, whole, strict=True):
        assert row.shape == expected.shape
        assert float((row - expected).abs().max()) <= bound * max(1.0, float(whole.abs().max()))


def check_conv(kernel: int, dilation: int, stride: int, cuts: list[list[int]], dtype: torch.dtype) -> None:
    rows, total = len(cuts), 24 * stride
    x, weight, bias = (
        normal(rows, 3, total, dtype=dtype),
        normal(4, 3, kernel, seed=1, dtype=dtype),
        normal(4, dtype=dtype),
    )
    late, weights = (
        (kernel - 1) * dilation + 1 - stride,
        StreamConvWeights(weight, bias, stride, dilation, slope=0.1),
    )

    def layer(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, after = stream_conv(chunk, state[0], n, weights, (start // stride - 2, torch.full_like(start, 20)))
        return y, [after]

    ours = stream(layer, x, [torch.zeros(rows, 3, weights.past, dtype=dtype)], cuts, stride, 1 / stride)
    whole = F.conv1d(F.pad(F.leaky_relu(x, 0.1), (late, 0)), weight, bias, stride, 0, dilation)
    whole[..., :2], whole[..., 22:] = 0, 0
    assert_close(ours, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("kernel", "dilation", "stride"), KERNELS_IN_USE)
def test_convolutions_in_use(kernel: int, dilation: int, stride: int, dtype: torch.dtype) -> None:
    for cuts in ([[24]], [[1]], [[5, 0, 2], [1], [9, 1]]):
        check_conv(kernel, dilation, stride, cuts, dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), rows_of_cuts)
def test_random_convolutions(kernel: int, dilation: int, stride: int, cuts: list[list[int]]) -> None:
    if (kernel - 1) * dilation + 1 >= stride:
        check_conv(kernel, dilation, stride, cuts, torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 8), rows_of_cuts, st.sampled_from([torch.float64, torch.float32]))
def test_random_transposed_convolutions(
    overlap: int, stride: int, cuts: list[list[int]], dtype: torch.dtype
) -> None:
    kernel, rows = stride + overlap, len(cuts)
    x, weight, bias = (
        normal(rows, 3, 20, dtype=dtype),
        normal(3, 4, kernel, seed=1, dtype=dtype),
        normal(4, dtype=dtype),
    )
    weights = StreamConvWeights(weight, bias, stride, is_transposed=True)

    def layer(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, after = stream_conv(chunk, state[0], n, weights)
        return y, [after]

    ours = stream(layer, x, [torch.zeros(rows, 3, weights.past, dtype=dtype)], cuts, 1, stride)
    assert_close(ours, F.conv_transpose1d(x, weight, bias, stride)[..., : 20 * stride])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), rows_of_cuts)
def test_delays(delay: int, cuts: list[list[int]]) -> None:
    x = normal(len(cuts), 2, 20)

    def layer(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, after = stream_delay(chunk, state[0], n)
        return y, [after]

    ours = stream(layer, x, [torch.zeros(len(cuts), 2, delay, dtype=x.dtype)], cuts, 1, 1)
    assert_close(ours, F.pad(x, (delay, 0))[..., :20])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([3, 5, 7, 11]), st.integers(1, 6), rows_of_cuts)
def test_residual_units(kernel: int, dilation: int, cuts: list[list[int]]) -> None:
    rows, frames, half = len(cuts), 30, kernel // 2
    alphas, layers = normal(2, 4).abs() + 0.1, [normal(4, 4, kernel, seed=s) / kernel for s in (1, 2)]
    weights = ResidualWeights(
        alphas[0], layers[0], normal(4), alphas[1], layers[1], normal(4, seed=3), dilation
    )
    x = normal(rows, 4, frames)
    inner = F.conv1d(
        snake(x, alphas[0]), layers[0], weights.first_bias, padding=half * dilation, dilation=dilation
    )
    whole = x + F.conv1d(snake(inner, alphas[1]), layers[1], weights.second_bias, padding=half)

    def layer(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, *after = stream_residual(chunk, *state, n, weights, (start, torch.full_like(start, frames)))
        return y, after

    zeros = [torch.zeros(rows, 4, size, dtype=x.dtype) for size in (2 * half * dilation, 2 * half)]
    ours = stream(layer, F.pad(x, (0, weights.delay)), zeros, cuts, 1, 1)
    assert_close([row[:, weights.delay :] for row in ours], whole)


@settings(max_examples=20, deadline=None)
@given(rows_of_cuts)
def test_stft_and_back(cuts: list[list[int]]) -> None:
    rows, total, window = len(cuts), 64 * 8, torch.hann_window(16, dtype=torch.float64)
    x = normal(rows, total)
    expected = torch.stft(x, 16, 4, 16, window, return_complex=True)
    expected = torch.cat([expected.real, expected.imag], 1)

    def forward(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, after = stream_stft(chunk[:, 0], state[0], n, window, 4, start, torch.full_like(start, total))
        return y, [after]

    padded = F.pad(x, (0, 64))[:, None]
    spectra = stream(forward, padded, [torch.zeros(rows, 12, dtype=x.dtype)], cuts, 64, 1 / 4)
    assert_close([row[:, 1 : total // 4 + 2] for row in spectra], expected)

    def backward(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, after = stream_istft(
            *chunk.chunk(2, 1), state[0], n, window, 4, start, torch.full_like(start, total // 4 + 1)
        )
        return y, [after]

    samples = stream(backward, F.pad(expected, (0, 5)), [torch.zeros(rows, 12, dtype=x.dtype)], cuts, 1, 4)
    assert_close([row[8 : total + 8] for row in samples], istft(*expected.chunk(2, 1), window, 4))
    assert_close([row[8 : total + 8] for row in samples], x)


@settings(max_examples=20, deadline=None)
@given(rows_of_cuts)
def test_source_keeps_its_phase(cuts: list[list[int]]) -> None:
    rows, frames, total = len(cuts), 40, 40 * 16
    f0 = 100 + 50 * normal(rows, 1, frames)
    source = SourceSettings(normal(1, 5), normal(1), 22050, 16, 0.1, 0.003, 60.0)
    phases = harmonic_phases(torch.arange(rows), 5)
    noise = sample_noise(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), total + 16 * frames, 5)
    cycles = (f0[:, 0] / 22050).repeat_interleave(16, -1).cumsum(-1)[:, None] * torch.arange(1, 6)[:, None]
    voiced = (f0 > 60).repeat_interleave(16, -1).float()
    sines = 0.1 * torch.sin(2 * torch.pi * (cycles % 1) + phases[..., None]) * voiced
    sines = sines + (voiced * 0.003 + (1 - voiced) * 0.1 / 3) * noise[..., :total]
    expected = torch.tanh(source.weight @ sines + source.bias[:, None])[:, 0]

    def layer(chunk: Tensor, state: list[Tensor], n: Tensor, start: Tensor) -> tuple[Tensor, list[Tensor]]:
        drawn = sample_noise(torch.arange(rows), start * 16, chunk.shape[-1] * 16, 5)
        y, after = stream_source(chunk[:, 0], state[0], n, source, phases, drawn)
        return y, [after]

    ours = stream(layer, f0, [torch.zeros(rows, dtype=torch.float64)], cuts, 1, 16)
    for row, whole in zip(ours, expected, strict=True):
        assert float((row - whole).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_group_norm_over_true_lengths(dtype: torch.dtype) -> None:
    lengths, x = [17, 1, 0, 9], normal(4, 8, 17, dtype=dtype) + 3
    weight, bias = normal(8, seed=1, dtype=dtype), normal(8, seed=2, dtype=dtype)
    for row, n in enumerate(lengths):
        x[row, :, n:] = torch.nan
    y = group_norm_mish(x, torch.tensor(lengths), weight, bias, 4)
    for row, n in enumerate(lengths):
        assert y[row, :, n:].abs().sum() == 0
        if n:
            wide = F.mish(F.group_norm(x[row : row + 1, :, :n].double(), 4, weight.double(), bias.double()))[
                0
            ]
            error = float((y[row, :, :n].double() - wide).abs().max())
            assert error <= (4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12) * float(
                wide.abs().max()
            )


def test_noise_is_normal_and_depends_on_its_place_alone() -> None:
    seed = torch.tensor([3, 4])
    frames = torch.arange(2000).expand(2, -1)
    whole = frame_noise(seed, frames, 80)
    assert whole.shape == (2, 80, 2000)
    assert torch.equal(frame_noise(seed[1:], frames[1:, 700:900], 80), whole[1:, :, 700:900])
    assert abs(float(whole.mean())) < 5e-3
    assert abs(float(whole.std()) - 1) < 5e-3
    assert float((whole.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=2e-3)
    flat = torch.stack(
        [whole[0, :, 1:], whole[0, :, :-1], whole[1, :, 1:], whole[0, :, 1:].roll(1, 0)]
    ).flatten(1)
    assert float((torch.corrcoef(flat) - torch.eye(4)).abs().max()) < 0.01
    samples = sample_noise(seed, torch.tensor([0, 0]), 4000, 9)
    assert torch.equal(sample_noise(seed, torch.tensor([400, 800]), 40, 9)[1], samples[1, :, 800:840])
    phases = harmonic_phases(seed, 9)
    assert phases[:, 0].tolist() == [0, 0]
    assert float(phases.abs().max()) <= torch.pi


@pytest.fixture(scope="module")
def golden_hift(data_dir: Path) -> dict[torch.dtype, Hift]:
    tensors = load_file(data_dir / "golden" / "hift_small.safetensors")
    weights = {name[2:]: value for name, value in tensors.items() if name.startswith("w.")}
    config = HiftConfig(base_channels=32, f0_channels=32)
    return {dtype: Hift(config, weights, dtype) for dtype in (torch.float32, torch.float64)}


def streamed_sound(
    hift: Hift, mel: Tensor, cuts: list[list[int]], noise: bool, lengths: list[int]
) -> list[Tensor]:
    """Rows of mel [B, C, T] of the given lengths through HiftStream, each by its own cuts, then flushed."""
    streamer, rows = HiftStream(hift, noise), len(cuts)
    zero = torch.zeros(rows, dtype=torch.int64)
    _, first = streamer(mel[..., :1], {}, zero, zero, zero + UNKNOWN_END, zero)
    state = {name: torch.zeros_like(value) for name, value in first.items()}
    done, out, turn = [0] * rows, [[] for _ in range(rows)], 0  # type: ignore[var-annotated]
    totals = [length + streamer.flush_frames for length in lengths]
    while any(at < total for at, total in zip(done, totals, strict=True)):
        n = [min(cut[turn % len(cut)], total - at) for cut, total, at in zip(cuts, totals, done, strict=True)]
        turn += 1
        if max(n) == 0:
            n = [min(1, total - at) for total, at in zip(totals, done, strict=True)]
        ends = [
            length if at + m > length else UNKNOWN_END for length, at, m in zip(lengths, done, n, strict=True)
        ]
        chunk = torch.zeros(rows, mel.shape[1], max(n))
        for row, (at, m, length) in enumerate(zip(done, n, lengths, strict=True)):
            part = mel[row, :, at : min(at + m, length)]
            chunk[row, :, : part.shape[-1]] = part
        before = state
        y, state = streamer(
            chunk, state, torch.tensor(n), torch.tensor(done), torch.tensor(ends), torch.arange(rows)
        )
        for row, m in enumerate(n):
            out[row].append(y[row, : m * streamer.frame_len])
            if m == 0:
                assert all(torch.equal(state[name][row], before[name][row]) for name in state)
            done[row] += m
    whole = [torch.cat(parts) for parts in out]
    return [
        row[streamer.late : streamer.late + n * streamer.frame_len]
        for row, n in zip(whole, lengths, strict=True)
    ]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-6)], ids=str)
@pytest.mark.parametrize("noise", [True, False])
def test_vocoder_cut_anywhere_is_the_vocoder(
    golden_hift: dict[torch.dtype, Hift], dtype: torch.dtype, bound: float, noise: bool
) -> None:
    hift, lengths = golden_hift[dtype], [61, 1, 37, 5]
    mel = normal(4, 80, 61, dtype=torch.float32)
    ours = streamed_sound(hift, mel, [[61], [7, 0], [1, 12, 3], [2]], noise, lengths)
    for row, (samples, n) in enumerate(zip(ours, lengths, strict=True)):
        source = hift.steady_source(mel[row : row + 1, :, :n], row if noise else None)
        whole = hift.render(mel[row : row + 1, :, :n], source)[0]
        assert samples.shape == whole.shape
        assert float((samples - whole).abs().max()) <= bound * max(1.0, float(whole.abs().max()))


def test_a_broken_row_stays_alone(golden_hift: dict[torch.dtype, Hift]) -> None:
    hift, mel = golden_hift[torch.float32], normal(3, 80, 30, dtype=torch.float32)
    cuts, lengths = [[9], [9], [9]], [30, 30, 30]
    whole = streamed_sound(hift, mel, cuts, True, lengths)
    mel[1, 3, 12] = torch.nan
    broken = streamed_sound(hift, mel, cuts, True, lengths)
    assert torch.equal(broken[0], whole[0])
    assert torch.equal(broken[2], whole[2])
    assert broken[1].isnan().any()


@pytest.fixture(scope="module")
def encoder(data_dir: Path) -> FlowEncoder:
    tensors = load_file(data_dir / "golden" / "flow_small.safetensors")
    return FlowEncoder(
        EncoderConfig(64, 64, 2, 128, 2, 10), {n[2:]: v for n, v in tensors.items() if n.startswith("w.")}
    )


@pytest.mark.parametrize("blocks", [2, 9])
def test_encoder_with_a_cache_is_the_encoder(
    encoder: FlowEncoder, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, stream_encoder = 87, EncoderStream(encoder, blocks, 45, "cpu")

    def windowed(n: int, size: int, device: str) -> Tensor:
        ahead = torch.arange(n)[:, None] // size - torch.arange(n) // size
        return (ahead >= 0) & (ahead <= blocks)

    x = normal(2, total, 64, dtype=torch.float32)
    ends = [[10, 36, 62, 87], [3, 9, 44, 79, 87]]
    states = []
    for row, row_ends in enumerate(ends):
        state: dict[str, Tensor] = {}
        begin, seen = 0, []
        for end in row_ends:
            start = begin // 10 * 10
            tokens = F.pad(x[row : row + 1, start:end], (0, 0, 0, 45 - (end - start)))
            n, at, closed = (torch.tensor([value]) for value in (end - start, start, end // 10 * 10 - start))
            y, state = stream_encoder(tokens, state, n, at, closed)
            seen = [*seen[:start], *y[0, : end - start]]
            begin = end
        states.append(torch.stack(seen))
    if blocks < 8:
        monkeypatch.setattr(flow_encoder, "block_causal", windowed)
    for row in range(2):
        assert float((states[row] - encoder(x[row : row + 1])[0]).abs().max()) < 1e-5
