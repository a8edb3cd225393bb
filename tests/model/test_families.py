"""Llama, Qwen2, Qwen3 and GLM-4 checkpoints against transformers' own classes; the settings that are refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import CASES, LLAMA3, MIXTURE, PLAIN, VOCAB, YARN, make, transformers
from rows import Rows
from torch import Tensor

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.rope import Llama3Scaling, YarnScaling
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir
from innervoice.model.families import Family, family_of
from innervoice.model.kv_cache import KVCache
from innervoice.model.native import make_native
from innervoice.model.pages import pages_for
from innervoice.model.quant import laid_out
from innervoice.model.quant_source import BlankSource, QuantizingSource
from innervoice.model.rope_scaling import frequencies
from innervoice.model.transformer import AttentionInputs, Transformer

LENGTH, PREFILL = 45, 30


def load(folder: Path) -> tuple[Family, Transformer]:
    source = folder / "config.json"
    family = family_of(read_json(source), source)
    config = family.read_config(read_json(source), source)
    return family, Transformer(config, family.load_weights(config, TensorDir(folder), torch.float32, "cpu"))


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    theirs = make(name)
    sharded = name in ("qwen2", "qwen3_moe", "llama_tied_llama3")
    theirs.save_pretrained(tmp_path, **({"max_shard_size": "100KB"} if sharded else {}))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not sharded
    family, model = load(tmp_path)
    assert ("glm" if name.startswith("glm") else "llama") == family.NAME
    assert model.config.num_parameters == theirs.num_parameters()
    ids = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = theirs(ids, use_cache=False).logits
        cached = theirs(ids[:, :PREFILL], use_cache=True)
        last = theirs(ids[:, PREFILL:], past_key_values=cached.past_key_values).logits
    assert expected.std() > 1
    whole = torch.stack(Rows(model, 2, LENGTH).step(ids.tolist()))
    close(whole, expected)
    rows = Rows(model, 2, LENGTH)
    close(torch.stack(rows.step(ids[:, :PREFILL].tolist())), cached.logits)
    decoded = [torch.stack(rows.step(ids[:, n : n + 1].tolist())) for n in range(PREFILL, LENGTH)]
    close(torch.cat(decoded, dim=1), last)
    print(
        f"{name}: prefill {(whole - expected).abs().max():.1e}, decode {(torch.cat(decoded, 1) - last).abs().max():.1e}"
    )


@pytest.mark.parametrize(
    ("kind", "rope", "max_position"),
    [
        (
            "llama3",
            {"rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            131072,
        ),
        ("yarn", {"rope_theta": 1e6, "factor": 4.0}, 131072),
        ("linear", {"rope_theta": 1e4, "factor": 4.0}, 16384),
        ("default", {"rope_theta": 1e6}, 32768),
    ],
)
def test_frequencies_of_shipped_shapes(kind: str, rope: dict[str, Any], max_position: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope |= {"rope_type": kind} | ({"original_max_position_embeddings": 8192} if kind == "llama3" else {})
    rope |= {"original_max_position_embeddings": 32768} if kind == "yarn" else {}
    sizes: dict[str, Any] = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "max_position_embeddings": max_position,
    }
    theirs = transformers.LlamaConfig(**sizes, rope_parameters=dict(rope))
    got, factor = frequencies(config_of(**sizes, rope_parameters=rope))
    if kind == "default":
        expected, expected_factor = 1e6 ** -(torch.arange(0, 128, 2) / 128), 1.0
    else:
        expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert factor == expected_factor


@pytest.mark.parametrize(("to", "most"), [("int8", 0.12), ("int4", 0.6), ("fp8", 0.2)])
def test_quantised_experts(tmp_path: Path, to: str, most: float) -> None:
    """Each expert's product is of the numbers that its codes stand for; the plan knows their bytes before loading."""
    make("qwen3_moe").save_pretrained(tmp_path)
    family, exact = load(tmp_path)
    source = QuantizingSource(TensorDir(tmp_path), Quantization(to))  # type: ignore[arg-type]
    weights = family.load_weights(exact.config, source, torch.float32, "cpu")
    planned = family.load_weights(exact.config, BlankSource(source.to), torch.float32, "meta")
    assert planned.num_bytes == weights.num_bytes < exact.weights.num_bytes / 2
    ids = torch.randint(0, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(5)).tolist()
    got, right = (
        Rows(Transformer(exact.config, of), 1, LENGTH).step(ids)[0] for of in (weights, exact.weights)
    )
    layers = tuple(
        replace(
            layer, **{name: x.dequantize() for name, x in vars(layer).items() if hasattr(x, "dequantize")}
        )
        for layer in weights.layers
    )
    numbers = replace(weights, layers=layers, output=weights.output.dequantize())  # type: ignore[union-attr]
    close(got, Rows(Transformer(exact.config, numbers), 1, LENGTH).step(ids)[0])
    error = float((got - right).square().mean().sqrt() / right.std())
    print(f"{to}: logits off by {error:.3f} of their spread")
    assert 0 < error < most


