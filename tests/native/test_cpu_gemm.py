"""The CPU's blocked product on every set of instructions, and the team of threads that divides it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from native_weights import KINDS
from torch import Tensor

from innervoice.model.native import held
from innervoice_kernels import _C
from innervoice_kernels.testing.rule import errors

SIZES = ((1, 1, 1), (3, 17, 5), (1, 100, 257), (13, 65, 600), (0, 7, 3), (37, 129, 1031))
ISAS = _C.available_isas()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def team() -> _C.ThreadTeam:
    return _C.ThreadTeam(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_gemm_is_its_definition(
    team: _C.ThreadTeam, isa: str, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    rows, outputs, columns = size
    x, w, bias = random(rows, columns), random(outputs, columns, seed=1).to(dtype), random(outputs, seed=2)
    out = torch.full((rows, outputs), float("nan"))
    _C.gemm(team, x, _C.Weight(w), out, bias, isa)
    error, bound = errors(out, x @ w.float().T + bias, x.double() @ w.double().T + bias.double())
    assert error <= bound


@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_the_threads(isa: str) -> None:
    x, weight = random(19, 300), _C.Weight(random(1000, 300, seed=1))
    outs = []
    for num_threads in (1, 2, 3, 7):
        outs.append(torch.empty(19, 1000))
        _C.gemm(_C.ThreadTeam(num_threads), x, weight, outs[-1], None, isa)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_alone_has_the_bits_of_the_row_beside_others(isa: str, kind: str, exact: bool) -> None:
    """Of up to 16 rows, whatever number of them is multiplied at once and however the weight is read."""
    for outputs, columns in ((1, 33), (7, 64), (43, 417), (65, 1031)):
        weight = held(KINDS[kind](random(outputs, columns, seed=1)))
        x = random(16, columns)
        alone = torch.empty(16, outputs)
        for row in range(16):
            _C.product(x[row : row + 1], weight, alone[row : row + 1], isa, exact)
        for count in (2, 3, 4, 7, 16):
            beside = torch.empty(count, outputs)
            _C.product(x[:count], weight, beside, isa, exact)
            assert torch.equal(beside, alone[:count]), (outputs, columns, count)


def test_a_team_takes_jobs_of_many_callers_one_by_one(team: _C.ThreadTeam) -> None:
    x, weight = random(9, 64), _C.Weight(random(200, 64, seed=1))
    right = torch.empty(9, 200)
    _C.gemm(team, x, weight, right)
    wrong = []

    def call() -> None:
        out = torch.empty(9, 200)
        for _ in range(50):
            _C.gemm(team, x, weight, out.fill_(-1))
            if not torch.equal(out, right):
                wrong.append(out.clone())

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="affinity masks are set on Linux")
def test_one_core_is_enough() -> None:
    """Limited to one core: the default is one thread, and more threads than cores, pinned or not, come to an end."""
    code = """
import os, sys
sys.path[:0] = sys.argv[1:]
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from innervoice_kernels import _C
assert _C.num_usable_cores() == 1 and _C.ThreadTeam().num_threads == 1
x, w, out = np.ones((8, 64), np.float32), _C.Weight(np.ones((300, 64), np.float32)), np.zeros((8, 300), np.float32)
for pin in (False, True):
    team = _C.ThreadTeam(4, pin)
    for _ in range(200):
        _C.gemm(team, x, w, out)
print(out.min(), out.max())
"""
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "64.0 64.0\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_works_alone(team: _C.ThreadTeam) -> None:

    x, weight, out = random(8, 64), _C.Weight(random(300, 64, seed=1)), torch.zeros(8, 300)
    _C.gemm(team, x, weight, out)
    pid = os.fork()
    if pid == 0:
        _C.gemm(team, x, weight, other := torch.zeros(8, 300))
        os._exit(0 if torch.equal(other, out) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_refusals(team: _C.ThreadTeam) -> None:
    x, w, out = random(2, 6), random(5, 6), torch.empty(2, 5)
    with pytest.raises(ValueError, match="isa 'sse9' is unknown: use plain, neon, avx2, avxvnni or avx512"):
        _C.gemm(team, x, _C.Weight(w), out, None, "sse9")
    with pytest.raises(ValueError, match=r"x: expected float32 \[M, K\] with K = 6, got float32 \[2, 5\]"):
        _C.gemm(team, x[:, :5].contiguous(), _C.Weight(w), out)
    with pytest.raises(ValueError, match="contiguous"):
        _C.gemm(team, x, _C.Weight(w), torch.empty(2, 10)[:, ::2])
    with pytest.raises(ValueError, match="a quantised weight needs its scales"):
        _C.Weight(w.to(torch.int8))
    with pytest.raises(ValueError, match="got groups of 48"):
        _C.Weight(w.to(torch.uint8), torch.empty(5, 1, dtype=torch.float16), columns=12, group=48)
    with pytest.raises(ValueError, match="num_threads is 1000"):
        _C.ThreadTeam(1000)
