"""Gated SiLU   y = gate * sigmoid(gate) * up        x = [gate | up]: [..., 2F]   ->   [..., F]"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Num, Ptr, cdiv, constexpr, jit, launch, narrow, tl

_BLOCK = 1024  # 8 values, one access of 16 bytes, a thread of 4 warps; FFN 13696 makes 14 programs a row


def silu_mul_ref(x: Tensor) -> Tensor:
    """y = gate * sigmoid(gate) * up in float32 (float64 for float64 input), rounded once to the type of x.

    x [..., 2F], gate first -> [..., F]. Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)


@jit
def _silu_mul_kernel(x: Ptr, y: Ptr, x_row: Num, F: Num, BLOCK: constexpr) -> None:
    """One block of a row a program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < F
    gate = tl.load(x + row * x_row + column, mask=mask).to(tl.float32)
    up = tl.load(x + row * x_row + F + column, mask=mask).to(tl.float32)
    tl.store(y + row * F + column, narrow(gate * tl.sigmoid(gate) * up, y), mask=mask)


def _silu_mul_triton(x: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        raise ValueError(
            f"silu_mul: x is {tuple(x.shape)}, its last dimension holds gate and up and must be even"
        )
    half = x.shape[-1] // 2
    flat = x.reshape(-1, 2 * half)
    flat = flat if flat.stride(-1) == 1 else flat.contiguous()
    y = torch.empty(*x.shape[:-1], half, dtype=x.dtype, device=x.device)
    launch(
        _silu_mul_kernel,
        (len(flat), cdiv(half, _BLOCK)),
        flat,
        y,
        flat.stride(0),
        half,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return y


def silu_mul(x: Tensor) -> Tensor:
    """SiLU of the first half times the second half: x [..., 2F] -> [..., F], in the type of x."""
    return _silu_mul_triton(x) if choose("silu_mul", x) == TRITON else silu_mul_ref(x)
