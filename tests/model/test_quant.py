"""Quantised weights: what the numbers mean, directories of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import Rows
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from innervoice import Engine, Sampling, Text
from innervoice.api.memory_plan import make_plan
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.quantization import KEY, Quantization, read_quantization
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir
from innervoice.model import quant
from innervoice.model.families import llama
from innervoice.model.quant import (
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Quantized,
    embed,
    joined,
    laid_out,
    linear,
    num_bytes,
    quantize,
    rows_of,
    tensors_of,
    to_fp8,
    to_int4,
    to_int8,
)
from innervoice.model.quant_source import METADATA, QuantizedDir, QuantizingSource, read_weight
from innervoice.model.transformer import Transformer
from innervoice.model.weights import ModelWeights
from innervoice.tools.cli import main as cli
from innervoice.tools.quantize import Quantizer, Written

FORMATS = [
    Quantization("int8"),
    Quantization("fp8"),
    Quantization("int4"),
    Quantization("int4", 64, symmetric=True),
    Quantization("int4", 128, head=False),
]
SHAPES = [(1, 1), (7, 131), (33, 64), (5, 32), (16, 257)]
every_format = pytest.mark.parametrize("to", FORMATS, ids=str)
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128, "vocab_size": 1500,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "eos_token_id": 2,
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(weight: Quantized) -> list[list[float]]:
    """Number by number, from the description of the formats."""
    rows, columns = weight.shape
    if not isinstance(weight, Int4Weight):
        return [
            [weight.codes[n, k].item() * weight.scale[n].item() for k in range(columns)] for n in range(rows)
        ]

    def one(n: int, k: int) -> float:
        byte, group = int(weight.codes[n, k // 2]), k // weight.group
        code = byte // 16 if k % 2 else byte % 16
        scale = weight.scale[n, group].item()
        return (
            scale * code + weight.minimum[n, group].item()
            if weight.minimum is not None
            else scale * (code - 8)
        )

    return [[one(n, k) for k in range(columns)] for n in range(rows)]


@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_mean_what_the_formats_say_and_are_the_nearest_there_are(
    to: Quantization, shape: tuple[int, int]
) -> None:
    w = normal(*shape)
    w[0] *= 30  # rows of very different size
    made = quantize(w, to)
    assert made.shape == shape
    got = made.dequantize()
    torch.testing.assert_close(got, torch.tensor(by_hand(made)), rtol=1e-6, atol=1e-7)
    error = (got - w).abs()
    if isinstance(made, Int8Weight):
        bound = made.scale[:, None] / 2
    elif isinstance(made, Fp8Weight):  # three bits behind the point; below 2^-6 equal steps of 2^-9
        bound = torch.maximum(w.abs() / 16, made.scale[:, None] * 2**-10)
    else:  # half a step, a whole one beyond -8 or the largest; scale and minimum are rounded to float16
        steps = made.scale.float().abs().repeat_interleave(made.group, 1)[:, : shape[1]]
        bound = steps * (0.5 if made.minimum is not None else 1.0) + w.abs().amax() * 2**-10
    assert bool((error <= bound * (1 + 1e-5) + 1e-7).all())


@every_format
def test_rows_may_be_cut_joined_and_looked_up(to: Quantization) -> None:
    w = normal(12, 70)
    made, index = quantize(w, to), torch.tensor([3, 3, 0, 11])
    again = quantize(w[index], to)
    for a, b in zip(tensors_of(rows_of(made, index)).values(), tensors_of(again).values(), strict=True):
        assert torch.equal(a.float(), b.float())
    both = joined([quantize(w[:5], to), quantize(w[5:], to)], torch.float32)
    assert not isinstance(both, Tensor)
    assert torch.equal(both.dequantize(), made.dequantize())
    assert torch.equal(embed(made, index, torch.bfloat16), made.dequantize()[index].bfloat16())
    mixed = joined([made, w], torch.float32)
    assert isinstance(mixed, Tensor)
    assert torch.equal(mixed, torch.cat([made.dequantize(), w]))


def test_a_large_weight_is_quantised_by_blocks_of_rows_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(23, 70)
    whole = [quantize(w, to) for to in FORMATS]
    monkeypatch.setattr(quant, "_BLOCK_NUMBERS", 300)
    for to, right in zip(FORMATS, whole, strict=True):
        for a, b in zip(tensors_of(quantize(w, to)).values(), tensors_of(right).values(), strict=True):
            assert torch.equal(a.float(), b.float())


@every_format
def test_products_are_those_of_the_dequantised_weight(to: Quantization) -> None:
    made, x, bias = quantize(normal(33, 70), to), normal(2, 3, 70, seed=1), normal(33, seed=2)
    torch.testing.assert_close(
        linear(made, x, bias), F.linear(x, made.dequantize(), bias), rtol=1e-5, atol=1e-5
    )
    assert linear(made, x[0, :0]).shape == (0, 33)
    assert linear(made, x.bfloat16(), bias.bfloat16()).dtype == torch.bfloat16


@every_format
def test_a_layout_for_the_gpu_changes_no_number(to: Quantization) -> None:
    made = quantize(normal(9, 150), to)
    turned = laid_out(made)
    assert not isinstance(turned, Tensor)
    assert torch.equal(turned.dequantize(), made.dequantize())
    assert turned.codes.stride(0) % 16 == 0 and turned.codes.data_ptr() % 16 == 0
    if isinstance(turned, Int4Weight):
        assert (
            turned.scale.stride() == (1, 9) and turned.folded and laid_out(turned).codes.equal(turned.codes)
        )
        index = torch.tensor([3, 3, 0])
        assert torch.equal(embed(turned, index, torch.float32), made.dequantize()[index])
    assert torch.equal(linear(turned, normal(2, 150, seed=1)), linear(made, normal(2, 150, seed=1)))


def test_rows_of_zeros_and_constants_are_exact() -> None:
    w = torch.zeros(3, 40)
    w[1] = 0.5
    for make in (to_int8, to_fp8, to_int4):
        assert torch.equal(make(w).dequantize(), w)
    symmetric = to_int4(w, 32, symmetric=True)
    assert torch.equal(symmetric.dequantize(), w)


def test_each_format_takes_the_bytes_that_it_says() -> None:
    w = normal(64, 256)
    assert num_bytes(to_int8(w)) == num_bytes(to_fp8(w)) == 64 * 256 + 64 * 4
    assert num_bytes(to_int4(w, 32)) == 64 * 256 * 5 // 8  # 5 bits a weight
    assert num_bytes(to_int4(w, 128, symmetric=True)) == 64 * (128 + 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: to_int8(torch.full((2, 3), float("nan"))), "6 of 6 numbers are NaN"),
        (lambda: to_int4(torch.tensor([[1.0, float("inf")]])), "1 of 2 numbers are NaN or infinite"),
        (lambda: to_int4(torch.full((1, 32), 1e6)), "above float16's 65504"),
        (lambda: to_int4(torch.ones(1, 32), 48), "a group of 48 columns does not fit: use 32, 64, 128"),
        (lambda: to_fp8(torch.ones(2, 2, 2)), "only floating-point weights"),
        (lambda: Quantization("int4", 48), "a group of 48 columns does not fit"),
        (lambda: Quantization("int8", 32), "group and symmetric are int4's"),
        (lambda: Quantization("fp8", symmetric=True), "group and symmetric are int4's"),
        (lambda: Quantization("int3"), "'int3' is unknown: use int8, int4, fp8"),  # type: ignore[arg-type]
        (lambda: Int8Weight(torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3)), r"scales of int8 codes are float32 \[3\]"),
        (lambda: Int4Weight(to_int4(torch.ones(2, 64)).codes, torch.ones(2).half(), None, 64, 32), r"expected float16 \[2, 2\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2.1 million weights in bfloat16, which are random."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    taken: dict[str, Tensor] = {}

    class Taking(DummyTensors):
        def get(self, name: str, shape: tuple[int, ...], **more: Any) -> Tensor:
            taken[name] = super().get(name, shape, **more)
            return taken[name]

    llama.load_weights(llama.read_config(LLAMA, folder), Taking(std=0.08), torch.bfloat16)
    save_file(taken, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def written(source: Path, out: Path, to: Quantization) -> list[Written]:
    return list(Quantizer(CheckpointPaths(source), out, to).run())


def weights_of(folder: Path, to: Quantization, dtype: torch.dtype = torch.bfloat16) -> ModelWeights:
    config = llama.read_config(LLAMA, folder)
    directory = TensorDir(folder)
    is_made = read_quantization(read_json(folder / "config.json"), folder)[1] is not None
    return llama.load_weights(
        config, QuantizedDir(directory, to) if is_made else QuantizingSource(directory, to), dtype
    )


def all_tensors(weights: ModelWeights) -> list[Tensor]:
    held = [weights.embedding, weights.output, weights.final_norm]
    held += [
        getattr(layer, name)
        for layer in weights.layers
        for name in ("attention_norm", "qkv", "attention_out", "gate_up", "down")
    ]
    return [x for one in held for x in ([one] if isinstance(one, Tensor) else tensors_of(one).values())]


@every_format
def test_a_directory_reloads_exactly_and_is_as_large_as_planned(
    small: Path, tmp_path: Path, to: Quantization
) -> None:
    told = written(small, tmp_path / "out", to)
    fresh, again = weights_of(small, to), weights_of(tmp_path / "out", to)
    for a, b in zip(all_tensors(fresh), all_tensors(again), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.float(), b.float())
    plan, planned = (
        make_plan(CheckpointPaths(p), EngineOptions(device="cpu", quantization=q))
        for p, q in ((tmp_path / "out", None), (small, to))
    )
    assert plan.quantization == planned.quantization == to
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    loses_most = to.format == "int4" and to.head and to.group == 32 and not to.symmetric
    activations = "native" if to.format == "fp8" else "mixed" if loses_most else "int8"
    assert plan.activations == planned.activations == activations
    assert plan.weight_bytes == planned.weight_bytes == again.for_inputs(plan.activations).num_bytes
    assert again.num_bytes == sum(one.num_bytes for one in told)
    assert abs(size - plan.weight_bytes) <= 0.01 * plan.weight_bytes
    half = make_plan(CheckpointPaths(small), EngineOptions(device="cpu")).weight_bytes
    assert plan.weight_bytes < half * {"int8": 0.52, "fp8": 0.52}.get(to.format, 0.33 if to.head else 0.45)
    errors = [one.error for one in told if one.error is not None]
    assert len(errors) == 14 + to.head
    assert all(0 < error < {"int8": 0.02, "fp8": 0.04, "int4": 0.15}[to.format] for error in errors)


def test_logits_are_those_of_the_dequantised_model(small: Path) -> None:
    config = llama.read_config(LLAMA, small)
    ids = torch.randint(0, 1500, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    for to in FORMATS:
        source = QuantizingSource(TensorDir(small), to)

        class Dequantised:
            def get(
                self, name: str, shape: tuple[int, ...], *, source: QuantizingSource = source, **more: Any
            ) -> Tensor:
                if "norm" in name:
                    return source.get(name, shape, **more)
                made = read_weight(
                    source, name, shape, head="embed" in name, dtype=torch.float32, device="cpu"
                )
                return made if isinstance(made, Tensor) else made.dequantize()

        quantised, plain = (llama.load_weights(config, x, torch.float32) for x in (source, Dequantised()))
        got, expected = (Rows(Transformer(config, w), 1, 32).step([ids])[0] for w in (quantised, plain))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_engine_answers_from_a_quantised_directory_as_when_it_quantises(
    tiny_dir: Path, tmp_path: Path
) -> None:
    """GLM-4-Voice's layout, whose file has one tensor for query, key and value."""
    paths = locate(tiny_dir)
    list(Quantizer(paths, tmp_path / "out", Quantization("int4")).run())
    greedy, replies = Sampling(temperature=0, max_new_tokens=40), []
    for folder, to in ((paths.model, "int4"), (tmp_path / "out", None), (paths.model, None)):
        with Engine.from_pretrained(
            folder, device="cpu", quantization=to, max_sessions=1, max_model_len=256
        ) as engine:
            replies.append(engine.generate(Text("hello"), sampling=greedy).ids)
            assert (engine.plan().quantization is None) == (to is None and folder == paths.model)
    assert replies[0] == replies[1] != replies[2]


