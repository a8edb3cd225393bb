"""The reference ops of the language model against independent definitions, and the public ops against the references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.activation import silu_mul_ref
from innervoice_kernels.attention import paged_attention_ref
from innervoice_kernels.kvstore import store_kv_ref
from innervoice_kernels.norm import rms_norm_ref
from innervoice_kernels.rope import rotary_ref
from innervoice_kernels.testing import CASES, OPS, Case, Op, check, errors

ALL = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases]
ATTENTION = [pytest.param(case, id=case.name) for case in CASES["paged_attention"]]


def inputs_of(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return case.make_inputs(dtype, "cpu", torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("op", "case"), ALL)
def test_public_op_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    check(op, case, dtype)


@pytest.mark.parametrize(("op", "case"), ALL)
def test_reference_is_close_in_float32_and_leaks_no_unwritten_memory(op: Op, case: Case) -> None:
    inputs = inputs_of(case, torch.float32)
    wide = {name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for name, v in inputs.items()}
    narrow = op.outputs(op.ref, inputs)
    for got, exact in zip(narrow, op.outputs(op.ref, wide), strict=True):
        assert torch.equal(got.isnan(), exact.isnan())
        assert op.mutates or not got.isnan().any()
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_check_refuses_a_wrong_op() -> None:
    op, case = OPS["rms_norm"], CASES["rms_norm"][1]
    with pytest.raises(AssertionError, match="rms_norm primes"):
        check(op, case, torch.float32, fast=lambda x, w, eps: rms_norm_ref(x, w, eps + 1e-3))
    with pytest.raises(AssertionError, match=r"float64, expected torch\.float32"):
        check(op, case, torch.float32, fast=lambda x, w, eps: rms_norm_ref(x.double(), w.double(), eps))
    nan = torch.tensor([float("nan")])
    assert errors(nan, torch.ones(1), torch.ones(1))[0] == math.inf


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES["rms_norm"]])
def test_rms_norm_is_the_formula(case: Case) -> None:
    inputs = inputs_of(case)
    x, w, eps = inputs["x"], inputs["w"], inputs["eps"]
    expected = torch.zeros_like(x)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])).reshape(-1, x.ndim - 1).tolist():
        row = x[tuple(place)].tolist()
        root = math.sqrt(math.fsum(value * value for value in row) / len(row) + eps)
        normed = [value / root * weight for value, weight in zip(row, w.tolist(), strict=True)]
        expected[tuple(place)] = torch.tensor(normed, dtype=torch.float64)
    torch.testing.assert_close(rms_norm_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES["silu_mul"]])
def test_silu_mul_is_the_formula(case: Case) -> None:
    x = inputs_of(case)["x"]
    half = x.shape[-1] // 2
    torch.testing.assert_close(silu_mul_ref(x), F.silu(x[..., :half]) * x[..., half:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES["rotary"]])
def test_rotary_multiplies_complex_numbers(case: Case) -> None:
    inputs = inputs_of(case)
    x, cos, sin = inputs["x"], inputs["cos"], inputs["sin"]
    num_pairs = cos.shape[-1]
    expected = x.clone()
    for i in range(num_pairs):
        a, b = (2 * i, 2 * i + 1) if inputs["interleaved"] else (i, i + num_pairs)
        turned = torch.complex(x[..., a].contiguous(), x[..., b].contiguous()) * torch.complex(cos[:, i], sin[:, i])[:, None]
        expected[..., a], expected[..., b] = turned.real, turned.imag
    torch.testing.assert_close(rotary_ref(**inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES["store_kv"]])
def test_store_kv_writes_its_slots_and_nothing_else(case: Case) -> None:
    inputs = inputs_of(case)
    expected = {name: inputs[name].clone() for name in ("k_pages", "v_pages")}
    for token, slot in enumerate(inputs["slots"].tolist()):
        if slot >= 0:
            for name in ("k", "v"):
                expected[f"{name}_pages"].flatten(0, 1)[slot] = inputs[name][token]
    store_kv_ref(**inputs)
    for name, pages in expected.items():
        torch.testing.assert_close(inputs[name], pages, rtol=0, atol=0, equal_nan=True)


def test_store_kv_writes_pages_that_are_part_of_more() -> None:
    layers = torch.zeros(2, 3, 4, 2, 5)
    k, v = torch.ones(3, 2, 5), torch.full((3, 2, 5), 2.0)
    store_kv_ref(k, v, layers[1], layers[1].clone(), torch.tensor([0, 7, 11]))
    assert layers[0].sum() == 0
    assert layers[1].flatten(0, 1)[:, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def dense_attention(inputs: dict[str, Any]) -> Tensor:
    """Row by row: keys collected one at a time, an explicit mask of every query and key, torch's own dense attention."""
    q, page_size = inputs["q"], inputs["k_pages"].shape[1]
    out = torch.zeros_like(q)
    for row, length in enumerate(inputs["context_len"].tolist()):
        begin, end = inputs["query_start"][row : row + 2].tolist()
        places = [(int(inputs["page_table"][row, i // page_size]), i % page_size) for i in range(length)]
        if begin == end:
            continue
        mask = torch.zeros(end - begin, length, dtype=q.dtype)
        for query in range(begin, end):
            for key, place in enumerate(places):
                if key > length - end + query:
                    mask[query - begin, key] = -math.inf
                elif inputs.get("query_tag") is not None and 0 != inputs["query_tag"][query] == inputs["key_tag"][place]:
                    mask[query - begin, key] = inputs["log_weight"][row]
        heads = q.shape[1] // inputs["k_pages"].shape[2]
        pages = (inputs["k_pages"], inputs["v_pages"])
        k, v = (torch.stack([side[place] for place in places]).repeat_interleave(heads, 1) for side in pages)
        y = F.scaled_dot_product_attention(
            q[begin:end].transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask, scale=inputs["scale"]
        )
        out[begin:end] = y.transpose(0, 1)
    return out


@pytest.mark.parametrize("case", ATTENTION)
def test_paged_attention_is_dense_attention(case: Case) -> None:
    inputs = inputs_of(case)
    torch.testing.assert_close(paged_attention_ref(**inputs), dense_attention(inputs), rtol=1e-10, atol=1e-12)


def test_weight_changes_tagged_keys_only() -> None:
    case = next(c for c in CASES["paged_attention"] if c.name == "mixed, weighted")
    inputs = inputs_of(case)
    plain = paged_attention_ref(**{k: v for k, v in inputs.items() if k not in ("query_tag", "key_tag", "log_weight")})
    weighted = paged_attention_ref(**inputs)
    torch.testing.assert_close(paged_attention_ref(**inputs | {"log_weight": torch.zeros(6)}), plain, rtol=0, atol=0)
    untagged = inputs["query_tag"] == 0
    assert torch.equal(weighted[untagged], plain[untagged])
    assert not torch.allclose(weighted[~untagged], plain[~untagged])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    case = next(c for c in CASES["paged_attention"] if c.name == "mixed, weighted")
    inputs = inputs_of(case, torch.float32)
    whole = paged_attention_ref(**inputs)
    for row in range(len(inputs["context_len"])):
        begin, end = inputs["query_start"][row : row + 2].tolist()
        alone = inputs | {name: inputs[name][row : row + 1] for name in ("page_table", "context_len", "log_weight")}
        alone |= {name: inputs[name][begin:end] for name in ("q", "query_tag")}
        alone |= {"query_start": torch.tensor([0, end - begin])}
        assert torch.equal(paged_attention_ref(**alone), whole[begin:end])
