"""Zeros that take memory as they are written, and give it back."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from innervoice.model.lazy_zeros import zeros


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_grows_with_use_and_is_given_back() -> None:
    size = 1 << 30
    before = resident()
    made = zeros((4, size // 16), torch.float32)
    assert resident() - before < size / 100
    made[2, 5 : 5 + size // 64] = 1.0  # 64 MB
    grown = resident() - before
    assert size / 16 <= grown < size / 14
    assert (made[3, ::4099] == 0).all() and made[2, 4] == 0 and made[2, 5] == 1
    view = made[2, 5:7]
    del made
    gc.collect()
    assert resident() - before > size / 20 and view.tolist() == [1, 1]
    del view
    gc.collect()
    assert resident() - before < size / 50


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int32]
)
def test_they_are_as_torch_makes_them(dtype: torch.dtype) -> None:
    made, right = zeros((3, 5, 7), dtype), torch.zeros(3, 5, 7, dtype=dtype)
    assert (made.shape, made.stride(), made.dtype, made.device) == (
        right.shape,
        right.stride(),
        right.dtype,
        right.device,
    )
    assert made.data_ptr() % 4096 == 0 and torch.equal(made.view(torch.uint8), right.view(torch.uint8))
    assert zeros((0, 5), dtype).shape == (0, 5) and zeros((2,), dtype, "meta").is_meta


def test_what_cannot_be_mapped_is_a_memory_error() -> None:
    for num in (1 << 50, 1 << 62):
        with pytest.raises(MemoryError, match="cannot be mapped"):
            zeros((num,), torch.float32)