def test_a_cache_of_fp8_changes_logits_little_and_takes_half_the_bytes(small: Path) -> None:
    config = llama.read_config(LLAMA, small)
    model = Transformer(config, llama.load_weights(config, TensorDir(small), torch.bfloat16))
    ids = torch.randint(0, 1500, (2, 40), generator=torch.Generator().manual_seed(0)).tolist()
    exact, eight = Rows(model, 2, 48), Rows(model, 2, 48, kv_dtype=torch.float8_e4m3fn)
    feeds = [[row[:21] for row in ids], *([[row[i]] for row in ids] for i in range(21, 40))]
    for feed in feeds:  # across borders of pages, one token at a time
        for right, got in zip(exact.step(feed), eight.step(feed), strict=True):
            assert 0 < (got - right).norm() < 0.2 * right.norm()  # e4m3 is off by 2.6% in the mean
    plans = [
        make_plan(CheckpointPaths(small), EngineOptions(device="cpu", kv_dtype=kind))
        for kind in ("auto", "fp8_e4m3")
    ]
    scales = 2 * 2 * 2 * 4  # keys and values, layers, heads, bytes; once a page
    assert plans[1].kv_bytes_per_session == plans[0].kv_bytes_per_session // 2 + scales * 8
    held = eight.kv
    before = [x.clone().float() for x in (held.k, held.v, held.k_scale, held.v_scale) if x is not None]
    pages = torch.tensor([0, 1, 2])
    taken = held.take(pages)
    for part in (held.k, held.v, held.k_scale, held.v_scale):
        assert part is not None
        part[:, :3] = 0
    held.put(pages, taken, 0)
    held.copy_page(0, 3)
    for old, new in zip(before, (held.k, held.v, held.k_scale, held.v_scale), strict=True):
        assert new is not None
        assert torch.equal(new[:, 3].float(), old[:, 0]) and torch.equal(new[:, :3].float(), old[:, :3])


