"""The native code of noise by place and of the vocoder's source against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import use
from innervoice_kernels.speech_codec.noise import frame_noise, normal_grid, sample_noise
from innervoice_kernels.speech_codec.source import SourceSettings, stream_source

SETTINGS = SourceSettings(torch.linspace(-1, 1, 9)[None], torch.tensor([0.1]), 22050, 256, 0.1, 0.003, 10.0)


def both(call: object, *args: object) -> tuple[Tensor, Tensor]:
    """What the native code and what the reference give."""
    assert callable(call)
    with use("native"):
        fast = call(*args)
    with use("ref"):
        slow = call(*args)
    return fast, slow


def error(fast: Tensor, slow: Tensor) -> float:
    return float((fast - slow).abs().max() / slow.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("rows", [1, 3])
def test_normals_are_those_of_the_definition(rows: int) -> None:
    """Seeds and places beyond 32 bits and below 0 count modulo 2^32."""
    seed = torch.tensor([7, -1, 2**40 + 5])[:rows]
    start = torch.tensor([-4, 0, 4 * 2**33])[:rows]
    fast, slow = both(sample_noise, seed, start, 1020, 9)
    assert fast.shape == (rows, 9, 1020)
    assert error(fast, slow) < 1e-6
    frames = torch.arange(37) + start[:, None]
    fast, slow = both(frame_noise, seed, frames, 81)
    assert fast.shape == (rows, 81, 37)
    assert error(fast, slow) < 1e-6


def test_normals_of_nothing_and_of_the_tails() -> None:
    assert normal_grid(torch.tensor([1]), 0, torch.zeros(1, 0, dtype=torch.int64), 3).shape == (1, 3, 0, 4)
    fast, slow = both(normal_grid, torch.tensor([1]), 2, torch.arange(200_000)[None], 1)
    assert float(slow.abs().max()) > 4.5
    assert error(fast, slow) < 1e-6


@pytest.mark.parametrize("noisy", [True, False])
def test_the_source_is_its_definition(noisy: bool) -> None:
    """Voiced and unvoiced frames, rows of different length, an hour of phase behind them."""
    rows, frames = 3, 29
    f0 = (
        (torch.randn(rows, frames, generator=torch.Generator().manual_seed(0)) * 100 + 150)
        .clamp(min=0)
        .double()
    )
    f0[1, 3:9] = 0
    cycles, n = torch.tensor([0.0, 0.25, 7e5], dtype=torch.float64), torch.tensor([29, 0, 11])
    phases = noise = None
    if noisy:
        phases = torch.linspace(-3, 3, 9).expand(rows, -1)
        noise = sample_noise(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), frames * 256, 9)
    (fast, after), (slow, expected) = both(stream_source, f0, cycles, n, SETTINGS, phases, noise)  # type: ignore[misc]
    assert fast.shape == (rows, frames * 256)
    assert error(fast, slow) < 2e-6
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-9)


def test_any_number_of_threads_gives_the_same() -> None:
    first, seed = torch.arange(1000)[None], torch.tensor([3])
    made = []
    for threads in (1, 3):
        y = torch.full((1, 9, 1000, 4), torch.nan)
        _C.fill_normals(_C.ThreadTeam(threads), seed, 1, first, y)
        made.append(y)
    assert torch.equal(*made)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_all_instructions_give_the_definition(isa: str) -> None:
    """With frames and counters that are no whole vectors."""
    team, first, seed = _C.ThreadTeam(2), torch.arange(1013)[None] - 5, torch.tensor([3])
    y = torch.full((1, 9, 1013, 4), torch.nan)
    _C.fill_normals(team, seed, 1, first, y, isa)
    with use("ref"):
        assert error(y, normal_grid(seed, 1, first, 9)) < 1e-6
    f0, noise, phases = (
        torch.linspace(0, 400, 7).double()[None],
        torch.randn(1, 9, 7 * 19),
        torch.linspace(-3, 3, 9)[None],
    )
    made, after, none = torch.full((1, 7 * 19), torch.nan), torch.zeros(1).double(), torch.zeros(1).double()
    settings = replace(SETTINGS, frame_len=19)
    n, bias = torch.tensor([7]), float(settings.bias)
    _C.stream_source(
        team,
        f0,
        none,
        n,
        phases,
        noise,
        settings.weight[0],
        bias,
        22050,
        19,
        0.1,
        0.003,
        10.0,
        made,
        after,
        isa,
    )
    with use("ref"):
        expected, _ = stream_source(f0, none, n, settings, phases, noise)
    assert error(made, expected) < 2e-6


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    team, y, f0 = _C.ThreadTeam(1), torch.empty(1, 8), torch.zeros(1, 2, dtype=torch.float64)
    one, n, weight = torch.zeros(1, dtype=torch.float64), torch.tensor([3]), torch.zeros(2)
    with pytest.raises(ValueError, match="row 0 has length 3, expected 0 to 2"):
        _C.stream_source(
            team, f0, one, n, None, None, weight, 0.0, 22050, 4, 0.1, 0.003, 10.0, y, one.clone()
        )
    with pytest.raises(ValueError, match="frame_len is 0"):
        _C.stream_source(
            team, f0, one, n, None, None, weight, 0.0, 22050, 0, 0.1, 0.003, 10.0, y, one.clone()
        )
    with pytest.raises(ValueError, match="noise: expected"):
        _C.stream_source(
            team,
            f0,
            one,
            n - 1,
            None,
            torch.zeros(1, 2, 7),
            weight,
            0.0,
            22050,
            4,
            0.1,
            0.003,
            10.0,
            y,
            one.clone(),
        )
    with pytest.raises(ValueError, match="out: expected"):
        _C.fill_normals(team, n, 0, torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2, 4, 4))
