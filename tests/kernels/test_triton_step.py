"""The two ends of a decode step by the kernels and by their references, interpreted."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.sampling.cursor import Rows  # noqa: E402
from innervoice_kernels.sampling.cursor_columns import Ending, OutputColumn, StateColumn, TokenKind  # noqa: E402
from innervoice_kernels.sampling.step import Ring, RowFeed, StepInputs, begin_step, end_step  # noqa: E402

PAGE, PAGES, D, HALF = 4, 9, 19, 3


def batch(num_rows: int, seed: int) -> tuple[RowFeed, Rows, Ring]:
    """Rows that run, wait, are to rest, have ended, and lack the page of their token, of tokens of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *shape: int) -> Any:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    feed = RowFeed(
        token=ints(0, 30, num_rows), kind=ints(-1, len(TokenKind), num_rows), position=ints(0, 13, num_rows),
        reply=ints(0, 3, num_rows), log_weight=torch.zeros(num_rows),
        page_table=torch.stack([torch.randperm(PAGES, generator=generator)[:3] for _ in range(num_rows)]).int(),
        rests=ints(0, 2, num_rows),
    )  # fmt: skip
    feed.page_table[::3, 1:] = -1
    rows = Rows.allocate(num_rows, 1, "cpu")
    rows.state[:, StateColumn.IS_DONE] = ints(0, len(Ending), num_rows)
    rows.output.copy_(ints(-1, 6, num_rows, OutputColumn.WIDTH))
    rows.logprob.copy_(torch.randn(num_rows, generator=generator))
    rows.logprob[::2] = float("nan")
    ring = Ring.allocate(3, num_rows + 2, torch.device("cpu"))
    ring.count.fill_(7)
    return feed, rows, ring


def tensors(*parts: Any) -> list[torch.Tensor]:
    return [getattr(part, f.name).clone() for part in parts for f in fields(part)]


@pytest.mark.parametrize("num_rows", [1, 13])
def test_what_rows_feed(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(2)
    embedding, cos, sin = (
        torch.randn(n, d, generator=generator).bfloat16() for n, d in ((30, D), (16, HALF), (16, HALF))
    )
    results = []
    for implementation in ("ref", "triton"):
        feed, rows, _ = batch(num_rows, seed=num_rows)
        inputs = StepInputs.allocate(num_rows, D, HALF, torch.bfloat16, torch.device("cpu"))
        for f in fields(inputs):
            getattr(inputs, f.name).fill_(77)
        key_tag = torch.full((PAGES, PAGE), -5, dtype=torch.int32)
        with use(implementation):
            begin_step(feed, rows.state, embedding, cos, sin, key_tag, inputs)
        results.append([*tensors(feed, inputs), rows.state, key_tag])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not (inputs.slots == 77).any() and not (inputs.x == 77).any()


@pytest.mark.parametrize("num_rows", [1, 130])
def test_what_rows_keep(num_rows: int) -> None:
    results = []
    for implementation in ("ref", "triton"):
        feed, rows, ring = batch(num_rows, seed=3)
        with use(implementation):
            end_step(feed, rows, ring)
            end_step(feed, replace(rows, output=rows.output + 1), ring)
        results.append(tensors(feed, ring))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert ring.count == 9 and (ring.lines[:, num_rows:] == 0).all()
    assert torch.equal(ring.lines[1, :num_rows, : OutputColumn.WIDTH], rows.output)
