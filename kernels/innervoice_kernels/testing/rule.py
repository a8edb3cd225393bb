"""The rule by which an implementation of an op is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, OpOutputs, generator_on


def errors(got: Tensor, ref: Tensor, ref64: Tensor, terms: int = 1) -> tuple[float, float]:
    """(error, bound): max|got - ref64| and 2 max|ref - ref64| + tiny, tiny being float32's rounding of the
    largest value.

    Infinity when shapes or places of NaN differ. Rule of flash-attention's tests. terms: as many as a value is the sum of, one
    after the other, whose roundings go as their square root; the reference may add them in parts, and be closer by luck.
    """
    if got.shape != ref64.shape or not torch.equal(got.isnan(), ref64.isnan()):
        return float("inf"), 0.0
    if got.numel() == 0:
        return 0.0, 0.0
    got, ref, ref64 = (x.double().nan_to_num(nan=0.0) for x in (got, ref, ref64))
    tiny = math.sqrt(max(terms, 1)) * torch.finfo(torch.float32).eps * ref64.abs().max().item()
    return (got - ref64).abs().max().item(), 2 * (ref - ref64).abs().max().item() + tiny


def check(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: DeviceName = "cpu",
    fast: Callable[..., Any] | None = None,
    seed: int = 0,
) -> float:
    """Run one case by `fast` (None: the public op) and by the reference in dtype and in float64; returns the
    error.

    Raises AssertionError with the numbers when the rule is broken, when the type of the result is not the
    reference's, or when an id is wrong. What `fast` allocates is full of NaN.
    """
    title = f"{op.name} {case.name} {dtype}"

    def inputs() -> Inputs:
        return case.make_inputs(dtype, device, generator_on(device, seed))

    with unwritten_is_nan():
        got = op.outputs(fast or op.fast, inputs())
    ref = op.outputs(op.ref, inputs())
    wide = {name: _widened(value) for name, value in inputs().items()}
    ref64 = op.outputs(op.exact or op.ref, wide)
    for one, in_dtype in zip(got, ref, strict=True):
        assert one.dtype == in_dtype.dtype, f"{title}: result is {one.dtype}, expected {in_dtype.dtype}"
    if op.near_tie is not None:
        got, ref, ref64 = _check_ids(op, title, wide, got, ref, ref64)
    worst = 0.0
    terms = wide[op.sums].shape[-1] if op.sums is not None and dtype == torch.float32 else 1
    for one, in_dtype, in_64 in zip(got, ref, ref64, strict=True):
        error, bound = errors(one, in_dtype, in_64, terms)
        assert error <= bound, f"{title}: error {error:.3g} exceeds {bound:.3g}"
        worst = max(worst, error)
    return worst


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Within, torch is in its deterministic mode: what it allocates without writing holds NaN, or the largest
    integer.
    """
    mode, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def _check_ids(
    op: Op, title: str, wide: Inputs, got: OpOutputs, ref: OpOutputs, ref64: OpOutputs
) -> tuple[OpOutputs, OpOutputs, OpOutputs]:
    """Check the ids; the other results of the rows in which all three ids agree remain to be compared."""
    assert op.near_tie is not None
    ids, right = got[0], ref64[0]
    assert ids.shape == right.shape, (
        f"{title}: ids have shape {tuple(ids.shape)}, expected {tuple(right.shape)}"
    )
    wrong = ids != right
    if wrong.any():
        wrong &= ~op.near_tie(wide, ids)
    assert not wrong.any(), (
        f"{title}: {int(wrong.sum())} of {wrong.numel()} ids are wrong: {ids[wrong][:5].tolist()}"
    )
    agree = (ids == right) & (ref[0] == right)
    got, ref, ref64 = (tuple(x[agree] for x in outputs[1:]) for outputs in (got, ref, ref64))
    return got, ref, ref64


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
