"""What the kernels of the step promise beside the error rule: splits, neighbours, ties, masks and refusals, interpreted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.language import attention_decode, linear  # noqa: E402
from innervoice_kernels.language.attention import paged_attention, paged_attention_ref  # noqa: E402
from innervoice_kernels.language.attention_decode import Workspace  # noqa: E402
from innervoice_kernels.language.linear import SplitWorkspace, gated_linear  # noqa: E402
from innervoice_kernels.sampling.bits import pack_ids  # noqa: E402
from innervoice_kernels.sampling.head import head_sample  # noqa: E402
from innervoice_kernels.sampling.philox import gumbel_noise_ref  # noqa: E402
from innervoice_kernels.sampling.sample import Draw, draws_of, sample, sample_ref  # noqa: E402
from innervoice_kernels.testing import CASES, OPS, check  # noqa: E402

MIXED = next(case for case in CASES["paged_attention"] if case.name == "mixed, weighted")
DECODE = next(case for case in CASES["paged_attention"] if case.name == "decode")


def inputs_of(case: Any, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return case.make_inputs(dtype, "cpu", torch.Generator().manual_seed(1))


def one_row(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    begin, end = inputs["query_start"][row : row + 2].tolist()
    alone = inputs | {name: inputs[name][row : row + 1] for name in ("page_table", "context_len")}
    alone |= {name: inputs[name][begin:end] for name in ("q", "query_tag", "log_weight") if name in inputs}
    return alone | {"query_start": torch.tensor([0, end - begin], dtype=torch.int32)}


@pytest.mark.parametrize(("split", "most"), [(16, 32), (16, 3), (32, 2)])
@pytest.mark.parametrize("case", [MIXED, DECODE], ids=lambda case: case.name)
def test_attention_splits_obey_the_error_rule(
    monkeypatch: pytest.MonkeyPatch, case: Any, split: int, most: int
) -> None:
    monkeypatch.setattr(attention_decode, "SPLIT", split)
    monkeypatch.setattr(attention_decode, "MOST", most)
    for dtype in (torch.float32, torch.bfloat16):
        with use("triton"):
            check(OPS["paged_attention"], case, dtype)


def test_attention_of_a_row_is_the_same_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_decode, "SPLIT", 16)
    inputs = inputs_of(MIXED, torch.bfloat16)
    with use("triton"):
        whole = paged_attention(**inputs)
        for row in range(len(inputs["context_len"])):
            begin, end = inputs["query_start"][row : row + 2].tolist()
            assert torch.equal(paged_attention(**one_row(inputs, row)), whole[begin:end])


def test_prefill_in_chunks_is_prefill_at_once() -> None:
    inputs = inputs_of(
        next(case for case in CASES["paged_attention"] if case.name == "prefill"), torch.bfloat16
    )
    with use("triton"):
        whole = paged_attention(**inputs)
        for begin, end in ((0, 19), (19, 40), (40, 53)):
            chunk = inputs | {
                "q": inputs["q"][begin:end],
                "context_len": torch.tensor([end], dtype=torch.int32),
            }
            chunk["query_start"] = torch.tensor([0, end - begin], dtype=torch.int32)
            assert torch.equal(paged_attention(**chunk), whole[begin:end])


def test_a_workspace_serves_call_after_call_and_keeps_what_nobody_owns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_decode, "SPLIT", 16)
    inputs = inputs_of(DECODE)
    workspace = Workspace.allocate(4, 4, 2, 16, 256, torch.device("cpu"))
    out = torch.full((5, 4, 16), 7.0)
    with use("triton"):
        for _ in range(2):
            paged_attention(**inputs, max_queries=1, out=out, workspace=workspace)
            torch.testing.assert_close(out[:3], paged_attention_ref(**inputs), rtol=1e-5, atol=1e-5)
            assert (workspace.arrived == 0).all() and (out[3:] == 7).all()
        with pytest.raises(ValueError, match="workspace is too small"):
            paged_attention(**inputs, workspace=Workspace.allocate(1, 4, 2, 16, 256, torch.device("cpu")))


def test_attention_names_what_is_wrong() -> None:
    inputs = inputs_of(DECODE)
    with use("triton"):
        with pytest.raises(ValueError, match=r"q is torch\.float16"):
            paged_attention(**inputs | {"q": inputs["q"].half()})
        with pytest.raises(ValueError, match=r"context_len is torch\.int64"):
            paged_attention(**inputs | {"context_len": inputs["context_len"].long()})
        with pytest.raises(ValueError, match="v_pages"):
            paged_attention(**inputs | {"v_pages": inputs["v_pages"][:-1]})


def test_a_product_of_a_row_is_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = (
        torch.randn(19, 1100, generator=generator).bfloat16(),
        torch.randn(70, 1100, generator=generator).bfloat16() / 32,
    )
    norm = linear.Norm(torch.ones(1100).bfloat16(), 1e-5)
    assert linear.split_of(70, 1100, torch.bfloat16) == 2
    with use("triton"):
        whole = linear.linear(x, w, norm=norm, invariant=True)
        gated = gated_linear(x, w, norm, invariant=True)
        for rows in (slice(0, 1), slice(3, 10), slice(18, 19)):
            assert torch.equal(linear.linear(x[rows], w, norm=norm), whole[rows])
            assert torch.equal(gated_linear(x[rows], w, norm), gated[rows])


def test_a_product_reuses_its_workspace() -> None:
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(2, 1100, generator=generator), torch.randn(37, 1100, generator=generator) / 32
    workspace = SplitWorkspace.allocate(((37, 1100), (5, 2048)), torch.float32, torch.device("cpu"))
    with use("triton"):
        for _ in range(2):
            torch.testing.assert_close(
                linear.linear(x, w, workspace=workspace), x @ w.T, rtol=1e-5, atol=1e-5
            )
            assert (workspace.arrived == 0).all()
        with pytest.raises(ValueError, match=r"x is torch\.float32 \(2, 1100\)"):
            linear.linear(x, w[:, :-1])


def test_the_split_rule() -> None:
    half = torch.bfloat16
    shapes = {
        "qkv": (4608, 4096),
        "out": (4096, 4096),
        "down": (4096, 13696),
        "gate and up": (27392, 4096),
        "head": (168960, 4096),
    }
    assert {name: linear.split_of(*shape, half) for name, shape in shapes.items()} == {
        "qkv": 4, "out": 4, "down": 4, "gate and up": 1, "head": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("top_k", "top_p"), [
    pytest.param(k, p, marks=[] if (k, p) in {(0, 0.25), (0, 0.55), (3, 0.05), (9, 0.5), (9, 0.999)} else [pytest.mark.slow])
    for k in (0, 3, 9) for p in (0.05, 0.25, 0.5, 0.55, 0.999)
])  # fmt: skip
def test_the_kept_set_is_the_reference_s_with_ties(top_k: int, top_p: float) -> None:
    """Eight levels of logits, powers of two apart in probability: every draw of 300 is the reference's, none outside its set."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randint(0, 8, (1, 150), generator=generator) * 0.6931471805599453
    draws = [Draw(((2, 90), (100, 149)), (95,), 1.0, top_k, top_p, seed=n, n=n) for n in range(10)]
    with use("triton"):
        ids, logprobs = sample(z.expand(10, -1), draws)
    expected, expected_logprobs = sample_ref(z.expand(10, -1), draws)
    assert ids.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)


