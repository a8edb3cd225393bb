"""The flow against the original's intermediate results, and its parts against plain definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from innervoice.checkpoint.speech_decoder import EncoderConfig, EstimatorConfig, FlowConfig
from innervoice.codec.glm_voice.flow import Flow, noise_generator, num_frames, step_times
from innervoice.codec.glm_voice.flow_encoder import block_causal, nearest, relative_positions, shift
from innervoice.codec.glm_voice.flow_estimator import time_embedding
from innervoice.codec.layers import Affine, group_norm, layer_norm, linear

NO_MEL = torch.empty(1, 80, 0)
Golden = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    return load_file(data_dir / "golden" / "flow_small.safetensors")


@pytest.fixture(scope="module")
def flow(golden: Golden) -> Flow:
    config = FlowConfig(
        64, encoder=EncoderConfig(64, 64, 2, 128, 2, 10), estimator=EstimatorConfig((32, 32), 16, 2, 2, 2)
    )
    return Flow(config, flow_tensors(golden))


def flow_tensors(golden: Golden) -> Golden:
    return {name[2:]: value for name, value in golden.items() if name.startswith("w.")}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_encoder_and_length_regulator(flow: Flow, golden: Golden) -> None:
    states = flow.encoder(F.embedding(golden["t.tokens"], golden["w.input_embedding.weight"]))
    assert error(states, golden["t.encoder_out"]) < 1e-4
    projected = linear(states, flow.project)
    assert error(projected, golden["t.mu80"]) < 1e-4
    assert error(flow.regulator(projected, 158).transpose(1, 2), golden["t.mu"]) < 1e-4
    assert error(flow.mu(golden["t.tokens"][0]).transpose(1, 2), golden["t.mu"]) < 1e-4


def test_estimator(flow: Flow, golden: Golden) -> None:
    shifts = [shift[0] for shift in flow.estimator.time_shifts(golden["t.est_t"])]
    mu = golden["t.mu"].transpose(1, 2)
    out = flow.estimator(golden["t.est_x"], mu, golden["t.est_spk"], golden["t.est_cond"], shifts)
    assert error(out, golden["t.est_out"]) < 1e-4


def test_noise_is_the_originals(golden: Golden) -> None:
    assert torch.equal(torch.randn(1, 80, 158, generator=noise_generator()), golden["t.noise_seed42"])


def test_mel_with_zero_speaker_x_vector_and_prompt(flow: Flow, golden: Golden) -> None:
    codes = golden["t.tokens"][0]
    assert error(flow(codes, codes[:0], NO_MEL, generator=noise_generator()), golden["t.mel_zero_spk"]) < 1e-4
    spoken = flow(codes, codes[:0], NO_MEL, generator=noise_generator(), speaker=golden["t.xvec"])
    assert error(spoken, golden["t.mel_xvec"]) < 1e-4
    prompted = flow(
        codes[10:], codes[:10], golden["t.prompt_feat"].transpose(1, 2), generator=noise_generator()
    )
    assert error(prompted, golden["t.mel_with_prompt"]) < 1e-4


def test_other_step_counts(flow: Flow, golden: Golden) -> None:
    codes = golden["t.tokens"][0]
    few, many = (
        flow(codes, codes[:0], NO_MEL, generator=noise_generator(), steps=steps) for steps in (3, 16)
    )
    ten = golden["t.mel_zero_spk"]
    assert (many - ten).abs().mean() < (few - ten).abs().mean()
    with pytest.raises(ValueError, match="steps is 0"):
        flow(codes, codes[:0], NO_MEL, generator=noise_generator(), steps=0)
    with pytest.raises(ValueError, match="speaker embedding"):
        flow.speaker_vector(torch.zeros(192))


def test_finished_blocks_do_not_change(flow: Flow) -> None:
    x = torch.randn(1, 37, 64, generator=torch.Generator().manual_seed(0))
    whole = flow.encoder(x)
    assert error(flow.encoder(x[:, :30]), whole[:, :30]) < 1e-5
    assert (
        error(flow.encoder(x[:, :25])[:, 20:], whole[:, 20:25]) > 1e-3
    )  # an open block sees what comes later in it


def test_frame_counts() -> None:
    assert [num_frames(n, 12.5) for n in (10, 25, 50, 75, 125)] == [68, 172, 344, 516, 861]
    assert [n for n in range(1, 5001) if num_frames(n, 12.5) != 441 * n // 64] == [3392, 3776, 4160]


def test_step_times() -> None:
    expected = [
        0,
        0.0123117,
        0.0489435,
        0.1089935,
        0.1909830,
        0.2928932,
        0.4122148,
        0.5460095,
        0.6909830,
        0.8435655,
        1,
    ]
    assert error(step_times(10), torch.tensor(expected)) < 1e-7


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shift_and_positions_by_definition(n: int) -> None:
    raw = torch.arange(2.0 * n * (2 * n - 1)).view(2, n, 2 * n - 1)
    shifted = shift(raw)
    table = relative_positions(n, 6)
    for i in range(n):
        for j in range(n):
            row = n - 1 - (i - j)
            assert torch.equal(shifted[:, i, j], raw[:, i, row])
            angles = [(i - j) * 10000 ** (-2 * m / 6) for m in range(3)]
            wave = torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)])
            assert error(table[row], wave) < 1e-6


def test_mask_and_nearest_by_definition() -> None:
    mask = block_causal(23, 10)
    assert all(bool(mask[i, j]) == (j <= i or i // 10 == j // 10) for i in range(23) for j in range(23))
    for n in (1, 23, 51):
        states = torch.arange(float(n)).view(1, 1, n)
        frames = num_frames(n, 12.5)
        assert torch.equal(F.interpolate(states, frames, mode="nearest")[0, 0].long(), nearest(n, frames))


def test_time_embedding_by_definition() -> None:
    embedded = time_embedding(torch.tensor([0.0, 0.25]), 8)
    waves = [1000 * 0.25 * math.exp(-math.log(10000) * i / 3) for i in range(4)]
    expected = torch.tensor(
        [[0.0] * 4 + [1.0] * 4, [math.sin(w) for w in waves] + [math.cos(w) for w in waves]]
    )
    assert error(embedded, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_statistics_are_float32(dtype: torch.dtype) -> None:
    """Far from zero, statistics in half precision would be useless: the result is float32's, rounded."""
    x = (torch.randn(2, 16, 50, generator=torch.Generator().manual_seed(0)) + 30).to(dtype)
    for norm, size in ((lambda t, layer: group_norm(t, layer, 8), 16), (layer_norm, 50)):
        wide = Affine(torch.ones(size), torch.zeros(size))
        narrow = Affine(torch.ones(size, dtype=dtype), torch.zeros(size, dtype=dtype))
        assert error(norm(x, narrow).float(), norm(x.float(), wide)) < 4 * torch.finfo(dtype).eps


def test_without_guidance_the_unguided_branch_is_not_computed(flow: Flow, golden: Golden) -> None:
    plain = Flow(replace(flow.config, guidance=0.0), flow_tensors(golden))
    rows: list[int] = []
    velocity = plain.estimator.velocity
    plain.estimator.velocity = lambda x, *others: rows.append(len(x)) or velocity(x, *others)  # type: ignore[method-assign]
    codes = torch.stack([golden["t.tokens"][0]] * 3)
    mu = torch.cat([plain.mu(row) for row in codes])
    noise = torch.randn(mu.shape, generator=noise_generator())
    speaker, cond = plain.speaker_vector(None).expand(3, -1), torch.zeros_like(mu)
    n = torch.tensor([mu.shape[-1], 90, 41])
    made = plain.solve(noise, mu, speaker, cond, 2, n)
    assert rows == [3, 3]

    # Both branches, the unguided one weighted by zero, as the formula has it.
    plain.is_guided = True
    both = plain.solve(noise, mu, speaker, cond, 2, n)
    assert rows[2:] == [6, 6]
    assert error(made, both) < 1e-4
