"""References of a mixture of experts against independent definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from innervoice_kernels.language.expert_groups import group_pairs_ref
from innervoice_kernels.language.expert_products import ExpertWeights, routed_ffn_ref
from innervoice_kernels.language.experts import expert_ffn_ref
from innervoice_kernels.testing import CASES, Case


def every(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES[name]])


def inputs_of(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return case.make_inputs(dtype, "cpu", torch.Generator().manual_seed(1))


@every("expert_ffn")
def test_experts_of_the_largest_softmax_values(case: Case) -> None:
    inputs = inputs_of(case)
    x, logits = inputs["x"], inputs["logits"]
    num_experts, width = logits.shape[1], x.shape[1]
    gates, downs = (inputs[name].view(num_experts, -1, inputs[name].shape[1]) for name in ("gate_up", "down"))
    inner = downs.shape[2]
    expected = torch.zeros(len(x), width, dtype=torch.float64)
    for t, row in enumerate(logits.tolist()):
        whole = math.fsum(math.exp(value) for value in row)
        chosen = sorted(range(num_experts), key=lambda e: -row[e])[: inputs["num_used"]]
        of = math.fsum(math.exp(row[e]) for e in chosen) if inputs["normalized"] else whole
        for e in chosen:
            gate, up = gates[e, :inner] @ x[t], gates[e, inner:] @ x[t]
            expected[t] += math.exp(row[e]) / of * (downs[e] @ (F.silu(gate) * up))
    torch.testing.assert_close(expert_ffn_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


@every("expert_ffn")
def test_routed_experts_are_the_experts(case: Case) -> None:
    given = inputs_of(case)
    weights = [ExpertWeights(given.pop(name)) for name in ("gate_up", "down")]
    x, logits, used, normalized = (given[name] for name in ("x", "logits", "num_used", "normalized"))
    expected = expert_ffn_ref(x, logits, *(w.numbers for w in weights), used, normalized)
    made = routed_ffn_ref(x, logits, *weights, used, normalized, residual=x)
    torch.testing.assert_close(made - x, expected, rtol=1e-12, atol=1e-12)


@every("group_pairs")
def test_tiles_hold_every_pair_once_beside_pairs_of_its_expert(case: Case) -> None:
    given = case.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(0))
    pairs, rows = given["expert"].flatten().tolist(), given["rows"]
    made = group_pairs_ref(**given)
    held = [
        (e, p)
        for e, tile in zip(made.expert.tolist(), made.pair.view(-1, rows).tolist(), strict=True)
        for p in tile
    ]
    assert sorted(p for _, p in held if p < len(pairs)) == list(range(len(pairs)))
    assert all(pairs[p] == e for e, p in held if p < len(pairs))
    assert all(
        p < len(pairs)
        for (e, p), first in zip(held, range(len(held)), strict=True)
        if e >= 0 and not first % rows
    )
