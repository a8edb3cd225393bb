"""Times of every op's public function on its cases and at GLM-4-Voice's real shapes.

An op whose check against float64 fails has no time. Every row carries, in extra_info, its dtype and device, the error that was
measured, the bytes that any implementation has to move, and how many of them a second that was (median).
On the CPU in float32; on a GPU (`-m gpu`) in bfloat16 where the op takes it, the launch and the wait for the result included.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from innervoice_kernels.testing import OPS, Case, Op, check

DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]
CASES = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases]
REAL = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.real]


@pytest.mark.benchmark(min_rounds=3, max_time=0.05)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_case(benchmark: BenchmarkFixture, op: Op, case: Case, device: str) -> None:
    time_op(benchmark, op, case, device)


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "case"), REAL)
def test_real_shape(benchmark: BenchmarkFixture, op: Op, case: Case, device: str) -> None:
    time_op(benchmark, op, case, device)


def time_op(benchmark: BenchmarkFixture, op: Op, case: Case, device: str) -> None:
    """Check first, then time the public op on the same inputs again and again."""
    dtype = torch.bfloat16 if device == "cuda" and torch.bfloat16 in op.dtypes else torch.float32
    error = check(op, case, dtype, device)
    inputs = case.make_inputs(dtype, device, torch.Generator().manual_seed(0))
    num_bytes = op.num_bytes(inputs, op.outputs(op.fast, inputs))

    def run() -> Any:
        result = op.fast(**inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.group = f"{op.name} ({device})"
    benchmark.extra_info.update(
        op=op.name, case=case.name, dtype=str(dtype), device=device, error=error, bytes=num_bytes
    )
    with torch.inference_mode():
        benchmark(run)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["bytes_per_s"] = num_bytes / benchmark.stats.stats.median