def test_zeros_of_both_signs_are_equal() -> None:
    z = torch.tensor([[0.0, -0.0, -0.0, -5.0]])
    with use("triton"):
        for n in range(6):
            draw = Draw(((0, 4),), (), 1.0, 1, seed=9, n=n)
            assert sample(z, [draw])[0].tolist() == sample_ref(z, [draw])[0].tolist() == [
                int(gumbel_noise_ref(9, n, 0, torch.arange(3)).argmax())
            ]  # fmt: skip


def test_masks_that_a_kernel_cannot_hold_are_drawn_from_by_their_bits() -> None:
    """More ranges or single ids than a kernel's mask has, and packed bits beside a mask that it holds."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1, 75, generator=generator) * 2
    odd = pack_ids(range(1, 75, 2), 75)
    wide = [
        Draw(((0, 1), (2, 3), (40, 50), (60, 75)), (), 1.2, 5, 0.9, seed=4),
        Draw((), tuple(range(0, 72, 9)), 0.0),
        Draw(((0, 75),), (), 0.9, 6, 0.8, seed=2, bits=odd),
        Draw(((10, 12),), (33,), 0.0),
    ]
    for n in range(6):
        draws = [replace(draw, n=n) for draw in wide]
        with use("triton"):
            ids, logprobs = sample(logits.expand(len(draws), -1), draws)
        expected, expected_logprobs = sample_ref(logits.expand(len(draws), -1), draws)
        assert ids.tolist() == expected.tolist()
        torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at most 3 ranges and 7 single ids"):
        draws_of(wide[:1], logits.device)


def test_every_part_of_a_mask_is_drawn_from() -> None:
    """Three ranges and seven single ids: the kernel and the definition have the same of them."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(1, 300, generator=generator)
    ranges, single = ((3, 9), (130, 140), (250, 252)), (0, 20, 60, 129, 200, 260, 299)
    logits[0, [1, 141, 253]] = 100.0  # beside them all
    for best in (5, 135, 251, *single):
        draws = [Draw(ranges, single, 0.0)]
        likely = logits.clone()
        likely[0, best] = 50.0
        with use("triton"):
            ids, logprobs = sample(likely, draws)
        expected, expected_logprobs = sample_ref(likely, draws)
        assert ids.tolist() == expected.tolist() == [best]
        torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-4, atol=1e-4)


def test_the_head_reads_only_what_may_be_drawn() -> None:
    """Weights that no mask touches are NaN; those of a touched tile that no mask has, too."""
    generator = torch.Generator().manual_seed(5)
    x, w = torch.randn(2, 16, generator=generator), torch.randn(400, 16, generator=generator)
    draws = [Draw(((70, 80),), (3,), 0.7, 4, 0.9, seed=1), Draw(((300, 310),), (), 0.0)]
    touched = torch.cat([torch.arange(70, 80), torch.tensor([3]), torch.arange(300, 310)])
    holes = torch.full_like(w, float("nan")).index_copy(0, touched, w[touched])
    with use("triton"):
        ids, logprobs = head_sample(x, holes, draws)
    expected, expected_logprobs = sample_ref(x @ w.T, draws)
    assert ids.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-4, atol=1e-4)
