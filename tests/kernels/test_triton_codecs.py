"""The residual-VQ codecs' Triton kernels by the error rule, interpreted, and a small Mimi that runs on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from codec_models import make_module, save
from interpreted import need_interpreter

need_interpreter()

from innervoice.codec.residual_vq.codec import Codec  # noqa: E402
from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.testing import OPS, Case, Op, check  # noqa: E402

NAMES = ("rvq_decode", "rvq_encode", "store_window", "window_attention", "apply_taps", "elu_unit")
LONG = {("elu_unit", "pieces"), ("elu_unit", "whole"), ("apply_taps", "pieces"), ("apply_taps", "a mono sound"),
        ("apply_taps", "to mono")}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[object]:
    """CI tries an op's first case in both types, the others in one or the other by turns."""
    return [
        pytest.param(
            op, case, dtype, id=f"{op.name}-{case.name}-{dtype}", marks=[] if is_short else [pytest.mark.slow]
        )
        for op in (OPS[name] for name in NAMES)
        for number, case in enumerate(op.cases)
        for turn, dtype in enumerate(DTYPES)
        for is_short in [(op.name, case.name) not in LONG and (number == 0 or number % 2 == turn)]
    ]


@pytest.mark.parametrize(("op", "case", "dtype"), cases())
def test_kernel_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    with use("triton"):
        check(op, case, dtype)


def test_equal_codes_give_the_first() -> None:
    numbers = torch.randperm(
        40, generator=torch.Generator().manual_seed(0)
    )  # whole, so that equal sums are equal
    codes = (numbers[:, None] // torch.tensor([1, 2, 4, 8]) % 2 * 5.0 + numbers[:, None])[None].repeat(
        1, 3, 1
    )
    with use("triton"):
        ids = OPS["rvq_encode"].fast(codes[:, :40], codes)
    assert torch.equal(ids[0, 0], torch.arange(40))


@pytest.mark.parametrize("others", [
    pytest.param({"apply_taps": "ref", "elu_unit": "ref"}, id="but for convolutions"),
    pytest.param({}, id="all", marks=pytest.mark.slow),
])  # fmt: skip
def test_mimi_runs_on_the_kernels(tmp_path: Path, others: dict[str, str]) -> None:
    codec = Codec.from_pretrained(save(make_module("mimi"), tmp_path))
    sound = (0.3 * np.random.default_rng(0).standard_normal(480).astype(np.float32), codec.sample_rate)
    codes = codec.encode(sound)
    with use("triton", rotary="ref", **others):
        made = codec.encode(sound)
        heard = codec.decode(codes).samples
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(made.ids, codes.ids, strict=True))
    assert np.abs(heard - codec.decode(codes).samples).max() <= 1e-5