def test_experts_run_natively_but_in_fp8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = make("qwen3_moe")
    theirs.save_pretrained(tmp_path)
    family, model = load(tmp_path)
    num_pages = pages_for(LENGTH, 16)
    kv, places = KVCache.allocate(model.config, num_pages, 16, torch.float32), torch.arange(LENGTH)
    start, context = (torch.tensor(x, dtype=torch.int32) for x in ([0, LENGTH], [LENGTH]))
    batch = AttentionInputs(places, places, torch.arange(num_pages, dtype=torch.int32)[None], start, context)
    ids = torch.randint(0, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(5))
    native = make_native(model, kv, "auto", threads=1)
    assert native is not None
    with torch.inference_mode():
        close(native.logits(ids, batch, kv, places), theirs(ids[None], use_cache=False).logits[0])
    source = QuantizingSource(TensorDir(tmp_path), Quantization("fp8", head=False))
    fp8 = Transformer(model.config, family.load_weights(model.config, source, torch.float32, "cpu"))
    with caplog.at_level(logging.WARNING, logger="innervoice"):
        assert make_native(fp8, kv, "auto") is None
    assert "plain PyTorch: qkv is in fp8, covered are float32, bfloat16, int8 and int4" in caplog.text
    source = QuantizingSource(TensorDir(tmp_path), Quantization("int4"))
    weights = family.load_weights(model.config, source, torch.float32, "cpu")
    folded = replace(weights, output=laid_out(weights.output))
    with pytest.raises(ValueError, match="output is int4 folded for a GPU"):
        make_native(Transformer(model.config, folded), kv, "native")


def test_tied_weights_share_storage(tmp_path: Path) -> None:
    make("qwen2_yarn").save_pretrained(tmp_path)
    weights = load(tmp_path)[1].weights
    assert weights.output is weights.embedding


def test_random_weights_need_no_checkpoint(tmp_path: Path) -> None:
    make("qwen3").config.save_pretrained(tmp_path)
    family = family_of(read_json(tmp_path / "config.json"), tmp_path)
    config = family.read_config(read_json(tmp_path / "config.json"), tmp_path)
    model = Transformer(config, family.load_weights(config, DummyTensors(), torch.bfloat16, "cpu"))
    assert Rows(model, 1, 5).step([[1, 2, 3]])[0].isfinite().all()


# What configs say in their older and newer forms.

OLD: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 104, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
MOE = {"model_type": "qwen3_moe"} | MIXTURE


def config_of(**changes: Any) -> ModelConfig:
    data = {key: value for key, value in (OLD | changes).items() if value is not ...}
    return family_of(data, "config.json").read_config(data, "config.json")


def test_older_keys() -> None:
    config = config_of(rope_theta=5e5, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_theta"})
    assert (config.rope_theta, config.rope_scaling) == (5e5, Llama3Scaling(4.0, 1.0, 4.0, 32))
    assert (config.num_kv_heads, config.head_dim, config.rotary_dim, config.dtype) == (4, 16, 16, "bfloat16")
    assert config_of().rope_theta == 1e4
    assert not config_of().tied
    yarn = config_of(
        model_type="qwen2",
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": None},
    )
    assert isinstance(yarn.rope_scaling, YarnScaling)
    assert (yarn.rope_scaling.original_max_position, yarn.max_position, yarn.qkv_bias) == (4096, 16384, True)
    assert yarn.rope_scaling.attention_factor == pytest.approx(0.1 * 1.3862943611 + 1)
    both = config_of(
        rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": None}
    ).rope_scaling
    assert isinstance(both, YarnScaling)
    assert both.attention_factor == pytest.approx(1.13862943611 / 1.06931471806)
    assert config_of(model_type="glm").rotary_dim == 64
    assert config_of(model_type="glm", partial_rotary_factor=0.25, head_dim=32).rotary_dim == 8
    assert config_of(model_type="qwen3").head_dim == 128
    assert config_of(model_type="qwen3").qk_norm
    assert config_of(torch_dtype=..., dtype="float16").dtype == "float16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling: scaling of type 'dynamic' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope_parameters: scaling of type 'longrope' is not supported",
        ),
        ({"rope_parameters": {"full_attention": PLAIN}}, "expected one object for all layers"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: key 'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0, expected a number above 0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor is 4.0"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention'",
        ),
        ({"attention_bias": True}, "attention_bias is true, which is not supported for model_type 'llama'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported; supported is 'silu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is {'quant_method': 'awq'}"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        (
            {"model_type": "glm", "head_dim": 16, "partial_rotary_factor": 0.2},
            "3 rotated dimensions of head_dim 16",
        ),
        ({"hidden_size": ...}, "key 'hidden_size' is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"torch_dtype": "float8"}, "dtype 'float8' is not supported"),
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not a language model of a supported type"),
        ({"model_type": "qwen3_moe"}, "key 'num_local_experts' is missing"),
        (MOE | {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than the 8 of num_experts"),
        (MOE | {"mlp_only_layers": [1]}, "mlp_only_layers is [1], which is not supported; supported is []"),
        (
            MOE | {"decoder_sparse_step": 2},
            "decoder_sparse_step is 2, which is not supported; supported is 1",
        ),
        (MOE | {"moe_intermediate_size": 0}, "moe_intermediate_size is 0, expected 1 or more"),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config_of(**changes)
    assert message in str(error.value)


def test_missing_shard_tensor(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"model\.layers\.3\..* is missing"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(data | {"intermediate_size": 96}))
    with pytest.raises(
        ValueError, match=r"mlp\.down_proj\.weight has shape \[64, 104\], expected \[64, 96\]"
    ):
        load(tmp_path)


def test_unknown_keys_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="innervoice"):
        config_of(colour="blue")
    assert "unknown keys are ignored: colour" in caplog.text
