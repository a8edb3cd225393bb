"""Skips a module of tests of Triton kernels unless they are interpreted, as tests/kernels/test_triton.py runs them."""

from __future__ import annotations

import pytest

from innervoice_kernels.jit import HAS_TRITON, INTERPRETED


def need_interpreter() -> None:
    """Call it before anything else of the module."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed", allow_module_level=True)
    if not INTERPRETED:
        pytest.skip(
            "needs TRITON_INTERPRET=1, as tests/kernels/test_triton.py sets it", allow_module_level=True
        )
