"""The meaning of a quantised weight's numbers   int8, fp8: w = scale q
int4: w = scale q + minimum, or scale (q - 8)

Weights are [N, K], N outputs of K inputs, and quantised row by row, so that rows may be joined,
cut and put in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIDDLE = 8  # the int4 code of 0 where there is no minimum
FOLD = 32  # bytes of folded int4 codes that hold twice as many inputs


def scaled_ref(codes: Tensor, scale: Tensor) -> Tensor:
    """w = scale q: codes [N, K] int8 or float8_e4m3fn, scale [N] -> [N, K] in float32, or in
    float64 for a float64 scale.
    """
    wide = torch.promote_types(scale.dtype, torch.float32)
    return codes.to(wide) * scale.to(wide)[:, None]


def int4_ref(
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    num_columns: int,
    group: int,
    folded: bool = False,
) -> Tensor:
    """w = scale q + minimum, or scale (q - 8) without one -> [N, K] in float32, or in
    float64 for a float64 scale.

    codes [N, ceil(K / 2)] uint8, the even k in the low four bits; scale and minimum [N, ceil(K / group)];
    num_columns is K. The last group has what is left of K. folded: codes are as `fold` makes them.
    """
    wide = torch.promote_types(scale.dtype, torch.float32)
    numbers = unpacked(codes, num_columns, folded).to(wide)
    steps, low = (None if x is None else spread(x.to(wide), num_columns, group) for x in (scale, minimum))
    assert steps is not None
    return steps * (numbers - MIDDLE) if low is None else steps * numbers + low


def packed(numbers: Tensor) -> Tensor:
    """Whole numbers 0 to 15 [N, K] -> uint8 [N, ceil(K / 2)], the even k in the low four bits;
    an odd K is filled up with 0.
    """
    numbers = torch.nn.functional.pad(numbers.to(torch.uint8), (0, numbers.shape[1] % 2))
    return numbers[:, 0::2] | numbers[:, 1::2] << 4


def unpacked(codes: Tensor, num_columns: int, folded: bool = False) -> Tensor:
    """uint8 [N, ceil(K / 2)] -> uint8 [N, K] of 0 to 15. folded: codes are as `fold` makes them."""
    if folded:
        codes = torch.unflatten(codes, 1, (-1, FOLD))
        return torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, :num_columns]
    return torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)[:, :num_columns]


def folded_width(num_columns: int) -> int:
    """Bytes of a row of folded codes."""
    return -(-num_columns // (2 * FOLD)) * FOLD


def fold(codes: Tensor, num_columns: int) -> Tensor:
    """Codes as the GPU multiplies them: uint8 [N, ceil(K / 2)] -> uint8 [N, 32 ceil(K / 64)].

    Of 64 inputs the first 32 are the low four bits of 32 bytes, the others the high ones, so that a group's codes, at
    least 32, are all low or all high, or all there are. Past K they are 0.
    """
    numbers = unpacked(codes, num_columns)
    numbers = torch.nn.functional.pad(numbers, (0, 2 * folded_width(num_columns) - num_columns))
    low, high = torch.unflatten(numbers, 1, (-1, 2, FOLD)).unbind(2)
    return (low | high << 4).flatten(1)


def spread(x: Tensor, num_columns: int, group: int) -> Tensor:
    """One number a group [N, ceil(K / group)] -> one a column [N, K]."""
    return x.repeat_interleave(group, dim=1)[:, :num_columns]
