"""The native decoder over weights in lanes, whose inputs are rounded to 8 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from native_rows import BASE, MODELS, REFLECTION, NativeRows, make_model, plain_of, run
from rows import Rows
from torch import Tensor

from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.lanes import LanedWeight
from innervoice.model.native import NativeDecoder
from innervoice.model.pages import Activations
from innervoice.model.quant import Int4Weight, Int8Weight, Weight
from innervoice.model.transformer import Transformer
from innervoice_kernels import _C
from innervoice_kernels.language.linear_lanes import lane_linear_ref
from innervoice_kernels.testing.rule import errors

ISAS = _C.available_isas()
STEPS = ((5, 17, 1), (1, 1, 1), (2, 0, 3), (30, 1, 1), (1, 1, 1))
CONFIG = replace(BASE, tied=False, hidden_size=160, ffn_size=100)


class Rounded(Transformer):
    """The plain decoder with the reference of products with inputs of 8 bits."""

    def _linear(self, weight: Weight, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Int8Weight):
            y = lane_linear_ref(x, weight.codes, weight.scale)
        elif isinstance(weight, Int4Weight):
            y = lane_linear_ref(x, weight.codes, weight.scale, weight.minimum, weight.group)
        else:
            return super()._linear(weight, x, bias)
        return y if bias is None else y + bias


def laned(
    config: ModelConfig, kind: str, dtype: torch.dtype = torch.float32, activations: Activations = "int8"
) -> tuple[Transformer, Transformer]:
    """A model, and the same with its weights in lanes."""
    model = make_model(config, kind, dtype)
    return model, Transformer(config, model.weights.for_inputs(activations))


@pytest.mark.parametrize("kind", ["int8", "int4-32", "int4-32s", "int4-64s", "int4-128"])
@pytest.mark.parametrize("isa", ISAS)
def test_logits_are_as_exact_as_the_reference(isa: str, kind: str) -> None:
    model, turned = laned(CONFIG, kind)
    got = run(NativeRows(turned, NativeDecoder(turned, _C.ThreadTeam(2), isa), 3, 64, REFLECTION), STEPS)
    right = run(Rows(plain_of(model, torch.float64), 3, 64, REFLECTION), STEPS)
    error, bound = errors(
        got, run(Rows(Rounded(model.config, model.weights), 3, 64, REFLECTION), STEPS), right
    )
    assert error <= bound


@pytest.mark.parametrize("name", ["plain", "experts"])
@pytest.mark.parametrize(
    ("kind", "activations"),
    [("int8", "int8"), ("int4-32", "int8"), ("int4-32", "mixed"), ("int4-64s", "int8")],
)
def test_neither_threads_nor_neighbours_change_a_bit(kind: str, activations: Activations, name: str) -> None:
    """Prompts of few and of many rows, then steps of a token each."""
    _, model = laned(replace(MODELS[name], tied=False), kind, torch.bfloat16, activations)
    together = [
        run(NativeRows(model, NativeDecoder(model, _C.ThreadTeam(n)), 3, 64, REFLECTION), STEPS)
        for n in (1, 2, 5)
    ]
    assert all(torch.equal(one, together[0]) for one in together)
    native = NativeDecoder(model, _C.ThreadTeam(2))
    ids = [[7, 8, 9], list(range(40)), [5]], [[1], [2], [3]], [[4], [5], [6]]
    rows = NativeRows(model, native, 3, 64)
    beside = [rows.step(step) for step in ids]
    for row in range(3):
        alone = NativeRows(model, native, 1, 64)
        for step, got in zip(ids, beside, strict=True):
            assert torch.equal(alone.step([step[row]])[0], got[row])


def test_mixed_inputs_are_native_for_queries_keys_and_values_alone() -> None:
    model = make_model(replace(MODELS["plain"], tied=False), "int4-32", torch.bfloat16)
    weights = model.weights.for_inputs("mixed")
    assert model.weights.for_inputs("native") is model.weights
    assert isinstance(weights.output, LanedWeight)
    for mixed, own in zip(weights.layers, model.weights.layers, strict=True):
        assert mixed.qkv is own.qkv and isinstance(own.qkv, Int4Weight)
        assert all(isinstance(x, LanedWeight) for x in (mixed.attention_out, mixed.gate_up, mixed.down))


@pytest.mark.parametrize(
    ("kind", "output", "loses"),
    [("int4-32", "int4-32", True), ("int4-32", "bfloat16", False), ("int4-32", "int8", False)]
    + [(kind, kind, False) for kind in ("int8", "int4-32s", "int4-64", "int4-128", "bfloat16")],
)
def test_models_that_lose_most_are_known_by_their_formats(kind: str, output: str, loses: bool) -> None:
    config = replace(MODELS["plain"], tied=False)
    weights, other = (make_model(config, name, torch.bfloat16).weights for name in (kind, output))
    assert replace(weights, output=other.output).loses_most == loses
