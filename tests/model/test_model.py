"""The decoder against the original's golden vectors and transformers' own GLM; configs, weights and damaged checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import Rows, greedy
from safetensors.torch import load_file, save_file
from stepped import VOCABULARY, small_model
from torch import Tensor

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.model_config import GenerationConfig, ModelConfig, read_generation_config
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir
from innervoice.model.families import family_of, glm4_voice
from innervoice.model.pages import PagePool, PageTable
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.model.transformer import Transformer
from innervoice.telemetry.trace import Tracer

SHIPPED: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMForConditionalGeneration"], "num_layers": 40, "hidden_size": 4096,
    "ffn_hidden_size": 13696, "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2,
    "kv_channels": 128, "padded_vocab_size": 168960, "layernorm_epsilon": 3.90625e-08, "rmsnorm": True, "post_layer_norm": True,
    "add_qkv_bias": True, "add_bias_linear": False, "rope_ratio": 1, "original_rope": True, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "eos_token_id": [151329, 151336, 151338],
}  # fmt: skip


def config_of(**changes: Any) -> ModelConfig:
    return glm4_voice.read_config(SHIPPED | changes, "config.json")


# The tiny checkpoint, float32.


@pytest.fixture(scope="module")
def folder(tiny_dir: Path) -> Path:
    return tiny_dir / "glm-4-voice-9b"


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Transformer:
    config = glm4_voice.read_config(read_json(folder / "config.json"), folder / "config.json")
    return Transformer(config, glm4_voice.load_weights(config, TensorDir(folder), torch.float32))


@pytest.fixture(scope="module")
def expected(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "tiny" / "expected.json").read_text())


@pytest.fixture(scope="module")
def tensors(data_dir: Path) -> dict[str, Tensor]:
    return load_file(data_dir / "tiny" / "expected.safetensors")


@pytest.mark.parametrize("case", [0, 1])
def test_prompt_logits(
    tiny: Transformer, expected: dict[str, Any], tensors: dict[str, Tensor], case: int
) -> None:
    prompt = expected[f"case{case}"]["prompt_ids"]
    logits = Rows(tiny, 1, len(prompt)).step([prompt])[0]
    torch.testing.assert_close(logits[-1], tensors[f"prompt_logits{case}"], rtol=0, atol=1e-5)


def test_free_decoding_of_all_cases_in_one_batch(tiny: Transformer, expected: dict[str, Any]) -> None:
    cases = [expected[name] for name in ("case0", "case1", "text")]
    prompts = [case["prompt_ids"] for case in cases]
    rows = Rows(tiny, 3, max(map(len, prompts)) + 60)
    assert greedy(rows, prompts, 60) == [case["free"]["ids"] for case in cases]


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_chunked_prefill_equals_whole(tiny: Transformer, expected: dict[str, Any], chunk: int) -> None:
    prompt = expected["case0"]["prompt_ids"][:101]
    whole = Rows(tiny, 1, len(prompt)).step([prompt])[0]
    rows = Rows(tiny, 1, len(prompt))
    parts = [rows.step([prompt[i : i + chunk]])[0] for i in range(0, len(prompt), chunk)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_prefill_and_decode_mix_in_one_batch(tiny: Transformer, expected: dict[str, Any]) -> None:
    first, second = expected["case0"]["prompt_ids"], expected["text"]["prompt_ids"]
    rows = Rows(tiny, 3, len(first))
    got = [rows.step([first[:99], [], second[:1]])]
    got += [rows.step([first[99 + n : 100 + n], [], second[1 + 9 * n : 10 + 9 * n]]) for n in range(8)]
    for row, ids in ((0, first[:107]), (2, second[:73])):
        alone = Rows(tiny, 1, len(ids)).step([ids])[0]
        torch.testing.assert_close(torch.cat([step[row] for step in got]), alone, rtol=0, atol=1e-5)
    assert all(len(step[1]) == 0 for step in got)


@pytest.mark.parametrize("case", [0, 1])
def test_reflection_weight(
    tiny: Transformer, expected: dict[str, Any], tensors: dict[str, Tensor], case: int
) -> None:
    """Tags by rule 9: heard tokens ask, reflection tokens (open, close and done among them) answer."""
    data = expected[f"case{case}"]
    reply = data["stitch_s_weight_1.15"]
    hidden = {"open", "reflection", "close", "done"}
    prompt = [(i, (0, 0)) for i in data["prompt_ids"]]
    tokens = prompt + [
        (i, (0, 1) if kind in hidden else (1, 0))
        for i, kind in zip(reply["ids"], reply["kinds"], strict=True)
    ]
    ids, tags = [i for i, _ in tokens], [tag for _, tag in tokens]
    logits = Rows(tiny, 1, len(ids), weights=[1.15]).step([ids], [tags])[0]
    torch.testing.assert_close(logits[-1], tensors[f"weight_1.15_last_logits{case}"], rtol=0, atol=1e-5)
    unweighted = Rows(tiny, 1, len(ids), weights=[1.0]).step([ids], [tags])[0]
    torch.testing.assert_close(unweighted, Rows(tiny, 1, len(ids)).step([ids])[0], rtol=0, atol=0)
    assert (unweighted[-1] - logits[-1]).abs().max() > 1e-3


# The original in bfloat16: two layers, every intermediate rounded where it rounds.


class GoldenTensors:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def get(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        tensor = self.tensors[f"w.{name}"]
        assert tensor.shape == shape
        return tensor.to(device=device, dtype=dtype)


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> dict[str, Tensor]:
    return load_file(data_dir / "golden" / "lm_small_bf16.safetensors")


@pytest.fixture(scope="module")
def small(data_dir: Path) -> ModelConfig:
    size = read_json(data_dir / "golden" / "lm_small.json")
    return config_of(
        num_layers=size["num_layers"], padded_vocab_size=size["vocab"], hidden_size=size["hidden"], ffn_hidden_size=size["ffn"],
        kv_channels=size["kv_channels"], num_attention_heads=size["heads"], multi_query_group_num=size["groups"],
        rope_ratio=size["rope_ratio"], layernorm_epsilon=size["eps"],
    )  # fmt: skip


def run_small(config: ModelConfig, golden: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The golden vectors' outputs from our decoder; normed0 is the first layer's output over its root mean square."""
    weights = glm4_voice.load_weights(config, GoldenTensors(golden), dtype)
    ids = golden["t.ids"].tolist()
    rows = Rows(Transformer(config, weights), 1, len(ids[0]))
    logits = rows.step(ids)[0]
    cached = [
        pages[0, rows.table[0].long()].flatten(0, 1)[: len(ids[0])].transpose(0, 1)
        for pages in (rows.kv.k, rows.kv.v)
    ]
    one, identity = torch.ones(config.hidden_size, dtype=dtype), torch.eye(config.hidden_size, dtype=dtype)
    probe = dataclasses.replace(weights, layers=weights.layers[:1], final_norm=one, output=identity)
    layer = Rows(Transformer(dataclasses.replace(config, num_layers=1), probe), 1, len(ids[0])).step(ids)[0]
    return {"t.logits": logits, "t.k0": cached[0], "t.v0": cached[1], "normed0": layer}