def test_an_engine_with_a_cache_of_fp8_answers_and_shares_beginnings(tiny_dir: Path) -> None:
    """A second reply to the same prompt finds the pages of the first, and says the same."""
    with Engine.from_pretrained(
        tiny_dir, device="cpu", kv_dtype="fp8_e4m3", max_sessions=2, max_model_len=256
    ) as engine:
        first, second = (
            engine.generate(Text("hello, " * 20), sampling=Sampling(temperature=0, max_new_tokens=30))
            for _ in range(2)
        )
    assert first.ids == second.ids
    assert second.usage.cached_tokens >= 16 > first.usage.cached_tokens


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None], **metadata: str) -> None:
    file = folder / "model.safetensors"
    tensors, told = load_file(file), TensorDir(folder).metadata()
    change(tensors)
    save_file({name: x.clone() for name, x in tensors.items()}, file, metadata=told | metadata)


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{NAME}.scale"), f"tensor {NAME}.scale is missing"),
        (lambda t: t.update({f"{NAME}.scale": t[f"{NAME}.scale"][:, 1:]}), rf"{NAME}.scale has shape \[256, 21\], expected"),
        (lambda t: t.update({f"{NAME}.scale": t[f"{NAME}.scale"].float()}), f"{NAME}.scale holds float32, expected float16"),
        (lambda t: t[f"{NAME}.minimum"][3].fill_(float("nan")), f"{NAME}.minimum holds NaN"),
        (lambda t: t.pop(f"{NAME}.codes"), f"tensor {NAME}.codes is missing"),
    ],
    ids=["no scale", "scale misshapen", "scale mistyped", "NaN in minimum", "no codes"],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(
    small: Path, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    to = Quantization("int4")
    written(small, tmp_path / "out", to)
    damaged(tmp_path / "out", change)
    with pytest.raises(ValueError, match=words):
        weights_of(tmp_path / "out", to)


def test_metadata_and_config_must_agree(small: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "out", Quantization("int4")
    written(small, out, to)
    with pytest.raises(
        ValueError, match=r"metadata says .*'group': 32.* of weight .*, expected .*'group': 64"
    ):
        weights_of(out, Quantization("int4", 64))
    config = read_json(out / "config.json")
    with pytest.raises(ValueError, match="quantised already, as int4 in groups of 32, not int8"):
        make_plan(CheckpointPaths(out), EngineOptions(device="cpu", quantization="int8"))
    for key, value, words in (
        ("group", 48, "a group of 48"),
        ("format", "int5", "'int5' is unknown"),
        ("bits", 4, "unknown key 'bits'"),
    ):
        (out / "config.json").write_text(json.dumps(config | {KEY: config[KEY] | {key: value}}))
        with pytest.raises(ValueError, match=words):
            make_plan(CheckpointPaths(out), EngineOptions(device="cpu"))
    (out / "config.json").write_text(json.dumps(config))
    damaged(out, lambda t: None, **{METADATA: "?"})
    with pytest.raises(ValueError, match=f"has no {METADATA}"):
        weights_of(out, to)


def test_command_says_sizes_and_errors(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(
            ["quantize", str(small), str(tmp_path / "out"), "--to", "int4", "--group", "64", "--keep-head"]
        )
        == 0
    )
    shown = capfd.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert "int4 256 x 688" in " ".join(lines[NAME].split())
    assert lines[NAME].rstrip().endswith("%")
    assert "bfloat16" in lines["model.embed_tokens.weight"]
    assert cli.main(["plan", "--model", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "int4 in groups of 64 but for the output layer, the rest bfloat16" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "int4", "--group", "48"], "a group of 48 columns does not fit: use 32, 64, 128"),
        (["--to", "int8", "--symmetric"], "group and symmetric are int4's"),
        (["--to", "int2"], "Invalid value for '--to'"),
    ],
)
def test_command_refuses(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["quantize", str(small), str(tmp_path / "out"), *words]) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_model_that_cannot_be_quantised(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out"
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps(LLAMA))
    tensors = load_file(small / "model.safetensors")
    tensors[NAME][7, 9] = float("nan")
    save_file(tensors, bad / "model.safetensors")
    assert cli.main(["quantize", str(bad), str(out), "--to", "int8"]) == 2
    assert f"tensor {NAME}: 1 of 176128 numbers are NaN or infinite" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
    written(small, out, Quantization("int8"))
    assert cli.main(["quantize", str(small), str(out), "--to", "int8"]) == 2
    assert "exists and is not an empty directory" in capfd.readouterr().err
    assert cli.main(["quantize", str(out), str(tmp_path / "twice"), "--to", "int8"]) == 2
    assert "quantised already" in capfd.readouterr().err
