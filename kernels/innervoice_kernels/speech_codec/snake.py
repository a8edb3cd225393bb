"""Snake   y = x + sin(a x)^2 / (a + 1e-9)        x: [B, C, T]   a: [C]   ->   [B, C, T]
(Ziyin et al. 2020)
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Num, Ptr, cdiv, constexpr, jit, launch, narrow, tl
from innervoice_kernels.native import CHANNEL_MULTIPLE, floats, team
from innervoice_kernels.speech_codec import activation_blocks

_BLOCK = 1024  # 8 a thread of 4 warps


def snake_ref(x: Tensor, alpha: Tensor) -> Tensor:
    """The definition, in float32 or wider inside; one alpha a channel, not its logarithm."""
    wide = torch.promote_types(x.dtype, torch.float32)
    a = alpha.to(wide)[:, None]  # [C, 1]
    y = x.to(wide)
    return (y + torch.sin(y * a).square() / (a + 1e-9)).to(x.dtype)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Snake activation, one alpha a channel: x [B, C, T], alpha [C]. Native code takes channels side by side
    in memory.
    """
    chosen = choose("snake", x, has_native=True)
    if chosen == TRITON:
        return _snake_triton(x, alpha)
    if (
        chosen == NATIVE
        and x.dtype == torch.float32
        and x.shape[1] % CHANNEL_MULTIPLE == 0
        and x.mT.is_contiguous()
    ):
        return _snake_native(x, alpha)
    return snake_ref(x, alpha)


def _snake_native(x: Tensor, alpha: Tensor, isa: str | None = None) -> Tensor:
    flat = x.mT.detach().reshape(-1, x.shape[1])
    y = torch.empty_like(flat)
    _C.snake(team(), flat, floats(alpha), y, isa)
    return y.view(x.mT.shape).mT


@jit
def _snake_kernel(
    x: Ptr, alpha: Ptr, y: Ptr, x_row: Num, x_channel: Num, x_step: Num, C: Num, T: Num, BLOCK: constexpr
) -> None:
    """BLOCK steps of one channel of one row a program."""
    row, channel = tl.program_id(0).to(tl.int64) // C, tl.program_id(0) % C
    step = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_row + channel * x_channel + step * x_step, mask=step < T, other=0.0).to(
        tl.float32
    )
    made = activation_blocks.snake(value, tl.load(alpha + channel).to(tl.float32))
    tl.store(y + (row * C + channel) * T + step, narrow(made, y), mask=step < T)


def _snake_triton(x: Tensor, alpha: Tensor) -> Tensor:
    rows, channels, steps = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (rows * channels, cdiv(steps, _BLOCK))  # only the first number may be above 65,535
    launch(
        _snake_kernel, grid, x, alpha.contiguous(), y, *x.stride(), channels, steps, BLOCK=_BLOCK, num_warps=4
    )
    return y