def test_small_in_bfloat16_is_as_exact_as_the_original(small: ModelConfig, golden: dict[str, Tensor]) -> None:
    """Error against float64 with the same weights is at most twice the original's own (error rule of the kernels)."""
    got, exact = run_small(small, golden, torch.bfloat16), run_small(small, golden, torch.float64)
    after = golden["t.after_layer0"][0].double()
    theirs = golden | {"normed0": after / after.square().mean(-1, keepdim=True).sqrt()}
    for name in ("t.logits", "t.k0", "t.v0", "normed0"):
        ours = (got[name].double() - exact[name]).abs().max()
        assert ours <= 2 * (theirs[name].squeeze(0).double() - exact[name]).abs().max(), name
    assert torch.equal(got["t.v0"], golden["t.v0"][0])
    torch.testing.assert_close(got["t.k0"], golden["t.k0"][0], rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(got["t.logits"], golden["t.logits"][0].float(), rtol=0, atol=0.04)


def test_embedding_of_small_is_exact(small: ModelConfig, golden: dict[str, Tensor]) -> None:
    weights = glm4_voice.load_weights(small, GoldenTensors(golden), torch.bfloat16)
    assert torch.equal(weights.embedding[golden["t.ids"]], golden["t.embed"])


# transformers' own GLM, which has the same arithmetic under other names.


def chatglm_names(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    out = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
    }
    for i in range(num_layers):
        theirs, ours = f"model.layers.{i}", f"transformer.encoder.layers.{i}"
        for part in ("weight", "bias"):
            qkv = [state[f"{theirs}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            out[f"{ours}.self_attention.query_key_value.{part}"] = torch.cat(qkv)
        out[f"{ours}.input_layernorm.weight"] = state[f"{theirs}.input_layernorm.weight"]
        out[f"{ours}.post_attention_layernorm.weight"] = state[f"{theirs}.post_attention_layernorm.weight"]
        out[f"{ours}.self_attention.dense.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        out[f"{ours}.mlp.dense_h_to_4h.weight"] = state[f"{theirs}.mlp.gate_up_proj.weight"]
        out[f"{ours}.mlp.dense_4h_to_h.weight"] = state[f"{theirs}.mlp.down_proj.weight"]
    return {name: tensor.clone() for name, tensor in out.items()}


@pytest.mark.parametrize(("heads", "groups", "theta"), [(6, 2, 1), (4, 1, 50), (3, 3, 1)])
def test_equals_transformers_glm(tmp_path: Path, heads: int, groups: int, theta: int) -> None:
    transformers = pytest.importorskip("transformers")
    # One key head a query head is written here as grouped queries of one head, which the file format allows.
    sizes = {
        "num_layers": 3,
        "hidden_size": 72,
        "ffn_hidden_size": 136,
        "kv_channels": 24,
        "padded_vocab_size": 211,
    }
    config = config_of(
        num_attention_heads=heads,
        multi_query_group_num=groups,
        rope_ratio=theta,
        layernorm_epsilon=1e-5,
        **sizes,
    )
    theirs = transformers.GlmForCausalLM(
        transformers.GlmConfig(
            vocab_size=211, hidden_size=72, intermediate_size=136, num_hidden_layers=3, num_attention_heads=heads,
            num_key_value_heads=groups, head_dim=24, rms_norm_eps=1e-5, max_position_embeddings=128, attention_bias=True,
            pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0 * theta, "partial_rotary_factor": 0.5},
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(11)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            1.0 if parameter.ndim == 1 else 0.15
        )
    state = chatglm_names(theirs.state_dict(), 3)
    if heads == groups:
        config = dataclasses.replace(config, num_kv_heads=heads)
        interleave_heads(state, heads, 24)
    save_file(state, tmp_path / "model.safetensors")
    model = Transformer(config, glm4_voice.load_weights(config, TensorDir(tmp_path), torch.float32))
    ids = torch.randint(0, 211, (2, 45), generator=generator)
    with torch.inference_mode():
        expected = theirs(ids, use_cache=False).logits
    assert expected.abs().max() > 1
    whole = Rows(model, 2, 45).step(ids.tolist())
    torch.testing.assert_close(torch.stack(whole), expected, rtol=0, atol=1e-4)
    rows = Rows(model, 2, 45)
    rows.step(ids[:, :30].tolist())
    for n in range(30, 45):
        torch.testing.assert_close(
            torch.stack(rows.step(ids[:, n : n + 1].tolist()))[:, 0], expected[:, n], rtol=0, atol=1e-4
        )


def interleave_heads(state: dict[str, Tensor], heads: int, head_dim: int) -> None:
    """Query, key and value of a head together, as the format has them without multi_query_attention."""
    for name in [name for name in state if "query_key_value" in name]:
        by_kind = state[name].reshape(3, heads, head_dim, -1)
        rows = [part for head in zip(*by_kind, strict=True) for part in head]
        state[name] = torch.cat(rows).reshape(state[name].shape)


@pytest.mark.slow
def test_four_layers_of_the_shipped_shape_in_bfloat16() -> None:
    config = config_of(num_layers=4)
    model = Transformer(config, glm4_voice.load_weights(config, DummyTensors(), torch.bfloat16))
    rows = Rows(model, 2, 48)
    out = greedy(rows, [list(range(152353, 152373)), list(range(7))], 3)
    whole = Rows(model, 1, 48).step([[*range(152353, 152373), *out[0]]])[0]
    assert whole.shape == (23, 168960)
    assert whole.isfinite().all()
    assert whole.std() > 0.1


# Configs.


def test_shipped_config() -> None:
    config = config_of()
    assert config.num_parameters == 9_542_557_696
    assert config.weight_bytes() == 2 * 9_542_557_696
    assert config.weight_bytes("float32") == 4 * 9_542_557_696
    assert config.kv_bytes_per_token("bfloat16") == 40_960
    assert (config.rotary_dim, config.rope_theta, config.max_position, config.num_kv_heads) == (
        64,
        10000.0,
        8192,
        2,
    )
    with pytest.raises(ValueError, match="dtype 'int8' is not supported"):
        config.weight_bytes("int8")


def test_parameter_count_is_the_sum_of_the_tensors(tiny: Transformer) -> None:
    weights = tiny.weights
    layers = [getattr(layer, field.name) for layer in weights.layers for field in dataclasses.fields(layer)]
    tensors = [weights.embedding, weights.final_norm, weights.output, *layers]
    total = sum(tensor.numel() for tensor in tensors if tensor is not None)
    assert tiny.config.num_parameters == total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rmsnorm": False}, "rmsnorm is False, which is not supported; GLM-4-Voice has True"),
        ({"post_layer_norm": False}, "post_layer_norm"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"fp32_residual_connection": True}, "fp32_residual_connection"),
        ({"original_rope": False}, "original_rope"),
        ({"quantization_bit": 4}, "quantization_bit is 4"),
        ({"num_layers": 0}, "num_layers is 0, expected 1 or more"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        (
            {"multi_query_group_num": 5},
            "num_attention_heads 32 must be a multiple of multi_query_group_num 5",
        ),
        ({"torch_dtype": "float8"}, "dtype 'float8' is not supported"),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config_of(**changes)
    assert message in str(error.value)


def test_missing_key_and_unknown_key(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"config\.json: key 'ffn_hidden_size' is missing"):
        glm4_voice.read_config({k: v for k, v in SHIPPED.items() if k != "ffn_hidden_size"}, "config.json")
    with caplog.at_level(logging.INFO, logger="innervoice"):
        config_of(colour="blue")
    assert "unknown keys are ignored: colour" in caplog.text


def test_variants_of_the_config() -> None:
    assert config_of(multi_query_attention=False).num_kv_heads == 32
    assert config_of(seq_length=4096, rope_ratio=500).max_position == 4096
    tied = config_of(
        tie_word_embeddings=True, num_layers=1, hidden_size=8, ffn_hidden_size=8, padded_vocab_size=16
    )
    weights = glm4_voice.load_weights(tied, DummyTensors(), torch.float32)
    assert weights.output is weights.embedding
    assert dataclasses.replace(tied, tied=False).num_parameters - tied.num_parameters == 16 * 8


def test_generation_config(folder: Path, tmp_path: Path) -> None:
    assert read_generation_config(folder) == GenerationConfig(
        temperature=0.8, top_k=50, top_p=0.8, eos=(373, 380, 382)
    )
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    assert read_generation_config(tmp_path) == GenerationConfig(
        temperature=1.0, top_k=50, top_p=1.0, eos=(373, 380, 382)
    )
    file = tmp_path / "generation_config.json"
    for content, expected in (
        ({"do_sample": False, "temperature": 0.8}, GenerationConfig(0.0, 50, 1.0, (373, 380, 382))),
        ({"top_k": 5, "top_p": 0.5, "eos_token_id": 9}, GenerationConfig(1.0, 5, 0.5, (9,))),
        ({"top_k": None, "eos_token_id": []}, GenerationConfig(1.0, 0, 1.0, ())),
    ):
        file.write_text(json.dumps(content))
        assert read_generation_config(tmp_path) == expected


def test_a_penalty_is_named_and_not_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05, "top_k": 20}))
    assert read_generation_config(tmp_path).top_k == 20
    assert "repetition_penalty 1.05 is not applied" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 0),
        ("top_k", 1.5),
        ("top_k", 2**63),
        ("temperature", math.nan),
        ("eos_token_id", 2**31),
        ("eos_token_id", "end"),
        ("num_beams", 4),
    ],
)
def test_wrong_generation_config(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=rf"generation_config\.json: .*{key}"):
        read_generation_config(tmp_path)


