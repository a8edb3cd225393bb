"""The native code of sampling against its definition: random masks, ties, any number of threads, bad arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice_kernels import _C
from innervoice_kernels.backend import use
from innervoice_kernels.sampling.sample import Draw, sample, sample_ref

SPANS = st.tuples(st.integers(0, 60), st.integers(0, 60))


@st.composite
def draw_settings(draw: st.DrawFn) -> Draw:
    return Draw(
        tuple(draw(st.lists(SPANS, max_size=4))), tuple(draw(st.lists(st.integers(0, 59), max_size=4))),
        draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])), draw(st.integers(0, 70)), draw(st.sampled_from([0.05, 0.7, 0.999, 1.0])),
        draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 10**6)), draw(st.integers(0, 1)),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(draw_settings(), min_size=1, max_size=4), st.integers(0, 2**31), st.sampled_from([1, 4, 1000])
)
def test_ids_are_those_of_the_definition(draws: list[Draw], seed: int, levels: int) -> None:
    """Few levels: many equal logits, of which any may lie on the edge of top_p, which is off then."""
    logits = torch.randn(len(draws), 60, generator=torch.Generator().manual_seed(seed))
    logits = (logits * levels).round() / levels
    if levels < 1000:
        draws = [replace(draw, top_p=1.0) for draw in draws]
    with use("native"):
        ids, logprobs = sample(logits, draws)
    expected, expected_logprobs = sample_ref(logits, draws)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(logprobs, expected_logprobs, equal_nan=True)


def test_any_number_of_threads_gives_the_same() -> None:
    logits, draws = (
        torch.randn(9, 5000),
        [Draw(((3, 4000),), (4500,), 1.0, 0, 0.9, seed) for seed in range(9)],
    )
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(sample(logits, draws)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_widened(dtype: torch.dtype) -> None:
    logits, draws = (
        torch.randn(3, 300).to(dtype),
        [Draw(((0, 300),), (), 1.0, seed=seed) for seed in range(3)],
    )
    assert torch.equal(sample(logits, draws)[0], sample_ref(logits, draws)[0])


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 draws"):
        sample(torch.zeros(2, 5), [Draw(((0, 5),))])
    with pytest.raises(ValueError, match="row 0 has 2 to 9, expected ascending ones of ids below 5"):
        sample(torch.zeros(1, 5), [Draw(((2, 9),))])
    i64, one = torch.int64, torch.ones(1)
    rest = (
        one,
        torch.zeros(1, dtype=i64),
        one.double(),
        torch.zeros(1, 3, dtype=i64),
        torch.zeros(1, dtype=i64),
        one.clone(),
    )
    with pytest.raises(ValueError, match="row 0 has ranges 0 to 2 of 1"):
        _C.sample(_C.ThreadTeam(1), torch.zeros(1, 5), torch.tensor([0, 2]), torch.tensor([[0, 5]]), *rest)
