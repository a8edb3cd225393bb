"""The peers of the decode bench compute what ours does; the bench runs on a CPU and writes what it should."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from benches import bench
from rows import Rows
from small_codec import MEL, small_flow

from innervoice.model.transformer import Transformer
from innervoice.tools.decode_bench import DecodeModel
from innervoice_kernels.testing import OPS

(
    shapes,
    record,
    codec,
    peers_compiled,
    euler_step,
    static_decode,
    transformers_glm,
    decode,
    formats,
    kernels,
    reply,
) = (
    bench(name)
    for name in (
        "shapes",
        "record",
        "codec",
        "peers.compiled",
        "peers.euler_step",
        "peers.static_decode",
        "peers.transformers_glm",
        "decode",
        "formats",
        "kernels",
        "reply",
    )
)
TINY = shapes.SMALL | {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "padded_vocab_size": 512,
}
PROMPT = [3, 9, 27, 81, 243, 5, 25]


@pytest.fixture(scope="module")
def model() -> DecodeModel:
    return shapes.random_model(TINY, "cpu")


@pytest.fixture(scope="module")
def expected(model: DecodeModel) -> torch.Tensor:
    return Rows(model.transformer, 1, 16).step([PROMPT])[0]  # [T, V]


def assert_same_logits(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail unless the logits of every position are near, differ between positions, and choose the same ids."""
    assert logits.shape == expected.shape == (len(PROMPT), TINY["padded_vocab_size"])
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    assert (logits[1:] - logits[:-1]).abs().amax(-1).min() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_static_peer_computes_the_same(model: DecodeModel, expected: torch.Tensor) -> None:
    peer = static_decode.StaticDecode(model.transformer, 1, 16)
    steps = [peer.logits(torch.tensor([t]), torch.tensor([n]))[0] for n, t in enumerate(PROMPT)]
    assert_same_logits(torch.stack(steps), expected)


