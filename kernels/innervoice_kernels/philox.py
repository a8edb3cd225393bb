"""Philox4x32-10   counter (c0, c1, c2, c3), key (k0, k1)   ->   four uint32 words

Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Counter-based: a token's noise depends on
(seed, n, d, id) alone, so that it is the same on every device, alone or in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def philox_ref(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds. Words are int64 tensors that hold values below 2**32 and broadcast; the result likewise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # the 64-bit pattern is exact although the sign may flip
        c0, c1, c2, c3 = _high(second) ^ c1 ^ k0, second & LOW, _high(first) ^ c3 ^ k1, first & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def gumbel_noise(seed: int, n: int, d: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise for ids [V] int64 at draw d of token n -> [V] float32.

    -ln(-ln u) with u = (first word >> 9, plus a half) / 2**23, counter (id, n, d, 0), key (seed low, seed high).
    """
    zero = torch.zeros((), dtype=torch.int64, device=ids.device)
    word = philox_ref((ids, zero + n, zero + d, zero), (zero + (seed & LOW), zero + (seed >> 32)))[0]
    u = ((word >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & LOW
