"""Vector quantisation   id = first argmin_k |c_k|^2 + |x|^2 - 2 x.c_k   x: [..., D]   c: [K, D]   ->   [...] int64"""

from __future__ import annotations

import torch

_CHUNK = 1 << 24  # distances held at once


def nearest_code_ref(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The definition above, with distances in float32 (float64 for float64 inputs), a bounded number of them at a time."""
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
    return nearest_code_ref(x, codebook)
