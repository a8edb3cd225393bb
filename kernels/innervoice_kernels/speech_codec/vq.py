"""Vector quantisation   id = first argmin_k |c_k|^2 + |x|^2 - 2 x.c_k
x: [..., D]   c: [K, D]   ->   [...] int64
"""

from __future__ import annotations

import torch

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, cdiv, constexpr, dot, jit, launch, tl
from innervoice_kernels.native import floats, team

_ROWS = 16
_CODES = 32
_DEPTH = 32
_PROGRAMS = 264  # two for each SM of the largest chips: codes are divided until there are so many
NATIVE_DTYPES = {torch.float32, torch.bfloat16}
"""Of what native code searches and adds up, in float32."""
_CHUNK = 1 << 24  # distances held at once


def nearest_code_ref(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The definition above, with distances in float32 (float64 for float64 inputs), a
    bounded number of them at a time.
    """
    compute = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    codes = codebook.to(compute)  # [K, D]
    code_norm = codes.square().sum(-1)  # [K]
    rows = x.reshape(-1, x.shape[-1])
    ids = torch.empty(len(rows), dtype=torch.int64, device=x.device)
    step = max(1, _CHUNK // len(codes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].to(compute)
        distance = code_norm + part.square().sum(-1, keepdim=True) - 2.0 * (part @ codes.T)  # [step, K]
        ids[start : start + step] = distance.argmin(-1)
    return ids.reshape(x.shape[:-1])


def nearest_code(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Nearest code of each vector by squared distance: x [..., D], codebook [K, D] -> [...] int64."""
    chosen = choose("nearest_code", x, has_native=True)
    if chosen == TRITON:
        return _nearest_code_triton(x, codebook)
    if chosen == NATIVE and x.device.type == "cpu" and {x.dtype, codebook.dtype} <= NATIVE_DTYPES:
        return nearest_code_native(x, codebook)
    return nearest_code_ref(x, codebook)


def nearest_code_native(x: torch.Tensor, codebook: torch.Tensor, isa: str | None = None) -> torch.Tensor:
    """The same without |x|^2, which is alike for all codes: products and the nearest
    in one pass over the codebook.

    A vector's id depends on that vector alone. isa None: the best that there is.
    """
    rows = floats(x.reshape(-1, x.shape[-1]))
    ids = torch.empty(len(rows), dtype=torch.int64, device="cpu")
    _C.nearest_code(team(), rows, _C.Weight(codebook.detach().contiguous()), ids, isa)
    return ids.view(x.shape[:-1])


@jit
def _nearest_code_kernel(
    x: Ptr, codes: Ptr, least: Ptr, ids: Ptr, x_row: Num, code_row: Num, M: Count, K: Num, share: Count,
    D: constexpr, ROWS: constexpr, CODES: constexpr, DEPTH: constexpr,
) -> None:  # fmt: skip
    """ROWS vectors against `share` codes a program: |c|^2 - 2 x.c in float32, and the
    first code where it is least.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    lane, depth = tl.arange(0, CODES), tl.arange(0, DEPTH)
    best = tl.full([ROWS], float("inf"), tl.float32)
    found = tl.zeros([ROWS], tl.int32)
    for first in range(part * share, tl.minimum((part + 1) * share, K), CODES):
        code = first + lane
        products = tl.zeros([ROWS, CODES], tl.float32)
        norms = tl.zeros([CODES], tl.float32)
        for begin in range(0, D, DEPTH):
            k = begin + depth
            known = k < D
            a = tl.load(
                x + row[:, None] * x_row + k[None, :], mask=(row < M)[:, None] & known[None, :], other=0.0
            )
            c = tl.load(
                codes + code[None, :] * code_row + k[:, None],
                mask=(code < K)[None, :] & known[:, None],
                other=0.0,
            )
            wide = c.to(tl.float32)
            products = dot(a.to(tl.float32), wide, products)
            norms += tl.sum(wide * wide, axis=0)
        distance = tl.where((code < K)[None, :], norms[None, :] - 2 * products, float("inf"))
        nearest = tl.min(distance, axis=1)
        place = tl.min(tl.where(distance == nearest[:, None], code[None, :], K), axis=1)
        found = tl.where(nearest < best, place, found)
        best = tl.minimum(nearest, best)
    out = part * M + row
    tl.store(least + out, best, mask=row < M)
    tl.store(ids + out, found, mask=row < M)


def _nearest_code_triton(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    width, count = codebook.shape[1], codebook.shape[0]
    rows = x.reshape(-1, width)
    rows = rows if width == 1 or rows.stride(1) == 1 else rows.contiguous()
    codes = codebook if width == 1 or codebook.stride(1) == 1 else codebook.contiguous()
    tiles = cdiv(len(rows), _ROWS)
    parts = max(1, min(cdiv(count, 4 * _CODES), cdiv(_PROGRAMS, max(tiles, 1))))
    share = cdiv(cdiv(count, parts), _CODES) * _CODES
    parts = cdiv(count, share)
    least = torch.empty(parts, len(rows), dtype=torch.float32, device=x.device)
    ids = torch.empty(parts, len(rows), dtype=torch.int32, device=x.device)
    launch(
        _nearest_code_kernel, (tiles, parts), rows, codes, least, ids, rows.stride(0), codes.stride(0),
        len(rows), count, share, D=width, ROWS=_ROWS, CODES=_CODES, DEPTH=_DEPTH, num_warps=4, num_stages=2,
    )  # fmt: skip
    nearest = least.argmin(0, keepdim=True)  # of equal ones the first part, whose codes come first
    return ids.gather(0, nearest)[0].long().reshape(x.shape[:-1])
