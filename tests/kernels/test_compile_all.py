"""Kernels compiled side by side before anything runs them, for a GPU that is not there."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from innervoice_kernels import jit
from innervoice_kernels.backend import use
from innervoice_kernels.jit import HAS_TRITON, INTERPRETED, compile_all, is_recording, num_compiled, recorded
from innervoice_kernels.language.norm import rms_norm

pytestmark = pytest.mark.skipif(
    not HAS_TRITON or INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)


class Driver:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self) -> int:
        return 90

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def launches_of(*rows: int) -> list[jit.Launch]:
    with use("triton"), recorded() as launches:
        for num in rows:
            x = torch.empty(num, 64, dtype=torch.bfloat16, device="meta")
            rms_norm(x, x[0], 1e-6)
    return launches


def test_what_was_recorded_is_compiled_once_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel for any number of rows; a kernel that does not compile stops none of the others."""
    from triton.runtime.driver import driver

    monkeypatch.setattr(driver, "_active", Driver())
    launches = launches_of(1, 3, 16, 32)
    broken = jit.Launch(launches[0].kernel, launches[0].arguments | {"BLOCK": 65}, launches[0].options)
    before = num_compiled()
    compile_all([broken, *launches], threads=2)
    assert num_compiled() - before == 1
    compile_all(launches_of(5, 48))
    assert num_compiled() - before == 1
    kernel = launches[0].kernel
    assert len(kernel.device_caches.pop(90)[0]) == 1


def test_a_recorder_takes_the_launches_of_its_own_thread() -> None:
    seen: list[bool] = []
    with recorded() as launches:
        other = threading.Thread(target=lambda: seen.append(is_recording()))
        other.start()
        other.join()
        assert is_recording() and launches == []
    assert seen == [False] and not is_recording()
