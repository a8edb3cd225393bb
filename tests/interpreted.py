"""Skips a module of tests of Triton kernels where they are not interpreted: tests/test_triton.py runs it in its own process."""

from __future__ import annotations

import pytest

from innervoice_kernels.jit import HAS_TRITON, INTERPRETED


def need_interpreter() -> None:
    """Call it before anything else of the module."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed", allow_module_level=True)
    if not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1: tests/test_triton.py runs it in a process of its own", allow_module_level=True)
