"""The speech decoder's files (config.yaml, flow.pt, hift.pt) and its two ways to run, against the original's
answers.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from innervoice.checkpoint.decoder_tensors import flow_shapes, hift_shapes, num_parameters, tensor_bytes
from innervoice.checkpoint.speech_decoder import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    HiftConfig,
    read_decoder_config,
)
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.hift import Hift

SHIPPED = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:numpy.random.seed [1986]
__set_seed3: !apply:torch.manual_seed [1986]
__set_seed4: !apply:torch.cuda.manual_seed_all [1986]
sample_rate: 22050
spk_embed_dim: 192
llm_input_size: 1024
llm: !new:cosyvoice.llm.llm.TransformerLM
  spk_embed_dim: !ref <spk_embed_dim>
  text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder {input_size: 512, num_blocks: 3}
  llm: !new:cosyvoice.transformer.encoder.TransformerEncoder {input_size: !ref <llm_input_size>}
  sampling: !name:cosyvoice.utils.common.ras_sampling {top_p: 0.8}
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
  input_size: 512
  output_size: 80
  spk_embed_dim: !ref <spk_embed_dim>
  output_type: mel
  vocab_size: 16384
  input_frame_rate: 12.5
  only_mask_loss: True
  encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
    {output_size: 512, attention_heads: 8, linear_units: 2048, num_blocks: 6, dropout_rate: 0.1, positional_dropout_rate: 0.1,
     attention_dropout_rate: 0.1, normalize_before: True, input_layer: linear, pos_enc_layer_type: rel_pos_espnet,
     selfattention_layer_type: block_rel_selfattn, block_size: 10, input_size: 512, use_cnn_module: False, macaron_style: False}
  length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator {channels: 80, sampling_ratios: [1, 1, 1, 1]}
  decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
    in_channels: 240
    n_spks: 1
    spk_emb_dim: 80
    cfm_params: !new:omegaconf.DictConfig
      content: {sigma_min: 1e-06, solver: euler, t_scheduler: cosine, training_cfg_rate: 0.2, inference_cfg_rate: 0.7}
    estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
      {in_channels: 320, out_channels: 80, channels: [256, 256], dropout: 0, attention_head_dim: 64, n_blocks: 4,
       num_mid_blocks: 12, num_heads: 8, act_fn: gelu}
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
  in_channels: 80
  base_channels: 512
  nb_harmonics: 8
  sampling_rate: !ref <sample_rate>
  nsf_alpha: 0.1
  nsf_sigma: 0.003
  nsf_voiced_threshold: 10
  upsample_rates: [8, 8]
  upsample_kernel_sizes: [16, 16]
  istft_params: {n_fft: 16, hop_len: 4}
  resblock_kernel_sizes: [3, 7, 11]
  resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
  source_resblock_kernel_sizes: [7, 11]
  source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
  lrelu_slope: 0.1
  audio_limit: 0.99
  f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor {num_class: 1, in_channels: 80, cond_channels: 512}
"""


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> SpeechDecoder:
    return SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder", vocoder_noise=False)


@pytest.fixture(scope="module")
def noisy(tiny_dir: Path) -> SpeechDecoder:
    return SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder")


@pytest.fixture
def copy(tiny_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dir / "glm-4-voice-decoder", tmp_path / "decoder"))


@pytest.fixture(scope="module")
def streamed(data_dir: Path) -> tuple[SpeechDecoder, dict[str, torch.Tensor]]:
    """The small flow and vocoder of the golden files as one decoder, and what the original streamed."""
    golden = data_dir / "golden"

    def weights(name: str) -> dict[str, torch.Tensor]:
        return {
            key[2:]: value
            for key, value in load_file(golden / f"{name}.safetensors").items()
            if key.startswith("w.")
        }

    flow = FlowConfig(
        64, encoder=EncoderConfig(64, 64, 2, 128, 2, 10), estimator=EstimatorConfig((32, 32), 16, 2, 2, 2)
    )
    hift = HiftConfig(base_channels=32, f0_channels=32)
    with torch.inference_mode():
        parts = Flow(flow, weights("flow_small")), Hift(hift, weights("hift_small"))
    return SpeechDecoder(DecoderConfig(flow, hift), *parts, vocoder_noise=False), load_file(
        golden / "stream_small.safetensors"
    )


