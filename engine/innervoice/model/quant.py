"""Quantised weights: what they hold, how they are made, and the one place where a weight of any kind is
multiplied.

A weight is [N, K], N outputs of K inputs. Every format is made row by row:

int8  codes int8 [N, K], scale float32 [N]: w = scale q, q from -127 to 127
fp8   codes float8_e4m3fn [N, K], scale float32 [N]: w = scale q
int4  codes uint8 [N, ceil(K / 2)], even k in the low four bits, odd k in the high ones (0 past an odd K); groups of 32, 64 or 128
      columns, the last one perhaps smaller; scale and minimum float16 [N, ceil(K / group)]: w = scale q + minimum with q from 0
      to 15; without a minimum (symmetric) w = scale (q - 8), where scale may be negative. Groups of 32 with a minimum are GGUF's
      Q4_1, without one its Q4_0.

In a file the tensors of a weight NAME are called NAME.codes, NAME.scale and NAME.minimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from innervoice.checkpoint.quantization import GROUPS, Quantization
from innervoice.model.lanes import LanedWeight, int4_in_lanes, int8_in_lanes
from innervoice_kernels.language.expert_products import ExpertWeights
from innervoice_kernels.language.linear import Norm, SplitWorkspace, gated_linear
from innervoice_kernels.language.linear import linear as own_linear
from innervoice_kernels.language.linear_int4 import int4_linear
from innervoice_kernels.language.linear_scaled import scaled_linear
from innervoice_kernels.language.weight_formats import (
    MIDDLE,
    fold,
    folded_width,
    int4_ref,
    packed,
    scaled_ref,
    spread,
)

FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = 448.0
_LANE_BYTES = 16
_BLOCK_NUMBERS = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True)
class Int8Weight:
    """w = scale q; one scale an output."""

    codes: Tensor  # [N, K] int8
    scale: Tensor  # [N] float32

    def __post_init__(self) -> None:
        _check("int8 codes", self.codes, torch.int8, None)
        _check("the scales of int8 codes", self.scale, torch.float32, (len(self.codes),))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight, (N, K)."""
        return (self.codes.shape[0], self.codes.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K], computed in float32 and rounded once."""
        return scaled_ref(self.codes, self.scale).to(dtype)


@dataclass(frozen=True)
class Fp8Weight:
    """w = scale q with q in e4m3; one scale an output."""

    codes: Tensor  # [N, K] float8_e4m3fn
    scale: Tensor  # [N] float32

    def __post_init__(self) -> None:
        _check("fp8 codes", self.codes, FP8, None)
        _check("the scales of fp8 codes", self.scale, torch.float32, (len(self.codes),))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight, (N, K)."""
        return (self.codes.shape[0], self.codes.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K], computed in float32 and rounded once."""
        return scaled_ref(self.codes, self.scale).to(dtype)


@dataclass(frozen=True)
class Int4Weight:
    """w = scale q + minimum, or scale (q - 8) where minimum is None; one scale a group of an output's inputs."""

    codes: Tensor  # [N, ceil(K / 2)] uint8, the even k in the low four bits
    scale: Tensor  # [N, ceil(K / group)] float16
    minimum: Tensor | None  # [N, ceil(K / group)] float16
    num_columns: int  # K
    group: int
    folded: bool = False  # codes are [N, 32 ceil(K / 64)], as the GPU multiplies them

    def __post_init__(self) -> None:
        check_group(self.group)
        rows = self.codes.shape[0]
        width = folded_width(self.num_columns) if self.folded else -(-self.num_columns // 2)
        _check("int4 codes", self.codes, torch.uint8, (rows, width))
        groups = (rows, -(-self.num_columns // self.group))
        _check("the scales of int4 codes", self.scale, torch.float16, groups)
        if self.minimum is not None:
            _check("the minima of int4 codes", self.minimum, torch.float16, groups)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight, (N, K)."""
        return (self.codes.shape[0], self.num_columns)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K], computed in float32 and rounded once."""
        held = (self.codes, self.scale, self.minimum, self.num_columns, self.group, self.folded)
        return int4_ref(*held).to(dtype)


Quantized: TypeAlias = Int8Weight | Int4Weight | Fp8Weight
Weight: TypeAlias = Tensor | Quantized | LanedWeight


def to_int8(w: Tensor) -> Int8Weight:
    """w [N, K] with the largest magnitude of each row at 127. Raises ValueError for NaN or infinity."""
    w = _finite(w)
    scale = w.abs().amax(dim=1) / 127
    return Int8Weight(torch.round(w / _divisor(scale)[:, None]).to(torch.int8), scale)


def to_fp8(w: Tensor) -> Fp8Weight:
    """w [N, K] with the largest magnitude of each row at 448, e4m3's largest.

    Raises ValueError for NaN or infinity.
    """
    w = _finite(w)
    scale = w.abs().amax(dim=1) / _LARGEST_FP8
    # A quotient may come out above 448 by a rounding, which e4m3 has no number for.
    return Fp8Weight((w / _divisor(scale)[:, None]).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(FP8), scale)


def to_int4(w: Tensor, group: int = 32, symmetric: bool = False) -> Int4Weight:
    """w [N, K] in groups of `group` columns: from the smallest to the largest of a
    group, or its extreme at -8.

    Raises ValueError for NaN, infinity or what float16 cannot hold, and for a
    group that is not 32, 64 or 128.
    """
    check_group(group)
    w = _finite(w)
    rows, columns = w.shape
    groups = -(-columns // group)
    # The last column again fills the last group up: it changes neither its smallest nor its largest.
    full = torch.cat([w, w[:, -1:].expand(rows, groups * group - columns)], dim=1).view(rows, groups, group)
    if symmetric:
        extreme = full.gather(2, full.abs().argmax(dim=2, keepdim=True)).squeeze(2)
        scale = _half(extreme / -MIDDLE)
        minimum = None
        zero = float(MIDDLE)
    else:
        low = full.amin(dim=2)
        minimum, zero = _half(low), 0.0
        scale = _half((full.amax(dim=2) - low) / 15)
    offset = 0.0 if minimum is None else spread(minimum.float(), columns, group)
    numbers = torch.round((w - offset) / _divisor(spread(scale.float(), columns, group)) + zero).clamp(0, 15)
    return Int4Weight(packed(numbers), scale, minimum, columns, group)


def quantize(w: Tensor, to: Quantization) -> Quantized:
    """w [N, K] in a format, some rows at a time.

    Raises ValueError for NaN, infinity, and what the format cannot hold.
    """
    made = [_quantized(block, to) for block in row_blocks(w)]
    return with_tensors(
        made[0], {name: torch.cat([tensors_of(part)[name] for part in made]) for name in tensors_of(made[0])}
    )


def row_blocks(w: Tensor) -> tuple[Tensor, ...]:
    """The rows of w [N, K] in blocks that take little memory in float32; one that is empty for no rows."""
    return torch.split(w, max(1, _BLOCK_NUMBERS // max(w.shape[-1], 1)))


def _quantized(w: Tensor, to: Quantization) -> Quantized:
    if to.format == "int4":
        assert to.group is not None
        return to_int4(w, to.group, to.symmetric)
    return to_int8(w) if to.format == "int8" else to_fp8(w)


def empty(shape: tuple[int, int], to: Quantization, device: str | torch.device) -> Quantized:
    """A weight [N, K] in a format, its numbers not set."""
    rows, columns = shape
    if to.format == "int4":
        assert to.group is not None
        codes = torch.empty(rows, -(-columns // 2), dtype=torch.uint8, device=device)
        scale, minimum = (
            torch.empty(rows, -(-columns // to.group), dtype=torch.float16, device=device) for _ in range(2)
        )
        return Int4Weight(codes, scale, None if to.symmetric else minimum, columns, to.group)
    scale = torch.empty(rows, dtype=torch.float32, device=device)
    if to.format == "int8":
        return Int8Weight(torch.empty(rows, columns, dtype=torch.int8, device=device), scale)
    return Fp8Weight(torch.empty(rows, columns, dtype=FP8, device=device), scale)


def linear(weight: Weight, x: Tensor, bias: Tensor | None = None, *, invariant: bool = False) -> Tensor:
    """x W^T + b: x [..., K], weight [N, K], bias [N] -> [..., N] in x's type.

    invariant: a row's sums are the same in every batch, on a GPU by own kernels.
    """
    if isinstance(weight, LanedWeight):
        return F.linear(x, weight.dequantize(x.dtype), bias)
    if isinstance(weight, Tensor) and not invariant:
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    if isinstance(weight, Tensor):
        y = own_linear(rows, weight, bias, invariant=True)
    elif isinstance(weight, Int4Weight):
        scales = (weight.scale, weight.minimum, weight.group)
        y = int4_linear(rows, weight.codes, *scales, bias, folded=weight.folded, invariant=invariant)
    else:
        y = scaled_linear(rows, weight.codes, weight.scale, bias, invariant=invariant)
    return y.view(*x.shape[:-1], -1) if y.numel() else y.new_empty(*x.shape[:-1], weight.shape[0])


def step_linear(
    weight: Weight,
    x: Tensor,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    *,
    gated: bool = False,
    workspace: SplitWorkspace | None = None,
    invariant: bool = False,
) -> Tensor:
    """norm(x) W^T + r, or gated silu(g) u with [g | u] = norm(x) W^T: x [M, K], weight [N, K] -> [M, N] or [M, N / 2].

    A product of a decode step, one launch for any kind of weight; workspace: kept from step to step.
    """
    assert not isinstance(weight, LanedWeight), "weights in lanes are a CPU's"
    if isinstance(weight, Tensor) and gated:
        return gated_linear(x, weight, norm, invariant=invariant)
    if isinstance(weight, Tensor):
        return own_linear(x, weight, None, residual, norm, invariant=invariant, workspace=workspace)
    how = {"workspace": workspace, "invariant": invariant}
    if isinstance(weight, Int4Weight):
        scales = (weight.scale, weight.minimum, weight.group)
        how |= {"folded": weight.folded}
        return int4_linear(x, weight.codes, *scales, None, residual, norm, gated, **how)  # type: ignore[arg-type]
    return scaled_linear(x, weight.codes, weight.scale, None, residual, norm, gated, **how)  # type: ignore[arg-type]


def embed(weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a weight [N, K] by number: ids [T] -> [T, K] in dtype."""
    rows = rows_of(weight, ids)
    return rows if isinstance(rows, Tensor) else rows.dequantize(dtype)


def rows_of(weight: Weight, index: Tensor) -> Weight:
    """The rows of a weight by number, in that order."""
    if isinstance(weight, Tensor):
        return weight[index]
    if isinstance(weight, LanedWeight):
        return unlaned(weight, index)
    return with_tensors(weight, {name: x[index] for name, x in tensors_of(weight).items()})


def rows_between(weight: Weight, first: int, last: int) -> Weight:
    """The rows [first, last) of a weight, in the same memory unless it is in lanes."""
    if isinstance(weight, Tensor):
        return weight[first:last]
    if isinstance(weight, LanedWeight):
        return unlaned(weight, torch.arange(first, last, dtype=torch.int64, device=weight.codes.device))
    return with_tensors(weight, {name: x[first:last] for name, x in tensors_of(weight).items()})


def joined(weights: Sequence[Weight], dtype: torch.dtype) -> Weight:
    """Weights of the same K, one below the other; where their formats differ, dequantised to dtype."""
    first = weights[0]
    kinds = {(description(weight), isinstance(weight, Int4Weight) and weight.folded) for weight in weights}
    if isinstance(first, Tensor | LanedWeight) or len(kinds) > 1:
        return stacked(
            [weight if isinstance(weight, Tensor) else weight.dequantize(dtype) for weight in weights]
        )
    parts = [tensors_of(weight) for weight in weights if not isinstance(weight, Tensor)]
    return with_tensors(first, {name: stacked([part[name] for part in parts]) for name in parts[0]})


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one below the other. On the meta device torch.cat imports torch's compiler, which takes seconds; on a CPU
    it wakes threads, whose spinning takes longer than the copy.
    """
    kind = parts[0].device.type
    if kind not in ("cpu", "meta"):
        return torch.cat(list(parts))
    made = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    if kind == "cpu":
        np.concatenate([_as_bytes(part) for part in parts], out=_as_bytes(made))
    return made


def _as_bytes(x: Tensor) -> NDArray[np.uint8]:
    """The same memory, or of a tensor that is not contiguous a copy."""
    made: NDArray[np.uint8] = x.contiguous().view(torch.uint8).numpy()
    return made


def expert_weights(weight: Weight) -> ExpertWeights:
    """A weight that holds all experts' matrices, as the kernels take it."""
    assert not isinstance(weight, LanedWeight), "weights in lanes are a CPU's"
    if isinstance(weight, Tensor):
        return ExpertWeights(weight)
    if isinstance(weight, Int4Weight):
        return ExpertWeights(weight.codes, weight.scale, weight.minimum, weight.group, weight.folded)
    return ExpertWeights(weight.codes, weight.scale)


def laid_out(weight: Weight) -> Weight:
    """The same weight in memory as the GPU reads it best: rows of codes begin at multiples of 16 bytes, of
    which a lane reads 16 at once, int4 codes are folded; the scales and minima of a group lie side by side for all outputs.
    """
    if isinstance(weight, Tensor | LanedWeight):
        return weight
    if isinstance(weight, Int4Weight):
        return _folded(weight)
    codes = weight.codes
    width = codes.shape[1]
    if width % _LANE_BYTES:
        padded = codes.new_zeros(len(codes), -(-width // _LANE_BYTES) * _LANE_BYTES)
        padded[:, :width] = codes
        codes = padded[:, :width]
    return with_tensors(weight, {"codes": codes, "scale": weight.scale})


def _folded(weight: Int4Weight) -> Int4Weight:
    """Int4 laid out; codes some rows at a time, because they are wide for a moment."""
    codes = weight.codes
    if not weight.folded:
        parts = row_blocks(codes)
        codes = stacked([fold(part, weight.num_columns) for part in parts])
    scale, minimum = (None if x is None else x.t().contiguous().t() for x in (weight.scale, weight.minimum))
    assert scale is not None
    return Int4Weight(codes, scale, minimum, weight.num_columns, weight.group, folded=True)


def in_lanes(weight: Weight, *, in_place: bool = False) -> Weight:
    """An int8 or int4 weight in lanes, which the CPU multiplies with inputs of 8 bits; others as they are.

    in_place: where they can be turned in their own memory, the codes of the given weight are used up.
    """
    if isinstance(weight, Int8Weight):
        return int8_in_lanes(weight.codes, weight.scale, in_place=in_place)
    if isinstance(weight, Int4Weight):
        parts = weight.codes, weight.scale, weight.minimum, weight.num_columns, weight.group
        return int4_in_lanes(*parts, in_place=in_place)
    return weight


def unlaned(weight: LanedWeight, index: Tensor | None = None) -> Int8Weight | Int4Weight:
    """The rows of a weight in lanes by number, in that order; None: all."""
    codes, scale, minimum = weight.rows(index)
    if weight.group is None:
        return Int8Weight(codes, scale)
    return Int4Weight(codes, scale, minimum, weight.shape[1], weight.group)


def tensors_of(weight: Quantized | LanedWeight) -> dict[str, Tensor]:
    """The tensors of a weight by the names of its fields."""
    held = {field.name: getattr(weight, field.name) for field in fields(weight)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def with_tensors(like: Quantized, tensors: Mapping[str, Tensor]) -> Quantized:
    """A weight of the same format that holds these tensors.

    Raises ValueError where their types or shapes do not fit.
    """
    if isinstance(like, Int4Weight):
        return replace(like, codes=tensors["codes"], scale=tensors["scale"], minimum=tensors.get("minimum"))
    return type(like)(tensors["codes"], tensors["scale"])


def description(weight: Weight) -> str:
    """The format in words: "int4 in groups of 32 with minimum"."""
    if isinstance(weight, Int4Weight):
        return f"int4 in groups of {weight.group} {'without' if weight.minimum is None else 'with'} minimum"
    if isinstance(weight, LanedWeight):
        return f"{'int8' if weight.group is None else f'int4 in groups of {weight.group}'} in lanes"
    if isinstance(weight, Tensor):
        return str(weight.dtype).removeprefix("torch.")
    return "int8" if isinstance(weight, Int8Weight) else "fp8"


def num_bytes(weight: Weight) -> int:
    """Bytes of all its tensors."""
    held = [weight] if isinstance(weight, Tensor) else tensors_of(weight).values()
    return sum(x.numel() * x.element_size() for x in held)


def check_group(group: int) -> None:
    """Raise ValueError for a size of groups that there is not."""
    if group not in GROUPS:
        raise ValueError(f"a group of {group} columns does not fit: use {', '.join(map(str, GROUPS))}")


def _check(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None) -> None:
    if x.dtype != dtype or (x.dim() != 2 if shape is None else tuple(x.shape) != shape):
        expected = f"{dtype} {'[N, K]' if shape is None else list(shape)}".removeprefix("torch.")
        raise ValueError(
            f"{name} are {str(x.dtype).removeprefix('torch.')} {list(x.shape)}, expected {expected}"
        )


def _finite(w: Tensor) -> Tensor:
    """w in float32. Raises ValueError."""
    if w.dim() != 2 or not w.is_floating_point():
        raise ValueError(
            f"only floating-point weights [N, K] are quantised, this one is {w.dtype} {list(w.shape)}"
        )
    bad = int(w.numel() - torch.isfinite(w).sum())
    if bad:
        raise ValueError(
            f"{bad} of {w.numel()} numbers are NaN or infinite: the weights are damaged, take them anew"
        )
    return w.float()


def _half(x: Tensor) -> Tensor:
    rounded = x.half()
    if not bool(torch.isfinite(rounded).all()):
        raise ValueError(
            f"a scale or minimum of {x.abs().max().item():.3g} is above float16's 65504: take int8 or fp8"
        )
    return rounded


def _divisor(scale: Tensor) -> Tensor:
    """1 in place of 0: what has scale 0 gets the code of 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
