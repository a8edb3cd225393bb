"""What a plan says of a GPU that is not here, and of a model that is larger than this memory."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from innervoice.api import memory_plan as plan
from innervoice.api.configs import read_configs
from innervoice.api.memory_plan import DTYPES, PAGE_SIZE, MemoryPlan, make_plan
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.audio_encoder import encoder_shapes, read_audio_encoder_config
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import DummyTensors
from innervoice.model.device_step import Buffers
from innervoice.model.quant import quantize
from innervoice.model.transformer import Transformer
from innervoice.model.weights import ModelWeights

GIB = 2**30


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(plan, "available_bytes", lambda device: 8 * GIB)


def per_session(made: MemoryPlan) -> int:
    return made.kv_bytes_per_session + made.voice_bytes_per_session + made.step_bytes_per_session


def test_the_step_on_a_gpu_is_counted(tiny_dir: Path, on_a_gpu: None) -> None:
    """As large as what is really allocated, for the rows that an engine would have."""
    paths = locate(tiny_dir)
    made = make_plan(paths, EngineOptions(max_model_len=512))
    configs = read_configs(paths)
    model = Transformer(
        configs.model, configs.family.load_weights(configs.model, DummyTensors(), DTYPES[made.dtype], "cpu")
    )
    buffers = Buffers.allocate(model, 256, 512, PAGE_SIZE)
    assert made.step_bytes_per_session == -(-buffers.num_bytes // 256)
    assert made.step_bytes_per_session > 4 * configs.model.vocab_size  # logits
    assert made.sessions == (int(0.9 * 8 * GIB) - made.fixed_bytes) // per_session(made)


def test_fewer_rows_share_what_is_there_once(tiny_dir: Path, on_a_gpu: None) -> None:
    one, many = (make_plan(locate(tiny_dir), EngineOptions(max_sessions=n)) for n in (1, 64))
    assert (
        one.step_bytes_per_session > many.step_bytes_per_session and one.sessions == 1 and many.sessions == 64
    )


@pytest.mark.parametrize("to", ["int8", "int4", "fp8", None])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_auto_is_bfloat16_for_quantised_weights_of_a_float32_checkpoint(
    tiny_dir: Path, to: str | None, asked: str
) -> None:
    made = make_plan(locate(tiny_dir), EngineOptions(device="cpu", quantization=to, dtype=asked))
    assert made.dtype == ({None: "float32"}.get(to, "bfloat16") if asked == "auto" else asked)
    assert plan.choose_dtype("auto", "float16", True) == "float16"


def test_a_cpu_has_no_such_step(tiny_dir: Path) -> None:
    assert make_plan(locate(tiny_dir), EngineOptions(device="cpu")).step_bytes_per_session == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"dtype": "bfloat16"}, ("bfloat16", "float32")),
        ({"dtype": "float32"}, ("float32", "float32")),
        ({"dtype": "bfloat16", "codec_dtype": "float32"}, ("float32", "float32")),
        ({"dtype": "float32", "codec_dtype": "bfloat16"}, ("bfloat16", "bfloat16")),
    ],
)
def test_the_codec_on_a_gpu_runs_in_halves_as_the_model_does(
    tiny_dir: Path, on_a_gpu: None, asked: dict[str, str], expected: tuple[str, str]
) -> None:
    wide, made = (
        make_plan(locate(tiny_dir), EngineOptions(codec_dtype="float32")),
        make_plan(locate(tiny_dir), EngineOptions(**asked)),
    )  # type: ignore[arg-type]
    assert (made.codec_dtype, made.speech_tokenizer_dtype) == expected
    halves = tuple(dtype == "bfloat16" for dtype in expected)
    assert (
        made.codec_bytes < 0.6 * wide.codec_bytes,
        made.speech_tokenizer_bytes < 0.6 * wide.speech_tokenizer_bytes,
    ) == halves


# Qwen3-Omni-30B-A3B as it is shipped: sizes of its config.json, and numbers of its published tensor index.
THINKER: dict[str, Any] = {
    "model_type": "qwen3_omni_moe_text", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 768, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 65536, "tie_word_embeddings": False, "hidden_act": "silu", "dtype": "bfloat16",
}  # fmt: skip
HEARING: dict[str, Any] = {
    "model_type": "qwen3_omni_moe_audio_encoder", "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32,
    "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "output_dim": 2048, "downsample_hidden_size": 480, "n_window": 50,
    "n_window_infer": 800,
}  # fmt: skip
ALL_NUMBERS, VISION, TALKER, WAVE = 35_259_818_545, 0.539e9, 3.32e9, 0.216e9


def thinker_index() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the thinker's language model."""
    width, heads, groups, head, experts, inner = 2048, 32, 4, 128, 128, 768
    top = {"embed_tokens": (152064, width), "lm_head": (152064, width), "norm": (width,)}
    index: dict[str, tuple[int, ...]] = dict(top)
    for layer in range(48):
        of = {
            "q_proj": (heads * head, width), "k_proj": (groups * head, width), "v_proj": (groups * head, width),
            "o_proj": (width, heads * head), "q_norm": (head,), "k_norm": (head,), "input_layernorm": (width,),
            "post_attention_layernorm": (width,), "gate": (experts, width),
        }  # fmt: skip
        of |= {f"experts.{e}.{name}_proj": (inner, width) for e in range(experts) for name in ("gate", "up")}
        of |= {f"experts.{e}.down_proj": (width, inner) for e in range(experts)}
        index |= {f"{layer}.{name}": shape for name, shape in of.items()}
    return index


