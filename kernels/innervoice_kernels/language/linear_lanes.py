"""Linear layer over int8 and int4 weights with inputs of 8 bits   y = x W^T
x: [M, K], rounded by blocks of 32 columns   W: [N, K]   ->   [M, N]

    a[m, b] = max |x[m, k]| / 127 over k in block b,   c[m, k] = round(x[m, k] (127 / max)), ties to even
    S[m, n, b] = sum over b of c[m, k] q[n, k]         a whole number, without rounding
    int8        y = scale[n] sum_b a S
    int4        y = sum_g (scale[n, g] sum_{b in g} a S + minimum[n, g] sum_{b in g} a C),   C[m, b] = sum over b of c
    symmetric   y = sum_g scale[n, g] sum_{b in g} a (S - 8 C)

Sums over b and g run upwards and every operation on them is rounded to float32 by itself, so that all kernels agree in
every bit. This is how llama.cpp's Q8_0 rounds inputs, but for its scales in float16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.language.weight_formats import MIDDLE, unpacked

BLOCK = 32
"""Columns of inputs that have one scale."""
LANES = 16
"""Outputs whose codes lie side by side."""
_LARGEST = 127
_LEAST = 2.0**-100  # a block of smaller numbers counts as zeros


def rounded_rows_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x [M, K] as codes [M, B, 32] int8, 0 past K, and scales [M, B] float32 of ceil(K / 32) blocks.

    A block with NaN or infinity has codes 0 and the scale NaN.
    """
    blocks = torch.unflatten(F.pad(x.float(), (0, -x.shape[1] % BLOCK)), 1, (-1, BLOCK))
    most = blocks.abs().amax(dim=2)
    is_finite, is_there = most.isfinite(), most >= _LEAST
    # Tensor by tensor: a number by a tensor is its reciprocal times the number in torch, which is rounded twice.
    inverse = torch.where(
        is_finite & is_there, torch.full_like(most, _LARGEST) / most, torch.zeros_like(most)
    )
    codes = torch.round(torch.where(is_finite[..., None], blocks, 0) * inverse[..., None]).to(torch.int8)
    scale = torch.where(is_there | ~is_finite, most / _LARGEST, torch.zeros_like(most))
    return codes, torch.where(is_finite, scale, torch.full_like(scale, torch.nan))


def lane_linear_ref(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None = None,
    group: int | None = None,
    wide: torch.dtype = torch.float32,
) -> Tensor:
    """y = x W^T as above; wide: the type of all that is rounded behind the sums of codes, float64 for a check.

    x [M, K]. int8: codes int8 [N, K], scale float32 [N], group None. int4: codes uint8 [N, ceil(K / 2)], even k in the
    low four bits, scale and minimum float16 [N, ceil(K / group)]. -> [M, N] in `wide`.
    """
    rows, steps = rounded_rows_ref(x)
    numbers = (codes if group is None else unpacked(codes, x.shape[1])).double()
    numbers = torch.unflatten(F.pad(numbers, (0, -x.shape[1] % BLOCK)), 1, (-1, BLOCK))
    sums = torch.einsum("mbk,nbk->bmn", rows.double(), numbers)
    own = rows.sum(dim=2, dtype=torch.int64).T.to(wide)  # [B, M]
    steps = steps.T.to(wide)
    if group is None:
        parts = steps[..., None] * sums.to(wide)
        return _summed(parts) * scale.to(wide)
    if minimum is None:
        sums = sums - MIDDLE * own[..., None]
    parts, own_parts = steps[..., None] * sums.to(wide), steps * own
    total = torch.zeros(len(x), len(codes), dtype=wide, device=x.device)
    for g, first in enumerate(range(0, len(parts), group // BLOCK)):
        last = first + group // BLOCK
        total = total + scale[:, g].to(wide) * _summed(parts[first:last])
        if minimum is not None:
            total = total + _summed(own_parts[first:last])[:, None] * minimum[:, g].to(wide)
    return total


def _summed(parts: Tensor) -> Tensor:
    """The sum over the first dimension, in order."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def int8_to_lanes(codes: Tensor) -> Tensor:
    """Codes int8 [N, K] -> [P, 8 B, 64]: of 16 rows four columns each, B = ceil(K / 32) blocks; 0 past N and K."""
    codes = _padded(codes, LANES, BLOCK)
    return codes.view(-1, LANES, codes.shape[1] // 4, 4).transpose(1, 2).flatten(2)


def int8_from_lanes(laned: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse: codes int8 [N, K]."""
    return (
        torch.unflatten(laned, 2, (LANES, 4)).transpose(1, 2).flatten(2).flatten(0, 1)[: shape[0], : shape[1]]
    )


def int4_to_lanes(codes: Tensor) -> Tensor:
    """Codes uint8 [N, ceil(K / 2)] -> [P, 4 B, 64]: of 16 rows eight columns each, k and in the high half k + 4."""
    codes = _padded(codes, LANES, BLOCK // 2)
    low, high = codes & 15, codes >> 4  # columns 0 2 4 6 and 1 3 5 7 of each eight
    numbers = torch.stack([low, high], dim=-1).view(-1, LANES, codes.shape[1] // 4, 2, 4)
    return (numbers[..., 0, :] | numbers[..., 1, :] << 4).transpose(1, 2).flatten(2)


def int4_from_lanes(laned: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse: codes uint8 [N, ceil(K / 2)]."""
    rows = torch.unflatten(laned, 2, (LANES, 4)).transpose(1, 2).flatten(0, 1)  # [16 P, 4 B, 4]
    numbers = torch.stack([rows & 15, rows >> 4], dim=2).flatten(1)
    width = -(-shape[1] // 2)
    return (numbers[:, 0::2] | numbers[:, 1::2] << 4)[: shape[0], :width]


def scales_to_lanes(scale: Tensor) -> Tensor:
    """Scales or minima of groups [N, G] -> [P, G, 16]; 0 past N."""
    return _padded(scale, LANES, 1).view(-1, LANES, scale.shape[1]).transpose(1, 2).contiguous()


def scales_from_lanes(laned: Tensor, num_rows: int) -> Tensor:
    """The inverse: [N, G]."""
    return laned.transpose(1, 2).flatten(0, 1)[:num_rows]


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    height, width = (-(-size // unit) * unit for size, unit in zip(x.shape, (rows, columns), strict=True))
    if (height, width) == tuple(x.shape):
        return x
    made = x.new_zeros(height, width)
    made[: x.shape[0], : x.shape[1]] = x
    return made
