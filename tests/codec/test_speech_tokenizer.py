"""Speech in against the original modules: features, states and ids; pieces, rates, bad checkpoints; the
shipped size.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from innervoice.checkpoint.speech_tokenizer import (
    SpeechTokenizerConfig,
    num_parameters,
    read_speech_tokenizer_config,
    tensor_bytes,
    tensor_shapes,
)
from innervoice.codec.audio import read_audio
from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer
from innervoice.codec.glm_voice.whisper_encoder import AudioBlock, Context, encode_blocks, pool
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.speech_codec.mel import log_mel, mel_filters
from innervoice_kernels.speech_codec.vq import nearest_code

SHIPPED = {
    "model_type": "whisper", "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32,
    "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "activation_function": "gelu", "max_source_positions": 1500,
    "encoder_causal_convolution": True, "encoder_causal_attention": False, "quantize_causal_encoder": False,
    "quantize_causal_block_size": 200,
    "pooling_kernel_size": 4, "pooling_position": 16, "pooling_type": "avg", "quantize_position": 16,
    "quantize_vocab_size": 16384,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(data_dir / "golden" / "vq_small.safetensors")


@pytest.fixture(scope="module")
def golden_dir(
    data_dir: Path, golden: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The golden module as a checkpoint, with pieces as long as its position table."""
    directory = tmp_path_factory.mktemp("vq_small")
    changes = json.loads((data_dir / "golden" / "vq_small.json").read_text())["cfg"]
    (directory / "config.json").write_text(json.dumps(SHIPPED | changes))
    (directory / "preprocessor_config.json").write_text(json.dumps({"n_samples": 240 * 320}))
    save_file(
        {name[2:]: w for name, w in golden.items() if name.startswith("w.")}, directory / "model.safetensors"
    )
    return directory


@pytest.fixture
def tiny_copy(tiny_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dir / "glm-4-voice-tokenizer", tmp_path / "tokenizer"))


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> SpeechTokenizer:
    return SpeechTokenizer.from_pretrained(tiny_dir / "glm-4-voice-tokenizer")


@pytest.fixture(scope="module")
def reading(assets_dir: Path) -> np.ndarray:
    return read_audio(assets_dir / "reading.wav")[0]


def change_config(directory: Path, **changes: Any) -> None:
    """Set keys of config.json; None removes one."""
    data = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def change_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(directory / "model.safetensors") | {
        k.replace("__", "."): v for k, v in changes.items()
    }
    save_file({k: v for k, v in weights.items() if v is not None}, directory / "model.safetensors")


def test_mel_filters_equal_the_original(data_dir: Path) -> None:
    original = load_file(data_dir / "golden" / "whisper_mel128.safetensors")["mel_filters"]
    assert (mel_filters(128, 400, 16000) - original).abs().max() <= 1e-7


def test_features_equal_the_original(golden: dict[str, torch.Tensor]) -> None:
    wave = torch.zeros(2, 30720)
    for row in range(2):
        wave[row, : len(golden[f"t.wav{row}"])] = golden[f"t.wav{row}"]
    features = log_mel(wave, mel_filters(128, 400, 16000))
    assert features.shape == golden["t.features"].shape
    assert (features - golden["t.features"]).abs().max() < 5e-5
    exact = log_mel(wave.double(), mel_filters(128, 400, 16000))
    assert (features - exact).abs().max() < 5e-5


def test_states_and_ids_equal_the_original(golden: dict[str, torch.Tensor], golden_dir: Path) -> None:
    config = read_speech_tokenizer_config(golden_dir)
    weights = {name[2:]: w for name, w in golden.items() if name.startswith("w.")}
    num_positions = golden["t.attention_mask"][:, ::2].sum(1).tolist()
    states = torch.stack(all_states(weights, config, golden["t.features"], num_positions))
    assert (states - golden["t.pre_pool"]).abs().max() < 1e-5
    codes = nearest_code(torch.stack([pool(row, 4) for row in states]), weights["codebook.weight"])
    assert torch.equal(codes, golden["t.ids"])


