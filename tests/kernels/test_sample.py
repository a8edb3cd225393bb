"""Masked sampling: the counter-based noise, the order of mask, temperature, top-k and top-p, and independence of the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from innervoice_kernels.sampling.bits import has_id, pack_ids
from innervoice_kernels.sampling.philox import gumbel_noise, philox_ref
from innervoice_kernels.sampling.sample import REFUSED, Draw, allowed_ids, sample, sample_ref


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that the authors of Philox publish with Random123
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    got = philox_ref((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert tuple(int(word) for word in got) == words


def test_gumbel_noise_is_standard_and_keyed() -> None:
    ids = torch.arange(200_000)
    noise = gumbel_noise(seed=2**63 + 5, n=7, d=0, ids=ids)
    assert torch.isfinite(noise).all()
    assert abs(float(noise.mean()) - 0.57722) < 0.01
    assert abs(float(noise.var()) - 1.64493) < 0.03
    assert torch.equal(noise[1000:1010], gumbel_noise(2**63 + 5, 7, 0, ids[1000:1010]))
    for other in (
        gumbel_noise(5, 7, 0, ids),
        gumbel_noise(2**63 + 5, 8, 0, ids),
        gumbel_noise(2**63 + 5, 7, 1, ids),
    ):
        assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.01


def test_allowed_ids_ascend_without_repeats() -> None:
    draw = Draw(ranges=((10, 13), (0, 2)), extras=(11, 5, 13))
    assert allowed_ids(draw, torch.device("cpu")).tolist() == [0, 1, 5, 10, 11, 12, 13]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (0.9, 0, 1.0), (1.1, 7, 1.0), (0.8, 9, 0.7)]
)
def test_packed_bits_leave_out_the_ids_that_a_mask_of_the_others_leaves_out(
    temperature: float, top_k: int, top_p: float
) -> None:
    """Rows with and without bits in one call, against masks of single ids; a size that is no multiple of 32."""
    size = 75
    logits = torch.randn(40, size, generator=torch.Generator().manual_seed(5)) * 3
    logits[:, 70] = 50.0  # the best of all, and never allowed
    rng = torch.Generator().manual_seed(9)
    by_bits, by_mask = [], []
    for n in range(40):
        kept = torch.randperm(70, generator=rng)[: 1 + n].tolist()
        plain = Draw((), tuple(kept), temperature, top_k, top_p, seed=3, n=n)
        bits = pack_ids(kept, size)
        assert [i for i in range(-1, 99) if has_id(bits, i)] == sorted(kept)
        by_mask.append(plain)
        by_bits.append(plain if n % 4 == 0 else replace(plain, ranges=((0, size),), extras=(), bits=bits))
    before = logits.clone()
    for run in (sample, sample_ref):
        ids, logprobs = run(logits, by_bits)
        wanted, wanted_logprobs = run(logits, by_mask)
        assert torch.equal(ids, wanted)
        torch.testing.assert_close(logprobs, wanted_logprobs)
    assert torch.equal(logits, before)
    nothing = Draw(((0, size),), bits=pack_ids([], size))
    assert sample(logits[:1], [nothing])[0].tolist() == [REFUSED]


def test_greedy_takes_the_best_allowed_id_and_the_smallest_of_equals() -> None:
    logits = torch.tensor([[9.0, 1.0, 3.0, 3.0, 2.0], [9.0, 1.0, 3.0, 2.0, 3.0]])
    draws = [Draw(ranges=((1, 5),)), Draw(ranges=((3, 5),), extras=(2,))]
    ids, logprobs = sample(logits, draws)
    assert ids.tolist() == [2, 2]
    assert torch.allclose(
        logprobs,
        torch.tensor([torch.log_softmax(row, 0)[i] for row, i in ((logits[0, 1:], 1), (logits[1, 2:], 0))]),
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, 5, 1.0), (1.3, 0, 0.6), (0.8, 12, 0.8), (1.0, 0, 1.0), (2.0, 1, 0.1)],
)
def test_frequencies_are_those_of_the_original_warpers(temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 40, generator=generator) * 2
    allowed = torch.arange(10, 40)
    z = TemperatureLogitsWarper(temperature)(torch.empty(0), logits[:, allowed])
    if top_k:
        z = TopKLogitsWarper(top_k)(torch.empty(0), z)
    z = TopPLogitsWarper(top_p)(torch.empty(0), z) if top_p < 1 else z
    p = torch.softmax(z[0], 0)
    num = 4000
    draws = [Draw(((10, 40),), (), temperature, top_k, top_p, seed=11, n=n) for n in range(num)]
    ids, _ = sample(logits.expand(num, -1), draws)
    counts = torch.bincount(ids, minlength=40)[allowed].double()
    assert counts[p == 0].sum() == 0
    kept = p > 0
    chi2 = float(((counts - num * p)[kept] ** 2 / (num * p[kept])).sum())
    assert chi2 < 3.0 * max(int(kept.sum()) - 1, 1) + 10


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits = torch.randn(16, 100, generator=torch.Generator().manual_seed(0))
    draws = [Draw(((0, 90),), (95,), 1.0, 20, 0.9, seed=i // 2, n=3 * i, d=i % 2) for i in range(16)]
    together, _ = sample(logits, draws)
    alone = [int(sample(row[None], [draw])[0]) for row, draw in zip(logits, draws, strict=True)]
    assert together.tolist() == alone


def test_rows_without_a_number_are_refused_alone() -> None:
    logits = torch.zeros(3, 10)
    logits[0, 4] = float("nan")
    logits[1] = float("-inf")
    logits[2, 2] = float("nan")  # outside the mask: no harm
    ids, _ = sample(logits, [Draw(((3, 6),)), Draw(((3, 6),)), Draw(((3, 6),))])
    assert ids.tolist() == [REFUSED, REFUSED, 3]


def test_an_empty_batch() -> None:
    ids, logprobs = sample(torch.empty(0, 10), [])
    assert ids.shape == logprobs.shape == (0,)