# Damaged checkpoints.


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> None:
    data = read_json(folder / "config.json")
    family = family_of(data, folder / "config.json")
    family.load_weights(
        family.read_config(data, folder / "config.json"), TensorDir(folder), torch.float32, "cpu"
    )


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


def test_whole_checkpoint_loads(copy: Path) -> None:
    load(copy)


def test_missing_tensor(copy: Path) -> None:
    name = "transformer.encoder.final_layernorm.weight"
    index = copy / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"][name]
    index.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"tensor {name} is missing"):
        load(copy)


def test_misshapen_tensor(copy: Path) -> None:
    name = "transformer.output_layer.weight"
    rewrite(copy, lambda tensors: tensors.update({name: tensors[name][:500]}))
    with pytest.raises(ValueError, match=rf"tensor {name} has shape \[500, 128\], expected \[512, 128\]"):
        load(copy)


def test_truncated_file(copy: Path) -> None:
    file = copy / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors cannot be read as safetensors"):
        load(copy)


def test_missing_shard(copy: Path) -> None:
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors does not exist"):
        load(copy)


def test_wrong_model_type_and_no_config(copy: Path) -> None:
    for kind in ("whisper", None):
        with pytest.raises(
            ValueError, match=f"model_type {kind!r} is not a language model .*: expected 'chatglm'"
        ):
            family_of({"model_type": kind}, copy / "config.json")
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: is .* a checkpoint directory"):
        load(copy)


def test_on_a_gpu_the_head_computes_what_is_wanted_alone() -> None:
    """Ids are computed in spans that begin and end at multiples of 64; where none is wanted there are no logits."""
    model, made = small_model(vocabulary=dataclasses.replace(VOCABULARY, size=400)), []
    for outputs in (None, [(2, 5), (330, 334)], []):
        runner = ModelRunner(model, 4, 4, Tracer(), backend="plain")
        assert not runner.splits_head
        runner.splits_head = True
        row = Sequence(PageTable(PagePool(4, 4)))
        row.extend([1, 2, 3])
        row.table.grow(3)
        made.append(runner.forward([row], outputs))
    whole, some, none = made
    computed = torch.zeros(whole.shape[1], dtype=torch.bool)
    computed[:64] = computed[320:384] = True
    torch.testing.assert_close(some[:, computed], whole[:, computed], rtol=1e-5, atol=1e-5)
    assert some.shape == whole.shape and some[:, ~computed].isnan().all()
    assert none.shape == (1, 0)