def error(ours: torch.Tensor | np.ndarray, theirs: torch.Tensor) -> float:
    ours = torch.as_tensor(ours)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("case", [0, 1])
def test_tiny_checkpoint_sounds_as_the_original(tiny: SpeechDecoder, data_dir: Path, case: int) -> None:
    codes = json.loads((data_dir / "tiny" / "expected.json").read_text())[f"case{case}"]["codes"]
    expected = load_file(data_dir / "tiny" / "expected.safetensors")
    assert error(tiny.mel(codes)[0], expected[f"mel{case}"]) < 1e-4
    assert error(tiny.decode(codes), expected[f"wav{case}"]) < 1e-3


def test_reference_streaming_is_the_originals(
    streamed: tuple[SpeechDecoder, dict[str, torch.Tensor]],
) -> None:
    decoder, golden = streamed
    codes, state, start = golden["t.tokens"][0].tolist(), decoder.init_state(), 0
    for chunk, size in enumerate((25, 50, 7)):
        before, final = state, chunk == 2
        samples, state = decoder.push(before, codes[start : start + size], final)
        start += size
        assert error(samples[None], golden[f"t.wav{chunk}"]) < 1e-4
        if not final:
            assert error(state.mel[..., before.mel.shape[-1] :], golden[f"t.mel{chunk}"]) < 1e-4
    assert state.codes == ()
    assert state.overlap is None


def test_offline_is_the_originals(streamed: tuple[SpeechDecoder, dict[str, torch.Tensor]]) -> None:
    decoder, golden = streamed
    codes = golden["t.tokens"][0].tolist()
    assert error(decoder.mel(codes), golden["t.offline_mel"]) < 1e-4
    assert error(decoder.decode(codes)[None], golden["t.offline_wav"]) < 1e-4


def test_a_final_first_chunk_is_the_offline_result(tiny: SpeechDecoder) -> None:
    samples, _ = tiny.push(tiny.init_state(), [1, 2, 3], final=True)
    assert np.array_equal(samples, tiny.decode([1, 2, 3]))


def test_flush_voices_what_the_last_chunk_held_back(tiny: SpeechDecoder) -> None:
    codes = [i * 7 % 64 for i in range(25)]
    samples, state = tiny.push(tiny.init_state(), codes, final=False)
    rest = tiny.flush(state)
    assert len(samples) == 137 * 256
    assert len(samples) + len(rest) == len(tiny.decode(codes)) == 172 * 256
    assert np.abs(rest).max() > 0
    assert np.array_equal(rest, tiny.push(state, [], final=True)[0])


def test_flush_and_empty_pushes_before_the_first_chunk(tiny: SpeechDecoder) -> None:
    state = tiny.init_state()
    assert len(tiny.flush(state)) == len(tiny.decode([])) == len(tiny.push(state, [], final=True)[0]) == 0
    samples, after = tiny.push(state, [], final=False)
    assert len(samples) == 0
    assert after is state


def test_one_frame_is_lost_for_each_chunk_after_the_second(tiny: SpeechDecoder) -> None:
    state, heard = tiny.init_state(), 0
    for _ in range(9):
        samples, state = tiny.push(state, list(range(10)), final=False)
        heard += len(samples)
    samples, _ = tiny.push(state, [1], final=True)
    assert heard + len(samples) == (627 - 8) * 256
    assert np.isfinite(samples).all()


def test_a_chunk_shorter_than_the_overlap_is_refused(tiny: SpeechDecoder) -> None:
    with pytest.raises(ValueError, match="too short to stream"):
        tiny.push(tiny.init_state(), [1, 2, 3, 4], final=False)


def test_codes_out_of_range_are_refused(tiny: SpeechDecoder) -> None:
    for codes in ([0, 64], [-1]):
        with pytest.raises(ValueError, match="out of range"):
            tiny.decode(codes)
        with pytest.raises(ValueError, match="out of range"):
            tiny.push(tiny.init_state(), codes, final=True)