def test_transformers_with_our_weights_computes_the_same(model: DecodeModel, expected: torch.Tensor) -> None:
    with torch.inference_mode():
        logits = transformers_glm.glm(model.transformer)(torch.tensor([PROMPT])).logits[0]
    assert_same_logits(logits, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("peer", [static_decode, transformers_glm])
def test_a_peer_steps_again_and_again_at_one_place(model: DecodeModel, peer: Any, compiled: bool) -> None:
    """Its graph is whole, where it is compiled: on a CPU it is traced, and no code is generated."""
    run = peer.stepper(model.transformer, 2, 20, compiled=compiled)
    first = run()
    assert first.shape == (2,) and torch.equal(run(), first)


def test_a_compiled_peer_is_tuned_and_keeps_its_tensors_in_place(
    model: DecodeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a step reads and writes has an address that stays: a CUDA graph would copy the weights for each replay."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    peers_compiled.whole(torch.neg, (), "cuda")
    assert asked["fullgraph"] and asked["options"] == {
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": True,
    }
    monkeypatch.undo()
    inputs: dict[str, Any] = {}

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        inputs.update({node.name: node.meta for node in graph.graph.find_nodes(op="placeholder")})
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: real(function, fullgraph=True, backend=keep))
    static_decode.stepper(model.transformer, 2, 20, compiled=True)
    moving = [
        name for name, meta in inputs.items() if not meta["tensor_dict"].get("_dynamo_static_input_type")
    ]
    assert len(inputs) > 15 and moving == []


def test_the_compiled_euler_step_is_whole_and_computes_the_same() -> None:
    flow = small_flow()
    generator = torch.Generator().manual_seed(3)
    x, mu, cond = (torch.randn(2, MEL, 24, generator=generator) for _ in range(3))
    inputs = (x, mu, mu[..., 0].contiguous(), cond)
    with torch.inference_mode():
        expected = flow.solve(*inputs, 1)
        got = euler_step.stepper(flow, inputs)()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_crippled_peer_of_a_step_is_said_to_be_one() -> None:
    compiled, eager = "torch.compile static cache", "transformers eager"
    assert decode.doubt(compiled, 0.71) is None and decode.doubt(eager, 0.1) is None
    assert decode.doubt(compiled, 0.69) == "the peer reaches 0.69 of the copy's bandwidth, under 0.7"
    assert decode.doubt(decode.GRAPHED, 0.9) == decode.PROVISIONAL


def test_a_crippled_peer_of_the_flow_is_said_to_be_one() -> None:
    times = record.Times
    assert codec.crippled(times((1.0,), 0), times((1.0,), 0)) is None
    assert codec.crippled(times((0.5,), 0), times((1.0,), 0)) is None
    assert "takes 1.50 of the time" in codec.crippled(times((1.5,), 0), times((1.0,), 0))


def test_the_codec_bench_runs_on_a_cpu() -> None:
    options = argparse.Namespace(device="cpu", quick=True, only="networks,attentions,batches")
    made = list(codec.records(options))
    assert [r.goal for r in made if r.goal] == ["G9a", "G9c"] and all(r.ours > 0 for r in made)
    assert {r.shape for r in made if "session" in r.name} == {"1 sessions", "4 sessions"}


def test_attention_and_the_head_are_timed_on_a_cpu() -> None:
    made = kernels.Kernels("cpu", quick=True, only="decode_attention,head_step")
    records = [r for r in made.records() if r.goal or r.peer_name]
    goals = [r.goal for r in records if r.goal]
    assert list(dict.fromkeys(goals)) == ["G5", "G6", "G8"] and all(r.ours > 0 for r in records)
    assert {r.peer_name for r in records} == {"copy", "FlashInfer", "SDPA, dense cache", "bare product"}
    assert [r.goal for r in records if "peer failed" in (r.invalid or "")] in ([], ["G5", "G5"])


def test_other_models_are_refused(model: DecodeModel) -> None:
    from dataclasses import replace

    other = Transformer(replace(model.transformer.config, rope_interleaved=False), model.transformer.weights)
    with pytest.raises(ValueError, match="interleaved rotary"):
        static_decode.StaticDecode(other, 1, 8)


def test_the_decode_bench_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SMALL", TINY)
    monkeypatch.setattr(decode, "INNER", 2)
    made = decode.Decode("cpu", quick=True)
    records = {(r.name, r.shape, r.peer_name): r for r in made.records()}
    steps = [r for r in records.values() if r.name == "decode step"]
    goals = {r.peer_name: r.goal for r in steps}
    assert goals == {"copy": "G1", "roof": None, decode.GRAPHED: "G2", "transformers eager": "G3"}
    assert all(r.ratio and r.bytes and r.flops for r in steps)
    assert [r.invalid for r in steps if r.invalid] == [decode.PROVISIONAL]
    prefill = records["prefill", "100 tokens", "floor"]
    assert prefill.flops == 100 * 2 * sum(
        w.numel() for layer in shapes.random_model(TINY, "cpu").transformer.weights.layers
        for w in (layer.attention_norm, layer.qkv, layer.qkv_bias, layer.attention_out, layer.ffn_norm, layer.gate_up, layer.down)
    ) + 2 * 100 * 64 + 2 * 512 * 64 + 2 * 2 * 4 * 32 * 100**2  # fmt: skip
    model = shapes.random_model(TINY, "cpu")
    assert next(made.dependent(model, 2)).ratio
    failed = made.against(model, "nobody", lambda *_: 1 // 0)  # type: ignore[arg-type, return-value]
    assert failed.ours and failed.ratio is None and failed.invalid and "ZeroDivisionError" in failed.invalid
    assert next(made.dependent(model, 0)).invalid == (
        "it failed: ValueError: decode of 0 rows, 128 tokens of context, 14 steps: each must be 1 or more"
    )


def test_the_formats_bench_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SMALL", TINY)
    monkeypatch.setattr(formats, "INNER", 2)
    steps = {
        (r.dtype, r.peer_name): r
        for r in formats.Formats("cpu", quick=True).records()
        if r.name == "decode step"
    }
    assert set(steps) == {
        ("fp8", "own float32"), ("int4 in groups of 32", "own float32"), ("int4 in groups of 64", "bitsandbytes NF4"),
    }  # fmt: skip
    assert all(
        r.ours and r.bytes and r.details["share_of_copy"] > 0 and not (r.goal and "64" in r.dtype)
        for r in steps.values()
    )
    assert [r.goal for r in steps.values()] == ["G4a", "G4b", None]
    w = shapes.random_model(TINY, "cpu").transformer.weights
    products = [
        part for layer in w.layers for part in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
    ] + [w.output]
    fp8, int4 = steps["fp8", "own float32"], steps["int4 in groups of 32", "own float32"]
    assert fp8.bytes - int4.bytes == sum(
        p.numel() * 3 // 8 + 4 * len(p) for p in products
    )  # 0.625 bytes with scale and minimum


def test_a_spoken_reply_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {r.name: r for r in reply.ReplyTable("cpu", quick=True, rounds=10).records()}
    first, whole = made["first audio"], made["spoken reply"]
    assert first.ratio * first.details["floor_ms"] == pytest.approx(first.ours) and first.ratio > 1
    assert whole.ours > 0 and whole.n == 2 and first.goal == "G10"
    assert {"forward", "sample", "flow", "vocoder"} <= set(first.details["stages"])
    config = shapes.glm4_voice.read_config(shapes.GLM_4_VOICE, "config.json")
    h200 = bench("ceilings").Ceilings(4.3e12, 790e12)
    assert 1e3 * reply.floor_s(config, "bfloat16", h200) == pytest.approx(
        10.4 + 22 * 4.12, rel=0.03
    )  # 102 with flow and vocoder


def test_the_roof_is_the_formula(model: DecodeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What GLM-4-Voice's shape may take on an H200, in bfloat16 at 2k: 4.14 ms at batch 1, 6.61 at 128."""
    config = shapes.glm4_voice.read_config(shapes.GLM_4_VOICE, "config.json")
    measured = decode.Decode.__new__(decode.Decode)
    measured.dtype, measured.context = "bfloat16", 2048
    measured.ceilings = bench("ceilings").Ceilings(4.3e12, 790e12)
    made = type("M", (), {"transformer": type("T", (), {"config": config})})
    assert 1e3 * measured.roof_s(made, 1) == pytest.approx(4.14, rel=2e-3)
    assert 1e3 * measured.roof_s(made, 128) == pytest.approx(6.61, rel=2e-3)


def test_the_kernel_bench_times_what_passes_and_says_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernels.Kernels("cpu", quick=True, only="silu_mul")
    op = next(r for r in made.records() if r.name == "silu_mul")
    assert op.ours and op.peer and op.peer_name == "torch" and op.bytes and not op.invalid
    wrong = {**vars(OPS["silu_mul"]), "fast": lambda x: OPS["silu_mul"].ref(x) + 1}
    record = made.op(type(OPS["silu_mul"])(**wrong), OPS["silu_mul"].cases[0])
    assert record.ours is None and "the check failed: silu_mul" in record.invalid
    assert "share_of_copy" not in op.details  # inputs that stay in the cache say nothing of memory
    made.ceilings = bench("ceilings").Ceilings(4e12, 8e14)
    times = codec.Times((1e-3,), 0)
    assert made.share(1 << 30, 1, times) == {"share_of_copy": pytest.approx((1 << 30) / 1e-3 / 4e12)}
    assert made.share(1 << 20, 32, times) == {}
