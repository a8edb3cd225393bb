"""The fused forward pass of a runner against the plain one, interpreted: logits, pages, tags."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from stepped import Lives, small_model  # noqa: E402

from innervoice.batch import Role  # noqa: E402
from innervoice.config.quantization import Quantization  # noqa: E402
from innervoice.stepper import DecodeForward  # noqa: E402
from innervoice_kernels.backend import use  # noqa: E402

SPANS = [(2, 5), (30, 34)]


@pytest.mark.parametrize(
    ("to", "kv_dtype"),
    [(None, None), pytest.param(Quantization("int4"), torch.float8_e4m3fn, marks=pytest.mark.long)],
    ids=["float32", "int4 and fp8 pages"],
)
def test_steps_are_those_of_the_plain_forward_pass(to: Quantization | None, kv_dtype: torch.dtype | None) -> None:
    """Rows in another order, a batch that is smaller than its bucket, pages that change hands, ids that nobody asks for."""
    model = small_model(to=to)
    plain, fused = Lives(model, "ref", kv_dtype), Lives(model, "triton", kv_dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if kv_dtype is None else {"rtol": 0.05, "atol": 0.05}
    for index, order in enumerate([(0, 1, 2), (2, 0), (1, 2, 0)]):
        expected, got = (lives.step(index, order) for lives in (plain, fused))
        torch.testing.assert_close(got, expected, **tolerance)
        assert torch.equal(fused.runner.kv.key_tag, plain.runner.kv.key_tag)
        assert [row.num_cached for row in fused.rows] == [row.num_cached for row in plain.rows]
    if kv_dtype is None:
        for mine, other in ((fused.runner.kv.k, plain.runner.kv.k), (fused.runner.kv.v, plain.runner.kv.v)):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_the_head_computes_what_is_wanted_alone() -> None:
    model = small_model()
    plain, fused = Lives(model, "ref"), Lives(model, "triton")
    expected, got = plain.step(0, (0, 1, 2)), fused.step(0, (0, 1, 2), SPANS)
    wanted = torch.zeros(expected.shape[1], dtype=torch.bool)
    for first, last in SPANS:
        wanted[first:last] = True
    torch.testing.assert_close(got[:, wanted], expected[:, wanted], rtol=1e-4, atol=1e-4)
    assert got[:, ~wanted].isnan().all()


def test_what_it_does_not_cover_goes_the_plain_way() -> None:
    """Prompts, more rows than there are places, a row behind the model's length; without Triton it is refused."""
    lives = Lives(small_model(), "triton")
    with use("triton"):
        made = DecodeForward(lives.runner.model, lives.runner.kv, max_rows=2, max_model_len=6)
    for row in lives.rows:
        row.append(1, Role.NEUTRAL, 0)
    assert made.covers(lives.rows[:1]) and not made.covers(lives.rows)
    assert not made.covers([lives.rows[2]])
    assert not made.covers([replace(lives.rows[0], num_cached=2)])
    with use("ref"), pytest.raises(ValueError, match="needs Triton"):
        DecodeForward(lives.runner.model, lives.runner.kv, max_rows=2, max_model_len=6)
