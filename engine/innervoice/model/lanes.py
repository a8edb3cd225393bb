"""Quantised weights in lanes: their codes in the order in which the CPU multiplies them with inputs of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels.language.linear_lanes import (
    BLOCK,
    LANES,
    int4_from_lanes,
    int4_to_lanes,
    int8_from_lanes,
    int8_to_lanes,
    scales_from_lanes,
    scales_to_lanes,
)
from innervoice_kernels.language.weight_formats import int4_ref, scaled_ref

_BLOCK_BYTES = 4 << 20  # of codes that are turned at a time


@dataclass(frozen=True)
class LanedWeight:
    """A weight of int8 or int4 [N, K] whose rows lie side by side, 16 a panel; see linear_lanes.py.

    codes [P, steps, 64] int8 or uint8; scale float32 [16 P], or of int4 scale and minimum float16 [P, G, 16].
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None
    shape: tuple[int, int]
    group: int | None  # None: int8

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K], computed in float32 and rounded once."""
        codes, scale, minimum = self.rows()
        if self.group is None:
            return scaled_ref(codes, scale).to(dtype)
        return int4_ref(codes, scale, minimum, self.shape[1], self.group).to(dtype)

    def rows(self, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and minima of rows by number [R], as an int8 or int4 weight holds them; None: of all."""
        if index is None:
            codes, scale, minimum, num_rows = self.codes, self.scale, self.minimum, self.shape[0]
        else:
            panels, lanes, num_rows = index // LANES, index % LANES, len(index)
            codes = _gathered(torch.unflatten(self.codes, 2, (LANES, 4)), panels, lanes, 2).flatten(2)
            scale = self.scale[index] if self.group is None else _gathered(self.scale, panels, lanes, 2)
            minimum = None if self.minimum is None else _gathered(self.minimum, panels, lanes, 2)
        if self.group is None:
            return int8_from_lanes(codes, (num_rows, self.shape[1])), scale[:num_rows], None
        low = None if minimum is None else scales_from_lanes(minimum, num_rows)
        return int4_from_lanes(codes, (num_rows, self.shape[1])), scales_from_lanes(scale, num_rows), low


def _gathered(laned: Tensor, panels: Tensor, lanes: Tensor, dim: int) -> Tensor:
    """Rows of a tensor whose first dimension is the panel and whose `dim`-th the lane, in panels of their own."""
    rows = laned.movedim(dim, 1)[panels, lanes]
    missing = -len(rows) % LANES
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return torch.unflatten(rows, 0, (-1, LANES)).movedim(1, dim)


def int8_in_lanes(codes: Tensor, scale: Tensor, *, in_place: bool = False) -> LanedWeight:
    """An int8 weight in lanes. in_place: in the memory of its codes where they fill it, which are then used up."""
    padded = scale.new_zeros(-(-len(scale) // LANES) * LANES)
    padded[: len(scale)] = scale
    shape = (codes.shape[0], codes.shape[1])
    return LanedWeight(_turned(codes, int8_to_lanes, BLOCK, in_place), padded, None, shape, None)


def int4_in_lanes(
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    num_columns: int,
    group: int,
    *,
    in_place: bool = False,
) -> LanedWeight:
    """An int4 weight in lanes; in_place: as for int8."""
    low = None if minimum is None else scales_to_lanes(minimum)
    made = _turned(codes, int4_to_lanes, BLOCK // 2, in_place)
    return LanedWeight(made, scales_to_lanes(scale), low, (codes.shape[0], num_columns), group)


def _turned(codes: Tensor, turn: Callable[[Tensor], Tensor], block_bytes: int, in_place: bool) -> Tensor:
    """Codes [N, width], whose rows have blocks of so many bytes, panel by panel as `turn` lays them out."""
    rows, width = codes.shape
    panels, blocks = -(-rows // LANES), -(-width // block_bytes)
    size = (panels, blocks * block_bytes * LANES // 64, 64)
    fits = codes.is_contiguous() and codes.numel() == panels * blocks * block_bytes * LANES
    made = codes.view(size) if in_place and fits else codes.new_empty(size)
    if codes.device.type == "meta":
        return made
    step = max(1, _BLOCK_BYTES // max(1, LANES * width))
    for first in range(0, panels, step):
        made[first : first + step] = turn(codes[first * LANES : (first + step) * LANES])
    return made
