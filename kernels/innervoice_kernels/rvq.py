"""Residual vector quantisation   z = sum_g P_g sum_{k in g} c_k[i_k] + b,   i_k = nearest c_k of what the ones before leave over

i: [B, K, T]   c: [K, N, D]   P: [G, D', D]   ->   z: [B, T, D']        (SoundStream, Zeghidour et al. 2021)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice_kernels.vq import nearest_code


class Codebooks(NamedTuple):
    """codes [K, N, D]; sizes: codebooks a group, in order; project [G, D', D] and bias [D'], None: D' = D and no projection."""

    codes: Tensor
    sizes: tuple[int, ...]
    project: Tensor | None = None
    bias: Tensor | None = None

    def first(self, num: int) -> Codebooks:
        """The first codebooks alone, with the groups that they reach into. A bias belongs to them all and is given anew."""
        sizes, left = [], num
        for size in self.sizes:
            if left > 0:
                sizes.append(min(size, left))
            left -= size
        project = None if self.project is None else self.project[: len(sizes)]
        return Codebooks(self.codes[:num], tuple(sizes), project, self.bias)


def rvq_decode_ref(ids: Tensor, codebooks: Codebooks) -> Tensor:
    """The definition, in float32 or wider inside: ids [B, K, T] int64, K = sum of the groups' sizes -> [B, T, D']."""
    codes = codebooks.codes
    wide = torch.promote_types(codes.dtype, torch.float32)
    total: Tensor | None = None
    first = 0
    for group, size in enumerate(codebooks.sizes):
        found = sum((F.embedding(ids[:, k], codes[k]).to(wide) for k in range(first + 1, first + size)),
                    F.embedding(ids[:, first], codes[first]).to(wide))  # fmt: skip
        if codebooks.project is not None:
            found = found @ codebooks.project[group].to(wide).T
        total = found if total is None else total + found
        first += size
    assert total is not None
    if codebooks.bias is not None:
        total = total + codebooks.bias.to(wide)
    return total.to(codes.dtype)


def rvq_decode(ids: Tensor, codebooks: Codebooks) -> Tensor:
    """Look codes up, add, project: ids [B, K, T] -> [B, T, D']."""
    return rvq_decode_ref(ids, codebooks)


def rvq_encode_ref(x: Tensor, codes: Tensor) -> Tensor:
    """The definition: x [B, T, D], codes [K, N, D] -> [B, K, T] int64; residuals and distances in float32 or wider."""
    left = x.to(torch.promote_types(x.dtype, torch.float32))
    found = []
    for table in codes:
        ids = nearest_code(left, table)
        left = left - F.embedding(ids, table)
        found.append(ids)
    return torch.stack(found, 1)


def rvq_encode(x: Tensor, codes: Tensor) -> Tensor:
    """Nearest codes, one codebook after the other: x [B, T, D], codes [K, N, D] -> [B, K, T] int64."""
    return rvq_encode_ref(x, codes)