def test_vocoder_noise_is_reproducible_and_makes_a_difference(
    tiny: SpeechDecoder, noisy: SpeechDecoder
) -> None:
    codes = list(range(30))
    first, second = noisy.decode(codes), noisy.decode(codes)
    assert np.array_equal(first, second)
    assert np.abs(first - tiny.decode(codes)).max() > 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close(
    tiny: SpeechDecoder, tiny_dir: Path, dtype: torch.dtype, bound: float
) -> None:
    half = SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder", dtype=dtype, vocoder_noise=False)
    codes = list(range(20))
    assert error(half.mel(codes), tiny.mel(codes)) < 2 * bound
    assert error(half.decode(codes), torch.from_numpy(tiny.decode(codes))) < bound


def test_dummy_weights_need_the_config_alone(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_dir / "glm-4-voice-decoder" / "config.yaml", tmp_path)
    samples = SpeechDecoder.from_pretrained(tmp_path, load_format="dummy").decode([1, 2, 3])
    assert len(samples) == 20 * 256
    assert np.isfinite(samples).all()
    with pytest.raises(FileNotFoundError, match=r"flow\.pt does not exist"):
        SpeechDecoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load_format"):
        SpeechDecoder.from_pretrained(tmp_path, load_format="gguf")  # type: ignore[arg-type]


def test_shipped_config_counts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(SHIPPED)
    config = read_decoder_config(tmp_path / "config.yaml")
    assert config == DecoderConfig()
    flow, hift = flow_shapes(config.flow), hift_shapes(config.hift)
    assert (len(flow), num_parameters(flow)) == (1185, 111_166_208)
    assert (len(hift), num_parameters(hift)) == (227, 20_460_591)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_known_before_loading(tiny_dir: Path, dtype: torch.dtype) -> None:
    root = tiny_dir / "glm-4-voice-decoder"
    decoder = SpeechDecoder.from_pretrained(root, dtype=dtype)
    assert decoder.num_bytes == tensor_bytes(read_decoder_config(root / "config.yaml"), dtype.itemsize)
    gains = sum(
        np.prod(shape)
        for name, shape in hift_shapes(decoder.config.hift).items()
        if name.endswith("weight_g")
    )
    if dtype is torch.float32:
        both = num_parameters(flow_shapes(decoder.config.flow)) + num_parameters(
            hift_shapes(decoder.config.hift)
        )
        assert decoder.num_bytes == 4 * (both - gains)


@pytest.mark.slow
def test_shipped_shapes_run_in_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(SHIPPED)
    decoder = SpeechDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16, load_format="dummy")
    samples = decoder.decode([0, 16383, 5, 77])
    assert len(samples) == 27 * 256
    assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "!apply:random.seed [1986]",
            "!apply:os.system ['true']",
            r"!apply:os\.system is not among the known names",
        ),
        (
            "!apply:random.seed [1986]",
            "!!python/object/apply:os.system ['true']",
            r"apply:os\.system is not allowed",
        ),
        ("!apply:random.seed [1986]", "!include other.yaml", "!include is not allowed"),
        (
            "!apply:random.seed [1986]",
            "!new:subprocess.Popen {args: [ls]}",
            r"!new:subprocess\.Popen is not among",
        ),
        ("!apply:random.seed [1986]", "&a [*a]", r"alias \*a is not allowed"),
        ("!new:cosyvoice.llm.llm.TransformerLM", "!new:os.system", r"!new:os\.system is not among"),
        (
            "!new:cosyvoice.flow.decoder.ConditionalDecoder",
            "!new:cosyvoice.flow.decoder.Other",
            r"cosyvoice\.flow\.decoder\.Other",
        ),
        (
            "!new:cosyvoice.flow.decoder.ConditionalDecoder",
            "",
            r"flow\.decoder\.estimator must be !new:cosyvoice",
        ),
        ("!ref <sample_rate>", "!ref <missing>", "!ref <missing> names no key"),
        ("!ref <sample_rate>", "!ref <sample_rate // 2>", "!ref <sample_rate // 2> is not supported"),
        ("sample_rate: 22050", "sample_rate: !ref <sample_rate>", "refers back to itself"),
        ("sample_rate: 22050", "sample_rate: 24000", "24000 Hz"),
        ("solver: 'euler'", "solver: 'midpoint'", "solver is 'midpoint'"),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", "t_scheduler is 'linear'"),
        ("'rel_pos_espnet'", "'abs_pos'", "pos_enc_layer_type is 'abs_pos'"),
        ("use_cnn_module: False", "use_cnn_module: True", "use_cnn_module is True"),
        ("macaron_style: False", "macaron_style: True", "macaron_style is True"),
        ("act_fn: 'gelu'", "act_fn: 'snake'", "act_fn is 'snake'"),
        ("sampling_ratios: [1, 1, 1, 1]", "sampling_ratios: [1, 2]", r"sampling_ratios is \[1, 2\]"),
        ("block_size: 10", "block_size: ten", "block_size is 'ten'"),
        ("block_size: 10", "block: 10", "'block_size' is missing"),
        ("upsample_rates: [8, 8]", "upsample_rates: [8]", "upsample_kernel_sizes has 2 entries"),
        ("hift: !new", "voc: !new", "hift must be !new:cosyvoice"),
        ("flow: !new", "flow: : !new", "is not valid YAML"),
    ],
)
def test_yaml_refusals(copy: Path, old: str, new: str, message: str) -> None:
    text = (copy / "config.yaml").read_text()
    assert old in text
    (copy / "config.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        SpeechDecoder.from_pretrained(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe\x00", b"a: " + b"[" * 5000])
