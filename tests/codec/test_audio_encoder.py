"""The audio encoders of Qwen3-Omni and Qwen2.5-Omni against transformers' own, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig, encoder_shapes, read_audio_encoder_config
from innervoice.codec.audio_encoder import AudioEncoder
from innervoice_kernels import _C

pytest.importorskip("transformers")

FRAMES = (1, 37, 99, 100, 101, 237, 855)
KINDS = ("qwen3_omni", "qwen2_5_omni")
SIZES: dict[str, Any] = {
    "num_mel_bins": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
    "output_dim": 48, "max_source_positions": 1500,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "qwen3_omni": {"n_window": 50, "n_window_infer": 200, "conv_chunksize": 500, "downsample_hidden_size": 8},
    "qwen2_5_omni": {"n_window": 100},
}


def original(kind: str) -> Any:
    if kind == "qwen3_omni":
        from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
            Qwen3OmniMoeAudioEncoderConfig as Config,
        )
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
            Qwen3OmniMoeAudioEncoder as Encoder,
        )
    else:
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
            Qwen2_5OmniAudioEncoderConfig as Config,
        )
        from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
            Qwen2_5OmniAudioEncoder as Encoder,
        )
    model = Encoder(Config(**SIZES, **OWN[kind])).eval().float()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name or "ln_" in name
        size = 1 if parameter.dim() < 2 else parameter[0].numel() ** 0.5
        spread = 0.1 if parameter.dim() < 2 else 1 / size
        parameter.data = spread * random + (1.0 if is_norm and name.endswith("weight") else 0.0)
    return model


class StateTensors:
    """A module's tensors as a source."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def get(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        tensor = self.state[name]
        assert tensor.shape == shape
        return tensor.to(device=device, dtype=dtype)


def config_of(kind: Any, **changes: Any) -> AudioEncoderConfig:
    return read_audio_encoder_config(SIZES | OWN[kind] | changes, "config.json", kind)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, AudioEncoder]:
    theirs = original(request.param)
    config = config_of(request.param)
    ours = AudioEncoder.load(config, StateTensors(theirs.state_dict()), prefix="")
    return theirs, ours


def rows_of(theirs: Any, mel: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = theirs(mel, feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state
        return found


def sound(num_samples: int) -> Any:
    time = np.arange(num_samples) / 16000
    noise = np.random.default_rng(num_samples).standard_normal(num_samples)
    return (0.3 * np.sin(2 * np.pi * 220 * time) * np.cos(3 * time) + 0.01 * noise).astype(np.float32)


def test_rows_of_features_equal_transformers_alone_and_together(pair: tuple[Any, AudioEncoder]) -> None:
    theirs, ours = pair
    generator = torch.Generator().manual_seed(2)
    mels = [
        torch.randn(128, n, generator=generator) for n in FRAMES if ours.config.kind == "qwen3_omni" or n > 2
    ]
    together = ours.encode_features(mels)
    for mel, beside in zip(mels, together, strict=True):
        (alone,) = ours.encode_features([mel])
        expected = rows_of(theirs, mel)
        assert expected.std() > 0.1
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)


def test_halves_are_multiplied_as_float32_where_a_cpu_has_no_products_of_them(
    pair: tuple[Any, AudioEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By native code, to the accuracy of float32; where there are such products rows are transformers' in bfloat16."""
    theirs, ours = pair
    halves = {name: x.bfloat16() for name, x in theirs.state_dict().items()}
    mels = [torch.randn(128, n, generator=torch.Generator().manual_seed(n)) for n in (37, 237)]
    monkeypatch.setattr(_C, "has_halves", lambda: False)
    native = AudioEncoder(ours.config, halves).encode_features(mels)
    monkeypatch.setattr(_C, "has_halves", lambda: True)
    rounded = AudioEncoder(ours.config, halves).encode_features(mels)
    wide = AudioEncoder(ours.config, {name: x.float() for name, x in halves.items()}).encode_features(mels)
    for exact, made, rough in zip(wide, native, rounded, strict=True):
        assert (made.dtype, rough.dtype) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(made, exact, rtol=0, atol=1e-5)
        assert 0 < (rough - exact).abs().max() < 0.1


@pytest.mark.parametrize("num_samples", [201, 319, 321, 5999, 16000, 16159, 16161, 37920, 136960])
def test_rows_of_a_recording_equal_transformers(pair: tuple[Any, AudioEncoder], num_samples: int) -> None:
    from transformers import WhisperFeatureExtractor

    theirs, ours = pair
    whole = ours.config.kind == "qwen3_omni"
    num_samples = num_samples if whole else max(num_samples, 321)  # the fewest that are heard
    samples = sound(num_samples)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=30)
    given = extractor(
        [samples], sampling_rate=16000, padding=True if whole else "max_length", truncation=False,
        return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    mel = given.input_features[0, :, : int(given.attention_mask.sum())]
    torch.testing.assert_close(ours.features(samples), mel, rtol=0, atol=2e-4)
    expected = rows_of(theirs, mel)
    (rows,) = ours.encode([samples])
    assert len(rows) == ours.num_rows(num_samples) == len(expected)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)


def test_shapes_are_those_of_all_tensors(pair: tuple[Any, AudioEncoder]) -> None:
    theirs, ours = pair
    state = {name: tuple(x.shape) for name, x in theirs.state_dict().items() if "positional" not in name}
    state.pop("audio_bos_eos_token.weight", None)
    assert encoder_shapes(ours.config) == state


@pytest.mark.parametrize(
    ("num_frames", "rows"), [(37, 5), (99, 13), (100, 13), (101, 14), (237, 31), (555, 72)]
)
def test_thirteen_rows_a_second(num_frames: int, rows: int) -> None:
    assert config_of("qwen3_omni").num_rows(160 * num_frames) == rows
    assert config_of("qwen2_5_omni").num_rows(160 * num_frames) == ((num_frames - 1) // 2 + 1 - 2) // 2 + 1


def test_short_recordings_are_refused() -> None:
    for kind, least in (("qwen3_omni", 201), ("qwen2_5_omni", 321)):
        assert config_of(kind).num_rows(least) == 1
        with pytest.raises(ValueError, match=f"has {least - 1} samples at 16000 Hz.* of {least} or more"):
            config_of(kind).num_rows(least - 1)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3_omni", {"n_window": 60}, "n_window is 60, which is not supported; supported is 50"),
        ("qwen2_5_omni", {"n_window": 50}, "n_window is 50, which is not supported; supported is 100"),
        ("qwen3_omni", {"n_window_infer": 250}, "n_window_infer is 250, expected a multiple of 100"),
        ("qwen3_omni", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("qwen2_5_omni", {"d_model": 36}, "d_model 36 must be a multiple of twice encoder_attention_heads 4"),
        ("qwen2_5_omni", {"encoder_layers": 0}, "encoder_layers is 0, expected 1 or more"),
    ],
)
def test_unsupported_encoders_are_refused_by_name(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config_of(kind, **changes)
    assert message in str(error.value)
