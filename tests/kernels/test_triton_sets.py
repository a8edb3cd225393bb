"""Masks with packed sets of ids: the logits that the head makes for them, and the ids that are drawn, interpreted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.sampling.bits import pack_ids  # noqa: E402
from innervoice_kernels.sampling.cursor_columns import MaskColumn  # noqa: E402
from innervoice_kernels.sampling.head import head  # noqa: E402
from innervoice_kernels.sampling.sample import Draw, draws_of, sample_ref  # noqa: E402
from innervoice_kernels.sampling.sample_pick import Offers, pick  # noqa: E402


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (2.0, 0, 1.0), (2.0, 5, 1.0), (2.0, 0, 0.7)]
)
def test_a_head_makes_the_logits_of_sets(temperature: float, top_k: int, top_p: float) -> None:
    """Ids of a set in every tile and in one, beside a range, and beside nothing; the largest logits are not allowed."""
    size, generator = 210, torch.Generator().manual_seed(3)
    w = torch.randn(size, 8, generator=generator)
    x = torch.randn(4, 8, generator=generator)
    ids = [list(range(1, size, 7)), [130], [3, 68, 209], []]
    ranges = [(), ((0, 2),), (), ((5, 9),)]
    sets = torch.from_numpy(np.concatenate([pack_ids(one, size) for one in ids]))
    draws = [Draw(r, (), temperature, top_k, top_p, seed=row) for row, r in enumerate(ranges)]
    made = replace(draws_of(draws, torch.device("cpu")), sets=sets)
    num_words = len(sets) // 4
    made.mask[:, MaskColumn.SET] = torch.tensor([0, num_words, 2 * num_words, -1], dtype=torch.int32)
    offers = Offers.allocate(4, size, 1, torch.device("cpu"))
    with use("triton"):
        head(x, w, made, offers, 1)
        pick(offers, made, 1)
    whole = [
        replace(
            draw, ranges=(), extras=tuple(sorted({*one, *(i for low, high in r for i in range(low, high))}))
        )
        for draw, one, r in zip(draws, ids, ranges, strict=True)
    ]
    expected, logprobs = sample_ref(x @ w.T, whole)
    assert offers.drawn.tolist() == expected.tolist()
    assert torch.allclose(offers.logprob, logprobs, atol=1e-5)