@pytest.fixture(scope="module")
def omni_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("omni")
    marks = {"audio_token_id": 151675, "audio_start_token_id": 151669, "audio_end_token_id": 151670}
    thinker = {"text_config": THINKER, "audio_config": HEARING, "vision_config": {}} | marks
    data = {"model_type": "qwen3_omni_moe", "thinker_config": thinker, "dtype": "bfloat16"}
    (made / "config.json").write_text(json.dumps(data))
    return made


def test_a_plan_of_experts_is_the_index_of_their_tensors(omni_dir: Path) -> None:
    """With what is skipped, the published 65.7 GiB of bfloat16."""
    made = make_plan(locate(omni_dir), EngineOptions(device="cpu"))
    numbers = sum(map(math.prod, thinker_index().values()))
    assert (made.dtype, made.weight_bytes, made.kv_bytes_per_token) == ("bfloat16", 2 * numbers, 98_304)
    hearing = read_audio_encoder_config(HEARING, "config.json", "qwen3_omni")
    heard = sum(map(math.prod, encoder_shapes(hearing).values()))
    whole = made.weight_bytes + 2 * (heard + VISION + TALKER + WAVE)
    assert whole == pytest.approx(2 * ALL_NUMBERS, rel=0.001)
    assert whole / GIB == pytest.approx(65.7, rel=0.01)


@pytest.mark.parametrize(
    ("to", "bytes_a_number"),
    [
        ("int8", 1.0),
        ("int4", 0.5 + 4 / 32),
        (Quantization("int4", 128), 0.5 + 4 / 128),
        (Quantization("int4", 64, True), 0.5 + 2 / 64),
    ],
)
def test_a_plan_of_quantised_experts_counts_codes_and_scales(
    omni_dir: Path, to: str | Quantization, bytes_a_number: float
) -> None:
    """Of int4 half a byte a number, and a scale, and perhaps a minimum, of 16 bits a group: 15.5 to 18.2 GiB."""
    made = make_plan(locate(omni_dir), EngineOptions(device="cpu", quantization=to))
    expected = sum(
        math.prod(shape) * (bytes_a_number if name.endswith(("_proj", "lm_head")) else 2)
        for name, shape in thinker_index().items()
    )
    assert made.weight_bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "kv_dtype", "right"),
    [
        ({}, "cpu", "bfloat16", "bfloat16", "int8"),
        ({}, "cpu", "float32", "float32", "native"),
        ({}, "cpu", "float16", "float16", "native"),
        ({}, "cpu", "bfloat16", "fp8_e4m3", "native"),
        ({}, "cuda", "bfloat16", "bfloat16", "native"),
        ({"backend": "plain"}, "cpu", "bfloat16", "bfloat16", "native"),
        ({"activations": "native"}, "cpu", "bfloat16", "bfloat16", "native"),
        ({"activations": "int8"}, "cpu", "float32", "float32", "int8"),
        ({"activations": "mixed"}, "cpu", "bfloat16", "bfloat16", "mixed"),
        ({"activations": "mixed", "backend": "plain"}, "cpu", "bfloat16", "bfloat16", "not backend plain"),
        (
            {"activations": "int8"},
            "cuda",
            "bfloat16",
            "bfloat16",
            "only a CPU multiplies inputs of 8 bits, not cuda",
        ),
        ({"activations": "int8", "backend": "plain"}, "cpu", "bfloat16", "bfloat16", "not backend plain"),
        ({"activations": "int8"}, "cpu", "float16", "float16", "runs float32 and bfloat16, not float16"),
    ],
)
def test_inputs_are_rounded_to_8_bits_where_the_native_decoder_runs(
    changes: Any, device: str, dtype: str, kv_dtype: str, right: str
) -> None:
    """Of a model of int4 weights; one of none of the two formats refuses the option."""
    empty = torch.empty(0, device="meta")
    options, where = EngineOptions(**changes), torch.device(device)
    weights = ModelWeights(empty, (), empty, quantize(torch.ones(3, 40), Quantization("int4", 64)))
    if right not in ("int8", "mixed", "native"):
        with pytest.raises(
            ValueError, match=f"activations is '{options.activations}': .*{right}.*; use auto"
        ):
            plan.choose_activations(options, where, dtype, kv_dtype, weights)
        return
    assert plan.choose_activations(options, where, dtype, kv_dtype, weights) == right
    losing = replace(weights, output=quantize(torch.ones(3, 40), Quantization("int4")))
    chosen = "mixed" if options.activations == "auto" and right == "int8" else right
    assert plan.choose_activations(options, where, dtype, kv_dtype, losing) == chosen
    weights = ModelWeights(empty, (), empty, empty)
    if options.activations in ("int8", "mixed"):
        with pytest.raises(ValueError, match="no weight of this model is int8 or int4"):
            plan.choose_activations(options, where, dtype, kv_dtype, weights)
    else:
        assert plan.choose_activations(options, where, dtype, kv_dtype, weights) == "native"