def test_files_that_are_no_config(copy: Path, content: bytes) -> None:
    (copy / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_decoder_config(copy / "config.yaml")


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist"):
        SpeechDecoder.from_pretrained(tmp_path / "nowhere")


def test_unknown_keys_are_logged(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("    audio_limit", "    flavour: 1\n    audio_limit"))
    with caplog.at_level(logging.INFO, "innervoice"):
        read_decoder_config(copy / "config.yaml")
    assert "flavour" in caplog.text


def _edit(path: Path, **changes: object) -> None:
    state = dict(torch.load(path, weights_only=True))
    for name, value in changes.items():
        key = next(k for k in state if k.endswith(name)) if name != "extra" else name
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": None}, "alpha is missing"),
        ({"alpha": torch.zeros(3)}, r"alpha has shape \[3\], expected \[16\]"),
        ({"extra": torch.zeros(3)}, "tensor extra is not expected"),
        ({"alpha": torch.zeros(16, dtype=torch.int64)}, "floating-point"),
        ({"extra": 5}, "holds a int under 'extra'"),
        ({"extra": Path("x")}, "holds more than tensors"),
    ],
)
def test_wrong_tensors_are_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    _edit(copy / "hift.pt", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        SpeechDecoder.from_pretrained(copy)
    assert "hift.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


class _Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(copy: Path, tmp_path: Path, legacy: bool) -> None:
    state = {"weight": torch.zeros(2), "trap": _Trap(tmp_path / "ran")}
    torch.save(state, copy / "flow.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"flow\.pt (holds more than tensors|is damaged)"):
        SpeechDecoder.from_pretrained(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 10, 5000, -1])
def test_truncated_files_are_refused(copy: Path, kept: int) -> None:
    (copy / "flow.pt").write_bytes((copy / "flow.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"flow\.pt is damaged"):
        SpeechDecoder.from_pretrained(copy)


def test_other_pickles_are_refused(copy: Path) -> None:
    (copy / "flow.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"flow\.pt"):
        SpeechDecoder.from_pretrained(copy)
    torch.save([torch.zeros(1)], copy / "flow.pt")
    with pytest.raises(ValueError, match="holds a list, expected tensors by name"):
        SpeechDecoder.from_pretrained(copy)


def test_the_older_format_of_torch_save_is_read(copy: Path, tiny: SpeechDecoder) -> None:
    state = torch.load(copy / "hift.pt", weights_only=True)
    torch.save(state, copy / "hift.pt", _use_new_zipfile_serialization=False)
    decoder = SpeechDecoder.from_pretrained(copy, vocoder_noise=False)
    assert np.array_equal(decoder.decode([1, 2, 3]), tiny.decode([1, 2, 3]))
