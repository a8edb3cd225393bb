"""The kernels of all cases of all ops compile for sm_90 and spill nothing, without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from benches import bench
from pretend_device import specialised

from innervoice_kernels import backend
from innervoice_kernels.backend import use
from innervoice_kernels.jit import HAS_TRITON, INTERPRETED, Launch, recorded
from innervoice_kernels.testing import OPS, Case, Op

pytestmark = pytest.mark.skipif(
    not HAS_TRITON or INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)
MANY = 4_000_000  # numbers of an input from which on it has no contents
Drawn = Iterable[tuple[Op, Case, torch.dtype]]


@contextmanager
def without_contents(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, large tensors that are drawn lie on the meta device, and kernels are recorded for tensors of any device."""

    def cheap(name: str) -> Any:
        real = getattr(torch, name)

        def draw(*args: Any, generator: Any = None, device: Any = None, **options: Any) -> Any:
            made = real(*args, device="meta", **options)
            return made if made.numel() >= MANY else real(*args, generator=generator, device="cpu", **options)

        return draw

    with patch.context() as own:
        own.setattr(backend, "_check_triton", lambda op, device: None)
        for name in ("randn", "rand", "randint"):
            own.setattr(torch, name, cheap(name))
        yield


def launches_of(op: Op, case: Case, dtype: torch.dtype) -> list[Launch]:
    """A case's launches, on the host; where its inputs are large, on the meta device."""
    error: Exception | None = None
    for device in ("cpu", "meta"):
        try:
            inputs = case.make_inputs(dtype, device, torch.Generator().manual_seed(0))
            with use("triton"), recorded() as launches:
                op.fast(**inputs)
        except (RuntimeError, NotImplementedError) as failure:  # of tensors of two devices
            error = failure
        else:
            return launches
    raise AssertionError(f"{op.name} {case.name} {dtype}: {error}")


def kernels_of(cases: Drawn, patch: pytest.MonkeyPatch) -> dict[tuple[str, str], Launch]:
    with without_contents(patch), torch.inference_mode():
        return specialised(launch for case in cases for launch in launches_of(*case) if 0 not in launch.grid)


def check_front_end(launch: Launch) -> None:
    """Translate a kernel into Triton's first form, which finds what the language does not allow."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    target = GPUTarget("cuda", 90, 32)
    made, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    made.load_dialects(context)
    options = made.parse_options(dict(launch.options))
    source = ASTSource(launch.kernel, *bench("aot").signature(launch))
    source.make_ir(target, options, made.get_codegen_implementation(options), made.get_module_map(), context)


def test_the_least_sizes_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size of 1 is a constant to Triton, which has other methods than a number at run time."""
    least = [
        (op, case, op.dtypes[0]) for op in OPS.values() for case in op.cases if case.name.startswith("one")
    ]
    kernels = kernels_of(least, monkeypatch)
    assert {"_head_kernel", "_pick_kernel", "_summary_kernel"} <= {name for name, _ in kernels}
    for launch in kernels.values():
        check_front_end(launch)


@pytest.mark.slow
def test_the_kernels_of_all_cases_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and real cases in all types: what Triton's language does not allow is found without compiling."""
    cases = [
        (op, case, dtype) for op in OPS.values() for case in (*op.cases, *op.real) for dtype in op.dtypes
    ]
    wrong = []
    for (name, _), launch in kernels_of(cases, monkeypatch).items():
        try:
            check_front_end(launch)
        except Exception as error:  # all that are wrong are wanted
            wrong.append((name, str(error)[-300:]))
    assert wrong == []


@pytest.mark.long
@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_the_kernels_of_an_op_compile_and_spill_nothing(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and real cases in all types. What Triton's cache has is not compiled again."""
    cases = [(op, case, dtype) for case in (*op.cases, *op.real) for dtype in op.dtypes]
    kernels, aot = kernels_of(cases, monkeypatch), bench("aot")
    wrong: list[Any] = []
    for (name, _), launch in kernels.items():
        try:
            made = aot.compiled(launch)
        except Exception as error:  # all that do not compile are wanted, not the first alone
            wrong.append((name, aot.describe(launch), str(error)[-300:]))
            continue
        spills = aot.resources(made.asm["ptx"])["spills"] if aot.stack(made.asm["cubin"]) else 0
        if spills or made.metadata.shared > 227 * 1024:
            wrong.append((name, aot.describe(launch), spills, made.metadata.shared))
    assert kernels and wrong == []
