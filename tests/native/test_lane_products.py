"""Products with inputs of 8 bits: every set of instructions has the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lane_cases import LANED, SIZES, made, reference
from torch import Tensor

from innervoice.model.lanes import LanedWeight
from innervoice.model.native import held
from innervoice.model.quant import Int8Weight, embed, in_lanes, linear, rows_between, unlaned
from innervoice_kernels import _C
from innervoice_kernels.language.linear_lanes import rounded_rows_ref

ISAS = _C.available_isas()


def product(x: Tensor, weight: LanedWeight, isa: str | None = None) -> Tensor:
    out = torch.full((len(x), weight.shape[0]), float("nan"))
    _C.product(x, held(weight), out, isa)
    return out


@pytest.mark.parametrize("kind", LANED)
def test_products_have_the_bits_of_the_reference(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, outputs, columns in SIZES:
        x = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 3, columns)
        weight = made(kind, outputs, columns, generator)
        if isinstance(weight, Int8Weight):
            weight.codes[-1] = -128  # not made here, but a file may have it
        laned = in_lanes(weight)
        assert isinstance(laned, LanedWeight)
        right = reference(x, weight)
        for isa in ISAS:
            got = product(x, laned, isa)
            assert torch.equal(got, right), (isa, rows, outputs, columns, (got - right).abs().max())
            assert torch.equal(product(x[-1:], laned, isa)[0], got[-1])


@pytest.mark.parametrize("kind", LANED)
def test_the_reference_is_the_product_of_rounded_inputs(kind: str) -> None:
    """In float64 nothing but the inputs is rounded, by at most half a step of their block."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(5, 333, generator=generator), made(kind, 21, 333, generator)
    numbers = weight.dequantize(torch.float32).double()
    step = torch.nn.functional.pad(x, (0, 19)).unflatten(1, (-1, 32)).abs().amax(2) / 127
    most = step.repeat_interleave(32, dim=1)[:, :333].double() / 2 @ numbers.abs().T
    exact = x.double() @ numbers.T
    error = (reference(x, weight, torch.float64) - exact).abs()
    assert (error <= most * 1.001).all() and error.max() > 0
    rounded = (reference(x, weight) - reference(x, weight, torch.float64)).abs().max()
    assert rounded < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int8", "int4-32", "int4-128s"])
def test_numbers_that_are_none_and_rows_of_zeros(isa: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = made(kind, 20, 70, generator)
    x = torch.randn(5, 70, generator=generator)
    x[1, 3], x[2, 69], x[3], x[4] = float("inf"), float("nan"), 0.0, 1e-38
    laned = in_lanes(weight)
    assert isinstance(laned, LanedWeight)
    got = product(x, laned, isa)
    assert not got[1].isfinite().any() and not got[2].isfinite().any()
    assert torch.equal(got[0], reference(x[:1], weight)[0]) and not got[3:].any()


@pytest.mark.parametrize("kind", LANED)
def test_weights_in_lanes_keep_their_numbers(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for rows, columns in ((1, 1), (16, 32), (33, 95), (48, 256)):
        weight = made(kind, rows, columns, generator)
        for in_place in (False, True):
            given = made(kind, 0, columns, generator) if rows == 0 else weight
            laned = in_lanes(given, in_place=in_place)
            assert isinstance(laned, LanedWeight)
            back = unlaned(laned)
            if in_place and rows % 16 == 0 and columns % 32 == 0:
                assert laned.codes.data_ptr() == weight.codes.data_ptr()
            else:
                assert torch.equal(back.codes, weight.codes)
                assert torch.equal(back.scale, weight.scale)
        weight = unlaned(laned)
        index = torch.randint(rows, (19,), generator=generator)
        right = weight.dequantize()
        assert torch.equal(embed(laned, index, torch.float32), right[index])
        assert torch.equal(rows_between(laned, rows // 2, rows).dequantize(), right[rows // 2 :])  # type: ignore[union-attr]
        x = torch.randn(2, columns, generator=generator)
        torch.testing.assert_close(linear(laned, x), x @ right.T)
        expanded = torch.empty(columns, rows)
        _C.gemm(_C.ThreadTeam(1), torch.eye(columns), held(laned), expanded)
        assert torch.equal(expanded.T, right)


def test_inputs_are_rounded_by_a_true_quotient() -> None:
    """Of 127 by the block's largest magnitude, in float32: a reciprocal times 127 would round some numbers otherwise."""
    x = torch.randn(512, 8192, generator=torch.Generator().manual_seed(5))
    codes, scale = rounded_rows_ref(x)
    blocks = x.numpy().reshape(512, -1, 32)
    most = np.abs(blocks).max(axis=2)
    right = np.rint(blocks * (np.float32(127) / most)[..., None])
    assert np.array_equal(codes.numpy(), right) and np.array_equal(scale.numpy(), most / np.float32(127))