def all_states(
    weights: Any, config: SpeechTokenizerConfig, features: torch.Tensor, num_positions: list[int]
) -> list[Any]:
    """AudioBlock after block of features [B, M, F], all rows in one call."""
    contexts, states = [Context(weights, config) for _ in features], []
    for start in range(0, features.shape[2] // 2, config.block_len):
        stop = min(start + config.block_len, features.shape[2] // 2)
        blocks = [
            AudioBlock(
                row.T[max(0, 2 * start - 4) : 2 * stop], start, max(0, min(num, stop) - start), context
            )
            for row, num, context in zip(features, num_positions, contexts, strict=True)
        ]
        states.append(encode_blocks(weights, config, blocks))
    return [torch.cat(row) for row in zip(*states, strict=True)]


def test_waves_become_the_original_tokens(golden: dict[str, torch.Tensor], golden_dir: Path) -> None:
    tokenizer = SpeechTokenizer.from_pretrained(golden_dir)
    for row in range(2):
        assert tokenizer.encode(golden[f"t.wav{row}"].numpy(), 16000) == golden[f"t.tokens{row}"].tolist()


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_recordings_become_the_original_ids(
    tiny: SpeechTokenizer, data_dir: Path, assets_dir: Path, case: str
) -> None:
    expected = json.loads((data_dir / "tiny" / "expected.json").read_text())[case]
    name = "question.wav" if expected["wav"] == "001.wav" else "reading.wav"
    assert tiny.encode(*read_audio(assets_dir / name)) == expected["speech_ids"]


def test_nearest_code_takes_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innervoice_kernels.speech_codec.vq._CHUNK", 10)
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[[0.9, 0.1], [0.1, 0.9], [4.0, 4.0]], [[1.0, 0.0], [9.0, 9.0], [0.0, 0.0]]])
    assert nearest_code(x, codebook).tolist() == [[1, 3, 0], [1, 0, 1]]
    generator = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(37, 16, generator=generator), torch.randn(23, 16, generator=generator)
    assert torch.equal(nearest_code(x, codebook), torch.cdist(x.double(), codebook.double()).argmin(-1))
    assert nearest_code(x[:0], codebook).shape == (0,)


