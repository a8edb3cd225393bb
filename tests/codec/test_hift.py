"""The vocoder against the original's intermediate results; two ops against torch and plain definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from innervoice.checkpoint.speech_decoder import HiftConfig
from innervoice.codec.glm_voice.hift import Excitation, Hift, fold_weight_norm
from innervoice_kernels.speech_codec.istft import istft, istft_ref
from innervoice_kernels.speech_codec.snake import snake, snake_ref

Golden = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    return load_file(data_dir / "golden" / "hift_small.safetensors")


@pytest.fixture(scope="module")
def hift(golden: Golden) -> Hift:
    weights = {name[2:]: value for name, value in golden.items() if name.startswith("w.")}
    return Hift(HiftConfig(base_channels=32, f0_channels=32), weights)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_f0(hift: Hift, golden: Golden) -> None:
    f0 = hift.f0(golden["t.mel"])
    f0[:, 5:9] = 3  # the golden source has these frames unvoiced
    assert error(f0, golden["t.f0_for_source"]) < 1e-4


def test_source(hift: Hift, golden: Golden) -> None:
    excitation = Excitation(golden["t.phase"], golden["t.unit_noise"])
    assert error(hift.source(golden["t.f0_for_source"], excitation), golden["t.source"]) < 1e-4


def test_waveform_with_and_without_a_cached_source(hift: Hift, golden: Golden) -> None:
    assert error(hift.render(golden["t.mel"], golden["t.source"]), golden["t.wav"]) < 1e-4
    cached = torch.full((1, 1, 256), 0.1)
    source = torch.cat([cached, golden["t.source"][..., 256:]], -1)
    assert error(hift.render(golden["t.mel"], source), golden["t.wav_cache_source"]) < 1e-4
    samples, used = hift(golden["t.mel"], cached_source=cached)
    assert torch.equal(used[..., :256], cached)
    assert error(samples, hift.render(golden["t.mel"], used)) == 0


def test_noise_is_drawn_in_the_originals_order(hift: Hift) -> None:
    drawn = hift.draw(3, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(1, 9, 1, generator=generator)
    assert error(drawn.phase[:, 1:], (uniform * 2 * torch.pi - torch.pi)[:, 1:]) < 1e-6
    assert drawn.phase[0, 0, 0] == 0
    assert torch.equal(drawn.noise, torch.randn(1, 9, 768, generator=generator))


def test_unvoiced_frames_are_silent_without_noise(hift: Hift) -> None:
    source = hift.source(torch.full((1, 4), 9.9))
    assert source.unique().numel() == 1  # the merging layer's bias alone


def test_phase_stays_right_over_a_long_chunk(hift: Hift, golden: Golden) -> None:
    f0 = torch.full((1, 2000), 211.7)
    with_float64 = torch.arange(1, 2000 * 256 + 1, dtype=torch.float64) * (f0[0, 0].double() * 9 / 22050)
    weight, bias = golden["w.m_source.l_linear.weight"].double(), golden["w.m_source.l_linear.bias"].double()
    sines = 0.1 * torch.sin(2 * torch.pi * with_float64 * torch.arange(1, 10)[:, None] / 9)
    expected = torch.tanh(weight @ sines + bias[:, None]).float()[None]
    assert error(hift.source(f0), expected) < 5e-3


def test_samples_keep_to_the_limit(hift: Hift, golden: Golden) -> None:
    samples, source = hift(golden["t.mel"] + 20)
    assert samples.shape == (1, 37 * 256)
    assert source.shape == (1, 1, 37 * 256)
    assert samples.abs().max() <= 0.99


def test_weight_norm_is_folded_over_all_but_the_first_dimension() -> None:
    direction = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    gain = torch.arange(1.0, 7)[:, None, None]
    folded = fold_weight_norm({"up.weight_g": gain, "up.weight_v": direction, "up.bias": gain})
    assert sorted(folded) == ["up.bias", "up.weight"]
    assert error(folded["up.weight"], torch._weight_norm(direction, gain, 0)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_snake(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha = torch.tensor([0.0, 0.1, 1.0, 3.0, -2.0]).to(dtype)
    wide = x.double() + torch.sin(x.double() * alpha.double()[:, None]) ** 2 / (
        alpha.double()[:, None] + 1e-9
    )
    assert snake(x, alpha).dtype == dtype
    assert torch.equal(snake(x, alpha), snake_ref(x, alpha))
    assert error(snake_ref(x, alpha).double(), wide) <= 8 * torch.finfo(dtype).eps * float(wide.abs().max())


@pytest.mark.parametrize("frames", [3, 7, 101])
def test_istft_is_torchs(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    real, imag = (torch.randn(2, 9, frames, generator=generator, dtype=torch.float64) for _ in range(2))
    window = torch.hann_window(16, dtype=torch.float64)
    expected = torch.istft(torch.complex(real, imag), 16, 4, 16, window)
    assert error(istft_ref(real, imag, window, 4), expected) < 1e-12
    assert error(istft(real.float(), imag.float(), window.float(), 4), expected.float()) < 1e-5
