"""The combination of several contexts' logits against the formulas, written out in float64 for each id, and what none is."""

from __future__ import annotations

import math

import pytest
import torch

from innervoice_kernels import _C
from innervoice_kernels.backend import use
from innervoice_kernels.sampling.fuse import FIRST, Fusing, fuse, fuse_native, fuse_ref, listener
from innervoice_kernels.testing import OPS, Case, check

LOGITS = 3 * torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
PROBABILITIES = LOGITS.double().softmax(-1).tolist()
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("prior", [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize(("alpha", "beta"), [(6.0, 0.9), (0.0, 1.0), (2.0, 0.0)])
def test_pragmatic(alpha: float, beta: float, prior: tuple[float, ...]) -> None:
    how = Fusing("pragmatic", alpha, beta, tuple(map(math.log, prior)))
    (row,), stats = fuse_ref(LOGITS, [how])
    for token in range(11):
        speaks = [p[token] ** beta * q for p, q in zip(PROBABILITIES, prior, strict=True)]
        believes = [one / sum(speaks) for one in speaks]
        assert float(row[token]) == pytest.approx(
            math.log(PROBABILITIES[0][token]) + alpha * math.log(believes[0]), abs=1e-4
        )
        assert listener(LOGITS, stats, how, token) == pytest.approx(
            [math.log(one) for one in believes], abs=1e-5
        )


def test_guidance_and_contrast() -> None:
    p, q = PROBABILITIES[:2]
    rows, _ = fuse_ref(LOGITS[[0, 1, 0, 1]], [Fusing("guidance", 2.5), Fusing("contrast", 0.1, 0.5)])
    guided, contrasted = rows.tolist()
    for token in range(11):
        ratio = math.log(p[token]) - math.log(q[token])
        assert guided[token] == pytest.approx(math.log(q[token]) + 2.5 * ratio, abs=1e-4)
        if p[token] >= 0.1 * max(p):
            assert contrasted[token] == pytest.approx(math.log(p[token]) + 0.5 * ratio, abs=1e-4)
        else:
            assert contrasted[token] == pytest.approx(math.log(p[token]) - 1e4, abs=1e-2)
    assert fuse_ref(LOGITS[:2].double(), [Fusing("guidance", 1.0)])[0].dtype is torch.float64


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("case", OPS["fuse"].cases, ids=lambda case: case.name)
def test_every_set_of_instructions_obeys_the_error_rule(case: Case, isa: str) -> None:
    check(OPS["fuse"], case, torch.float32, fast=lambda logits, groups: fuse_native(logits, groups, isa))


@pytest.mark.parametrize("implementation", ["native", "ref"])
def test_what_is_no_number_stays_none(implementation: str) -> None:
    """NaN and infinity of any row are NaN of its group; of the others, and of the kind `first`, nothing changes."""
    prior = (math.log(0.5),) * 2
    groups = [
        Fusing("pragmatic", 6.0, 0.9, prior),
        Fusing("guidance", 2.0),
        Fusing("contrast", 0.1, 0.5),
        FIRST,
    ]
    logits = torch.randn(7, 5000, generator=torch.Generator().manual_seed(3))
    with use(implementation):
        whole, _ = fuse(logits, groups)
        for value, row, group in ((NAN, 1, 0), (NAN, 3, 1), (INFINITY, 0, 0), (NAN, 4, 2), (INFINITY, 2, 1)):
            broken = logits.clone()
            broken[row, 4500] = value
            made, _ = fuse(broken, groups)
            assert made[group].isnan().all()
            assert torch.equal(
                made[[k for k in range(4) if k != group]], whole[[k for k in range(4) if k != group]]
            )
        broken = logits.clone()
        broken[6, 3] = NAN
        assert torch.equal(fuse(broken, groups)[0][3], broken[6]) is False
        assert fuse(broken, groups)[0][3].isnan().sum() == 1
        # An id that one context never says is never said, or drawn by the listener's belief alone.
        broken = logits.clone()
        broken[0, 7] = broken[1, 9] = -INFINITY
        made = fuse(broken, groups)[0][0]
        assert made[7] == -INFINITY and not made.isnan().any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"fuse: 3 rows of logits for groups of \[2\], expected as many"):
        fuse(LOGITS, [Fusing("guidance")])
    out, stats = torch.empty(1, 11), torch.empty(3, 2)
    team, weights, prior = _C.ThreadTeam(1), torch.zeros(1, 3), torch.zeros(3)

    def native(offsets: list[int], kind: int) -> None:
        _C.fuse(team, LOGITS, torch.tensor(offsets), torch.tensor([kind]), weights, prior, out, stats)

    for offsets, kind in (([0, 4], 1), ([0, 0], 0), ([0, 1], 2), ([0, 3], 4), ([-1, 2], 1), ([2, 1], 1)):
        with pytest.raises(ValueError, match=r"offsets: group 0 of kind"):
            native(offsets, kind)
