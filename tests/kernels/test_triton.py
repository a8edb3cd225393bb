"""Which implementation runs, and the tests of the Triton kernels in a process where they are interpreted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT, TESTS

from innervoice_kernels import backend
from innervoice_kernels.backend import choose, use
from innervoice_kernels.jit import HAS_TRITON, INTERPRETED
from innervoice_kernels.language.norm import rms_norm

PATHS = os.pathsep.join(str(ROOT / folder) for folder in ("engine", "kernels", "tests/support"))
X = torch.zeros(1)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = (
        {k: v for k, v in os.environ.items() if k != backend.VARIABLE} | {"PYTHONPATH": PATHS} | environment
    )
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


def interpret(markers: str) -> None:
    own = Path(__file__).resolve()
    paths = [
        path
        for path in TESTS.rglob("test_*.py")
        if path != own and "need_interpreter()" in path.read_text(encoding="utf-8")
    ]
    files = sorted(map(str, paths))
    done = run(
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "-m",
        markers,
        *files,
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_under_the_interpreter() -> None:
    interpret("not slow and not long and not gpu")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_under_the_interpreter_at_length() -> None:
    interpret("slow and not long and not gpu")


def test_on_the_cpu_the_reference_runs() -> None:
    assert choose("rms_norm", X) == "ref"
    with use("ref"):
        assert choose("rms_norm", X) == "ref"


def test_unknown_implementations_are_named() -> None:
    with pytest.raises(ValueError, match="'cuda'; there are ref, triton"), use("cuda"):
        pass
    with (
        pytest.raises(ValueError, match="'flash'; there are ref, triton, native, flash_attn, flashinfer"),
        use(paged_attention="flash"),
    ):
        pass


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels on the CPU")
def test_triton_is_refused_where_it_cannot_run() -> None:
    with (
        use("triton"),
        pytest.raises(ValueError, match="TRITON_INTERPRET=1" if HAS_TRITON else "not installed"),
    ):
        rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5)


def test_scopes_nest_and_name_ops() -> None:
    meta = torch.empty(1, device="meta")
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    with use("triton"):
        assert choose("rms_norm", meta) == "triton"
        with use(rms_norm="ref"):
            assert choose("rms_norm", meta) == "ref"
            assert choose("silu_mul", meta) == "triton"
        assert choose("rms_norm", meta) == "triton"
        with use("ref", silu_mul="triton"):
            assert choose("rms_norm", meta) == "ref"
            assert choose("silu_mul", meta) == "triton"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ref", "ref ref"),
        ("", "ref ref"),
        ("rms_norm=ref", "ref ref"),
        ("vulkan", "no implementation 'vulkan'; there are ref, triton"),
    ],
)
def test_the_environment_chooses(value: str, expected: str) -> None:
    code = (
        "import torch; from innervoice_kernels.backend import choose; "
        "print(*(choose(n, torch.zeros(1)) for n in ('rms_norm', 'rope')))"
    )
    done = run("-c", code, **{backend.VARIABLE: value})
    assert expected in done.stdout + done.stderr


def test_the_environment_chooses_for_one_op() -> None:
    code = "import torch; from innervoice_kernels.backend import choose; print(choose('rms_norm', torch.zeros(1)))"
    done = run("-c", code, **{backend.VARIABLE: "triton, rms_norm = ref"})
    assert done.stdout.split() == ["ref"], done.stderr


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_logged", {})
    with caplog.at_level(logging.INFO, logger="innervoice.kernels"):
        for op in ("rms_norm", "silu_mul", "rms_norm"):
            backend._Choice({}).resolve(op, torch.device("cpu"), has_native=False, is_faster=False)
    assert [record.getMessage() for record in caplog.records] == ["kernels on cpu: ref"]


def test_without_triton_everything_imports_and_runs() -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import torch\n"
        "import innervoice_kernels.testing as testing\n"
        "from innervoice_kernels import jit\nfrom innervoice_kernels.sampling import head, replay\n"
        "assert not jit.HAS_TRITON\n"
        "op = testing.OPS['rms_norm']\n"
        "testing.check(op, op.cases[0], torch.float32)\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
