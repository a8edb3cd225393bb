"""The combination of several contexts' logits against the formulas, written out in float64 for each id."""

from __future__ import annotations

import math

import pytest
import torch

from innervoice_kernels.sampling.fuse import Fusing, fuse_ref, listener_ref

LOGITS = 3 * torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
PROBABILITIES = LOGITS.double().softmax(-1).tolist()


@pytest.mark.parametrize("prior", [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize(("alpha", "beta"), [(6.0, 0.9), (0.0, 1.0), (2.0, 0.0)])
def test_pragmatic(alpha: float, beta: float, prior: tuple[float, ...]) -> None:
    how = Fusing("pragmatic", alpha, beta, tuple(map(math.log, prior)))
    row = fuse_ref(LOGITS, how)
    for token in range(11):
        speaks = [p[token] ** beta * q for p, q in zip(PROBABILITIES, prior, strict=True)]
        believes = [one / sum(speaks) for one in speaks]
        assert float(row[token]) == pytest.approx(
            math.log(PROBABILITIES[0][token]) + alpha * math.log(believes[0]), abs=1e-4
        )
        assert listener_ref(LOGITS, how, token) == pytest.approx(
            [math.log(one) for one in believes], abs=1e-5
        )


def test_guidance_and_contrast() -> None:
    p, q = PROBABILITIES[:2]
    guided = fuse_ref(LOGITS[:2], Fusing("guidance", 2.5)).tolist()
    contrasted = fuse_ref(LOGITS[:2], Fusing("contrast", 0.1, 0.5)).tolist()
    for token in range(11):
        ratio = math.log(p[token]) - math.log(q[token])
        assert guided[token] == pytest.approx(math.log(q[token]) + 2.5 * ratio, abs=1e-4)
        if p[token] >= 0.1 * max(p):
            assert contrasted[token] == pytest.approx(math.log(p[token]) + 0.5 * ratio, abs=1e-4)
        else:
            assert contrasted[token] == pytest.approx(math.log(p[token]) - 1e4, abs=1e-2)
    assert fuse_ref(LOGITS[:2].double(), Fusing("guidance", 1.0)).dtype is torch.float64