@pytest.mark.parametrize("num", [1, 1279, 1280, 1281, 16000])
def test_a_token_each_80_ms_begun(tiny: SpeechTokenizer, reading: np.ndarray, num: int) -> None:
    codes = tiny.encode(reading[:num], 16000)
    assert len(codes) == -(-num // 1280) == tiny.config.num_tokens(num)
    assert all(0 <= code < tiny.vocab_size for code in codes)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_and_channels(tiny: SpeechTokenizer, reading: np.ndarray, rate: int) -> None:
    stereo = np.stack([reading, np.ones_like(reading)], 1)[
        : rate * 2
    ]  # two seconds, whatever they sound like at that rate
    samples, _ = read_audio((stereo, rate))
    assert len(tiny.encode(samples, rate)) == 25


def test_resampled_recording_keeps_most_codes(tiny: SpeechTokenizer, reading: np.ndarray) -> None:
    from innervoice.codec.audio import resample

    again = tiny.encode(resample(reading, 16000, 48000), 48000)
    same = sum(a == b for a, b in zip(again, tiny.encode(reading, 16000), strict=True))
    assert same >= 0.8 * len(again)


def test_long_recordings_are_cut_into_pieces(tiny: SpeechTokenizer, reading: np.ndarray) -> None:
    wave = np.resize(reading, 480000 * 2 + 12345)
    codes = tiny.encode(wave, 16000)
    assert len(codes) == 375 * 2 + 10 == tiny.config.num_tokens(len(wave))
    assert codes == [
        code for start in (0, 480000, 960000) for code in tiny.encode(wave[start : start + 480000], 16000)
    ]


def test_states_do_not_depend_on_padding(golden: dict[str, torch.Tensor], golden_dir: Path) -> None:
    config = read_speech_tokenizer_config(golden_dir)
    weights = {name[2:]: w for name, w in golden.items() if name.startswith("w.")}
    alone = all_states(weights, config, golden["t.features"][1:, :, :112], [54])[0]
    assert (alone - golden["t.pre_pool"][1, :56]).abs().max() < 1e-5


def test_last_piece_sees_the_zeros_of_a_common_length(tiny: SpeechTokenizer) -> None:
    """The original pads the pieces of a recording to one length, so zeros follow the last token, not its
    mirror image.
    """
    generator = np.random.default_rng(0)
    tail = generator.standard_normal(1280).astype(np.float32)
    wave = np.concatenate([np.zeros(480000, np.float32), tail])
    padded = np.concatenate([tail, np.zeros(1280, np.float32)])
    assert tiny.encode(wave, 16000)[-1] == tiny.encode(padded, 16000)[0]
    filters = mel_filters(128, 400, 16000)
    longer = log_mel(torch.from_numpy(padded)[None], filters)[..., :8]
    assert (longer - log_mel(torch.from_numpy(tail)[None], filters)).abs().amax(1)[0].gt(1e-3).tolist() == [
        False
    ] * 7 + [True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_most_codes(
    tiny_dir: Path, tiny: SpeechTokenizer, reading: np.ndarray, dtype: torch.dtype
) -> None:
    half = SpeechTokenizer.from_pretrained(tiny_dir / "glm-4-voice-tokenizer", dtype=dtype)
    codes = half.encode(reading, 16000)
    assert sum(a == b for a, b in zip(codes, tiny.encode(reading, 16000), strict=True)) >= 0.8 * len(codes)
    assert half.num_bytes * 2 == tiny.num_bytes == tensor_bytes(tiny.config, "float32")


def test_encoding_leaves_a_span(tiny_dir: Path, reading: np.ndarray) -> None:
    tracer = Tracer()
    tracer.start()
    SpeechTokenizer.from_pretrained(tiny_dir / "glm-4-voice-tokenizer", tracer=tracer).encode(
        reading[:1280], 16000
    )
    assert [event["name"] for event in tracer._events if event["ph"] == "X"] == ["speech_tokenizer"]


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0, np.float32), 16000, "0 samples"),
        (np.full(9, np.nan, np.float32), 16000, "sample 0 is nan"),
        (np.zeros((9, 2), np.float32), 16000, r"shape \[9, 2\]"),
        (np.zeros(9, np.float32), 0, "rate is 0"),
    ],
)
def test_bad_samples_are_refused(tiny: SpeechTokenizer, samples: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encode(samples, rate)


def test_read_only_samples_are_fine(tiny: SpeechTokenizer, reading: np.ndarray) -> None:
    frozen = reading[:5000].copy()
    frozen.flags.writeable = False
    assert tiny.encode(frozen, 16000) == tiny.encode(reading[:5000], 16000)


def test_prefixed_and_untidy_checkpoints_load(
    tiny_copy: Path, tiny: SpeechTokenizer, reading: np.ndarray
) -> None:
    weights = load_file(tiny_copy / "model.safetensors")
    dropped = ("ema_count", "ema_weight", "embed_positions2.weight")
    weights = {f"model.encoder.{name}": w for name, w in weights.items() if name not in dropped}
    save_file(
        weights | {"model.decoder.x": torch.zeros(1), "proj_out.weight": torch.zeros(1)},
        tiny_copy / "model.safetensors",
    )
    (tiny_copy / "preprocessor_config.json").unlink()
    assert SpeechTokenizer.from_pretrained(tiny_copy).encode(reading, 16000) == tiny.encode(reading, 16000)


def test_unknown_key_is_logged(tiny_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "innervoice"):
        read_speech_tokenizer_config(tiny_copy)
        assert not caplog.records
        change_config(tiny_copy, colour="red")
        read_speech_tokenizer_config(tiny_copy)
    assert "config.json: unknown keys are ignored: colour" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": None}, r"config\.json: key 'd_model' is missing"),
        ({"encoder_causal_convolution": None}, "key 'encoder_causal_convolution' is missing"),
        ({"d_model": "64"}, "d_model is '64', expected int"),
        ({"quantize_vocab_size": 0}, "quantize_vocab_size is 0, expected 1 or more"),
        ({"encoder_attention_heads": 5}, "d_model 64 is no multiple of encoder_attention_heads 5"),
        (
            {"encoder_causal_convolution": False},
            "encoder_causal_convolution is False, only True is supported",
        ),
        ({"encoder_causal_attention": True}, "encoder_causal_attention is True, only False is supported"),
        ({"pooling_type": "max"}, "pooling_type is 'max', only 'avg' is supported"),
        ({"pooling_position": 1}, "pooling_position is 1, only 2 is supported"),
        ({"model_type": "bert"}, "model_type is 'bert', only 'whisper' is supported"),
        ({"max_source_positions": 1499}, "hold 479680 samples, fewer than a piece of 480000"),
        (
            {"quantize_position": 3, "pooling_position": 3},
            r"tensor layers\.2\.self_attn\.q_proj\.weight is missing",
        ),
        (
            {"encoder_ffn_dim": 96},
            r"tensor layers\.0\.fc1\.weight has shape \[128, 64\], expected \[96, 64\]",
        ),
        ({"num_mel_bins": 80}, r"preprocessor_config\.json: feature_size is 128, only 80 is supported"),
    ],
)
def test_bad_configs_are_refused(tiny_copy: Path, changes: dict[str, Any], message: str) -> None:
    change_config(tiny_copy, **changes)
    with pytest.raises(ValueError, match=message):
        SpeechTokenizer.from_pretrained(tiny_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"hop_length": -160}, "hop_length is -160, expected 1 or more"), ({"padding_value": 0.5}, "padding_value is 0.5, only 0.0"),
     ({"n_fft": 401}, "n_fft 401 is odd"), ({"n_samples": 10**9}, "fewer than a piece of 1000000000")],
)  # fmt: skip
def test_bad_front_ends_are_refused(tiny_copy: Path, changes: dict[str, Any], message: str) -> None:
    path = tiny_copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        SpeechTokenizer.from_pretrained(tiny_copy)


