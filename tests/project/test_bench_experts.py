"""bench.experts and bench.audio_encoder: what they compare makes the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import bench
from rows import Rows
from torch.utils.flop_counter import FlopCounterMode

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import DummyTensors
from innervoice.model.families.llama import load_weights
from innervoice.model.quant import Int4Weight
from innervoice.model.transformer import Transformer
from innervoice_kernels import _C

experts, audio_encoder = bench("experts"), bench("audio_encoder")
DENSE = ModelConfig("llama", 2, 48, 6, 2, 16, 96, 300, 1e-5, 16, 10000.0, False, False, True, 2048, "float32")


def logits(config: ModelConfig, source: object) -> torch.Tensor:
    model = Transformer(config, load_weights(config, source, torch.float32, "cpu"))  # type: ignore[arg-type]
    return Rows(model, 1, 32).step([list(range(7, 30))])[0]


def test_a_model_cut_into_experts_is_the_dense_one() -> None:
    config = replace(DENSE, ffn_size=12, num_experts=8, num_used_experts=8)
    dense, cut = DummyTensors(), experts.CutIntoExperts(DummyTensors(), DENSE, 8, None)
    torch.testing.assert_close(logits(config, cut), logits(DENSE, dense), rtol=0, atol=1e-4)
    coarse = experts.CutIntoExperts(dense, DENSE, 8, Quantization("int4"))
    weights = load_weights(config, coarse, torch.float32, "cpu")
    layer = weights.layers[0]
    assert isinstance(layer.gate_up, Int4Weight) and isinstance(layer.down, Int4Weight)
    assert isinstance(layer.qkv, torch.Tensor)


def test_what_is_compared_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    layer, team = experts.Layer(quick=True), _C.ThreadTeam(1)
    experts.check(layer, team)
    made = layer.loop(9)()
    monkeypatch.setattr(layer, "loop", lambda rows: lambda: 1.2 * made)
    with pytest.raises(AssertionError, match=r"the implementations differ by 0\.[12]"):
        experts.check(layer, team)


def test_the_encoder_beside_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, and as many operations as torch counts in its products and convolutions."""
    pytest.importorskip("transformers")
    kinds: dict[str, bool] = {"quick": True, "without_halves": False}
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        config = audio_encoder.read_audio_encoder_config(audio_encoder.SMALL, "bench", "qwen3_omni")
        encode = audio_encoder.theirs(audio_encoder.SMALL, audio_encoder.drawn(config, torch.float32))
        encode([torch.zeros(128, audio_encoder.FRAMES)])
    found = {str(op): number for op, number in counted.get_flop_counts()["Global"].items()}
    products = sum(number for op, number in found.items() if "attention" not in op)
    assert audio_encoder.operations(config, audio_encoder.FRAMES // 100) == products
    with torch.inference_mode():
        (record,) = audio_encoder.speeds(torch.bfloat16, (1,), threads=1, **kinds)
        assert 0 < record.details["share_of_products"] < 1 and record.ratio > 0
        monkeypatch.setattr(audio_encoder, "theirs", lambda *_: lambda mels: torch.zeros(()))
        with pytest.raises(AssertionError, match="the encoders differ by"):
            next(audio_encoder.speeds(torch.float32, (1,), threads=1, **kinds))
