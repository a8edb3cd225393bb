"""Every Triton kernel by the error rule, on the cases of its op, interpreted."""

from __future__ import annotations

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.testing import OPS, Case, Op, check  # noqa: E402

NAMES = (
    "rms_norm", "add_rms_norm", "silu_mul", "rotary", "store_kv", "qkv_rope_store", "linear", "gated_linear", "paged_attention",
    "gumbel_noise", "sample", "head_sample", "scaled_linear", "int4_linear",
    "store_kv_fp8", "group_norm_mish", "snake", "stream_residual", "nearest_code",
    "stream_source", "normal_grid", "stream_stft", "istft", "stream_istft", "log_frames", "relative_attention", "flow_block",
)  # fmt: skip
# Seconds each in the interpreter: in one type in CI, in all of them at length.
LONG = {
    ("rotary", "model"), ("qkv_rope_store", "primes"), ("qkv_rope_store", "model"), ("qkv_rope_store", "norms, pairs"),
    ("stream_residual", "pieces"), ("stream_residual", "primes"), ("stream_residual", "model"), ("nearest_code", "crowded"),
    ("sample", "many rows"), ("head_sample", "17 rows"), ("paged_attention", "model"), ("paged_attention", "long"),
    ("flow_block", "tiny"), ("flow_block", "wide"), ("relative_attention", "wide"), ("istft", "long"),
    ("int4_linear", "split, ragged"), ("scaled_linear", "fp8, split"),
}  # fmt: skip


def cases(at_length: bool) -> list[object]:
    def is_short(op: Op, case: Case, dtype: torch.dtype) -> bool:
        is_long = (op.name, case.name) in LONG
        return dtype in (op.dtypes[-2:-1] or op.dtypes if is_long else op.dtypes[:2])

    return [
        pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{dtype}")
        for op in (OPS[name] for name in NAMES)
        for case in op.cases
        for dtype in op.dtypes
        if is_short(op, case, dtype) != at_length
    ]


@pytest.mark.parametrize(("op", "case", "dtype"), cases(at_length=False))
def test_kernel_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    with use("triton"):
        check(op, case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case", "dtype"), cases(at_length=True))
def test_kernel_obeys_the_error_rule_at_length(op: Op, case: Case, dtype: torch.dtype) -> None:
    with use("triton"):
        check(op, case, dtype)
