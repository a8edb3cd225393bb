"""Residual vector quantisation   z = sum_g P_g sum_{k in g} c_k[i_k] + b,
i_k = nearest c_k of the remainder that the quantizers before it leave

i: [B, K, T]   c: [K, N, D]   P: [G, D', D]   ->   z: [B, T, D']        (SoundStream, Zeghidour et al. 2021)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import (
    Count,
    Num,
    Ptr,
    cdiv,
    constexpr,
    dot,
    is_ragged,
    jit,
    launch,
    narrow,
    next_power,
    tl,
)
from innervoice_kernels.native import team
from innervoice_kernels.speech_codec.vq import NATIVE_DTYPES, nearest_code

# A program has ROWS frames. Sums and distances are float32 for every type, so that tiles are those of
# products without tensor cores: 16 x 64 results, 32 deep, a quarter of a warp's registers each.
_ROWS = 16
_DEPTH = 32
_COLUMNS = 64
# Of ragged or short codes, which pass through registers; left to itself the assembler takes too few of them, and spills.
_RAGGED_COLUMNS, _REGISTERS = 32, 255


class Codebooks(NamedTuple):
    """codes [K, N, D]; sizes: codebooks a group, in order; project [G, D', D] and bias [D'],
    None: D' = D and no projection.
    """

    codes: Tensor
    sizes: tuple[int, ...]
    project: Tensor | None = None
    bias: Tensor | None = None

    def first(self, num: int) -> Codebooks:
        """The first codebooks alone, with the groups that they reach into.

        A bias belongs to them all and is given anew.
        """
        sizes, left = [], num
        for size in self.sizes:
            if left > 0:
                sizes.append(min(size, left))
            left -= size
        project = None if self.project is None else self.project[: len(sizes)]
        return Codebooks(self.codes[:num], tuple(sizes), project, self.bias)


def rvq_decode_ref(ids: Tensor, codebooks: Codebooks) -> Tensor:
    """The definition, in float32 or wider inside: ids [B, K, T] int64, K = sum of the
    groups' sizes -> [B, T, D'].
    """
    codes = codebooks.codes
    wide = torch.promote_types(codes.dtype, torch.float32)
    total: Tensor | None = None
    first = 0
    for group, size in enumerate(codebooks.sizes):
        found = F.embedding(ids[:, first], codes[first]).to(wide)
        for k in range(first + 1, first + size):
            found = found + F.embedding(ids[:, k], codes[k]).to(wide)
        if codebooks.project is not None:
            found = found @ codebooks.project[group].to(wide).T
        total = found if total is None else total + found
        first += size
    assert total is not None
    if codebooks.bias is not None:
        total = total + codebooks.bias.to(wide)
    return total.to(codes.dtype)


@jit
def _rvq_decode_kernel(
    ids: Ptr, codes: Ptr, project: Ptr, bias: Ptr, z: Ptr, T: Count, K: Num, N: Num, D: Num, OUT: Num,
    GROUPS: Num, FIRST: Num, REST: Num, PROJECT: constexpr, BIAS: constexpr, ROWS: constexpr,
    DEPTH: constexpr, COLUMNS: constexpr,
) -> None:  # fmt: skip
    """ROWS frames of one sound and COLUMNS results a program.

    FIRST codebooks are in the first group, REST in each other one.
    """
    row, column = (
        tl.program_id(0) * ROWS + tl.arange(0, ROWS),
        tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS),
    )
    batch = tl.program_id(2).to(tl.int64)
    is_row, is_column = row < T, column < OUT
    own = ids + batch * K * T + row
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if PROJECT:
        for group in range(GROUPS):
            begin = tl.where(group == 0, 0, FIRST + (group - 1) * REST)
            end = begin + tl.where(group == 0, FIRST, REST)
            for first in range(0, D, DEPTH):
                d = first + tl.arange(0, DEPTH)
                found = tl.zeros([ROWS, DEPTH], tl.float32)
                for k in range(begin, end):
                    place = (k * N + tl.load(own + k * T, mask=is_row, other=0)) * D
                    found += tl.load(
                        codes + place[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0
                    ).to(tl.float32)
                weight = project + (group * OUT + column[None, :]).to(tl.int64) * D + d[:, None]
                weights = tl.load(weight, mask=is_column[None, :] & (d < D)[:, None], other=0.0).to(
                    tl.float32
                )
                total = dot(found, weights, total)
    else:
        for k in range(K):
            place = (k * N + tl.load(own + k * T, mask=is_row, other=0)) * D
            total += tl.load(codes + place[:, None] + column[None, :], mask=is_column[None, :], other=0.0).to(
                tl.float32
            )
    if BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out = z + (batch * T + row[:, None]) * OUT + column[None, :]
    tl.store(out, narrow(total, z), mask=is_row[:, None] & is_column[None, :])


def _rvq_decode_triton(ids: Tensor, codebooks: Codebooks) -> Tensor:
    codes, sizes = codebooks.codes.contiguous(), codebooks.sizes
    project = None if codebooks.project is None else codebooks.project.contiguous()
    (batch, num, steps), width = ids.shape, codes.shape[-1]
    if sum(sizes) != num or len(set(sizes[1:])) > 1 or (project is None and len(sizes) > 1):
        raise ValueError(
            f"rvq_decode: {num} codebooks in groups of {sizes}: expected groups after the first of one size"
        )
    out = width if project is None else project.shape[1]
    z = torch.empty(batch, steps, out, dtype=codes.dtype, device=codes.device)
    bias = codebooks.bias
    launch(
        _rvq_decode_kernel, (cdiv(steps, _ROWS), cdiv(out, _COLUMNS), batch), ids.contiguous(), codes,
        codes if project is None else project, codes if bias is None else bias.contiguous(), z, steps, num,
        codes.shape[1], width, out, len(sizes), sizes[0], sizes[-1], PROJECT=project is not None,
        BIAS=bias is not None, ROWS=_ROWS, DEPTH=_DEPTH, COLUMNS=_COLUMNS, num_warps=4, num_stages=2,
    )  # fmt: skip
    return z


def rvq_decode(ids: Tensor, codebooks: Codebooks) -> Tensor:
    """Look codes up, add, project: ids [B, K, T] -> [B, T, D']."""
    chosen, codes = choose("rvq_decode", ids, has_native=True), codebooks.codes
    if chosen == TRITON:
        return _rvq_decode_triton(ids, codebooks)
    if chosen == NATIVE and codes.device.type == "cpu" and codes.dtype in NATIVE_DTYPES:
        return rvq_decode_native(ids, codebooks)
    return rvq_decode_ref(ids, codebooks)


def rvq_decode_native(ids: Tensor, codebooks: Codebooks, isa: str | None = None) -> Tensor:
    """The same with the sums of all groups in one call; torch projects them.

    Raises ValueError for an id that is not a code.
    """
    batch, num, steps = ids.shape
    codes = codebooks.codes
    sizes = codebooks.sizes
    sums = torch.empty(batch, steps, len(sizes), codes.shape[-1], dtype=torch.float32, device="cpu")
    table = _C.Weight(codes[:num].detach().flatten(0, 1).contiguous())
    _C.sum_codes(team(), ids.contiguous(), table, sizes, sums, isa)
    rows = sums.flatten(0, 1)  # [B T, G, D]
    if codebooks.project is None:
        total = rows.sum(1) if len(sizes) > 1 else rows[:, 0]
        total = total if codebooks.bias is None else total + codebooks.bias.float()
    else:
        project = codebooks.project.float()
        total = rows.new_zeros(1) if codebooks.bias is None else codebooks.bias.float()
        for group, weight in enumerate(project):
            total = torch.addmm(total, rows[:, group], weight.T)
    return total.view(batch, steps, total.shape[-1]).to(codes.dtype)


def rvq_encode_ref(x: Tensor, codes: Tensor) -> Tensor:
    """The definition: x [B, T, D], codes [K, N, D] -> [B, K, T] int64; residuals and
    distances in float32 or wider.
    """
    left = x.to(torch.promote_types(x.dtype, torch.float32))
    found = []
    for table in codes:
        ids = nearest_code(left, table)
        left = left - F.embedding(ids, table)
        found.append(ids)
    return torch.stack(found, 1)


@jit
def _rvq_encode_kernel(
    left: Ptr,
    codes: Ptr,
    ids: Ptr,
    M: Count,
    T: Count,
    K: Num,
    N: Num,
    D: Num,
    ROWS: constexpr,
    DEPTH: constexpr,
    COLUMNS: constexpr,
) -> None:
    """ROWS frames a program, through all codebooks: `left` [M, D] float32 is what is
    left over, written after each.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < M
    own = left + row.to(tl.int64) * D
    for k in range(K):
        table = codes + tl.cast(k, tl.int64) * N * D
        least = tl.full([ROWS], float("inf"), tl.float32)
        best = tl.zeros([ROWS], tl.int32)
        for begin in range(0, N, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            product = tl.zeros([ROWS, COLUMNS], tl.float32)
            norm = tl.zeros([COLUMNS], tl.float32)
            for first in range(0, D, DEPTH):
                d = first + tl.arange(0, DEPTH)
                a = tl.load(own[:, None] + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
                place = table + column.to(tl.int64)[None, :] * D + d[:, None]
                c = tl.load(place, mask=(column < N)[None, :] & (d < D)[:, None], other=0.0).to(tl.float32)
                product = dot(a, c, product)
                norm += tl.sum(c * c, axis=0)
            distance = tl.where((column < N)[None, :], norm[None, :] - 2.0 * product, float("inf"))
            near = tl.min(distance, axis=1)
            place = begin + tl.argmin(distance, axis=1)
            best = tl.where(near < least, place, best)
            least = tl.minimum(near, least)
        tl.store(ids + (row // T).to(tl.int64) * K * T + k * T + row % T, best.to(tl.int64), mask=is_row)
        tl.debug_barrier()  # every thread has read what is left over before it is written
        for first in range(0, D, DEPTH):
            d = first + tl.arange(0, DEPTH)
            mask = is_row[:, None] & (d < D)[None, :]
            a = tl.load(own[:, None] + d[None, :], mask=mask, other=0.0)
            c = tl.load(table + best.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            tl.store(own[:, None] + d[None, :], a - c, mask=mask)
        tl.debug_barrier()


def _rvq_encode_triton(x: Tensor, codes: Tensor) -> Tensor:
    (batch, steps, width), num = x.shape, len(codes)
    left = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    ids = torch.empty(batch, num, steps, dtype=torch.int64, device=x.device)
    is_small = is_ragged(width) or width < _DEPTH
    launch(
        _rvq_encode_kernel, (cdiv(batch * steps, _ROWS),), left, codes.contiguous(), ids, batch * steps,
        steps, num, codes.shape[1], width, ROWS=_ROWS, DEPTH=min(_DEPTH, next_power(width, 16)),
        COLUMNS=_RAGGED_COLUMNS if is_small else _COLUMNS, num_warps=4, num_stages=2,
        **({"maxnreg": _REGISTERS} if is_small else {}),
    )  # fmt: skip
    return ids


def rvq_encode(x: Tensor, codes: Tensor) -> Tensor:
    """Nearest codes, one codebook after the other: x [B, T, D], codes [K, N, D] -> [B, K, T] int64.

    On a CPU the search of each codebook is native, `nearest_code`.
    """
    return _rvq_encode_triton(x, codes) if choose("rvq_encode", x) == TRITON else rvq_encode_ref(x, codes)