def test_bad_weights_are_refused(tiny_copy: Path) -> None:
    change_weights(tiny_copy, codebook__weight=torch.zeros(63, 64))
    with pytest.raises(ValueError, match=r"codebook\.weight has shape \[63, 64\], expected \[64, 64\]"):
        SpeechTokenizer.from_pretrained(tiny_copy)
    change_weights(tiny_copy, codebook__weight=None)
    with pytest.raises(ValueError, match=r"tensor codebook\.weight is missing"):
        SpeechTokenizer.from_pretrained(tiny_copy)
    path = tiny_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .*download it again"):
        SpeechTokenizer.from_pretrained(tiny_copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="name a checkpoint directory"):
        SpeechTokenizer.from_pretrained(tiny_copy)


def test_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is .* a checkpoint directory"):
        SpeechTokenizer.from_pretrained(tmp_path)


@pytest.fixture
def shipped_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHIPPED))
    return tmp_path


def test_shipped_size_from_the_config_alone(shipped_dir: Path) -> None:
    config = read_speech_tokenizer_config(shipped_dir)
    assert num_parameters(config) == 343_599_360
    assert tensor_bytes(config, "bfloat16") == (343_599_360 - 375 * 1280) * 2
    with pytest.raises(ValueError, match="dtype 'int4' is not supported"):
        tensor_bytes(config, "int4")
    assert config == SpeechTokenizerConfig(128, 1280, 20, 5120, 16, 1500, 200, 4, 16384)
    assert len(tensor_shapes(config)) == 249 - 3  # less ema_count, ema_weight and embed_positions2


def test_dummy_weights_need_the_config_alone(tiny_copy: Path, reading: np.ndarray) -> None:
    (tiny_copy / "model.safetensors").unlink()
    first, again = (SpeechTokenizer.from_pretrained(tiny_copy, load_format="dummy") for _ in range(2))
    assert len(set(first.encode(reading, 16000))) > 1
    assert first.encode(reading, 16000) == again.encode(reading, 16000)


@pytest.mark.slow
def test_shipped_size_runs_in_bfloat16(shipped_dir: Path, reading: np.ndarray) -> None:
    tokenizer = SpeechTokenizer.from_pretrained(shipped_dir, dtype=torch.bfloat16, load_format="dummy")
    assert tokenizer.num_bytes == tensor_bytes(tokenizer.config, "bfloat16") == 686_238_720
    codes = tokenizer.encode(reading[:80000], 16000)
    assert len(codes) == 63 and all(0 <= code < 16384 for code in codes)
