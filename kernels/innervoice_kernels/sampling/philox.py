"""Philox4x32-10   counter (c0, c1, c2, c3), key (k0, k1)   ->   four uint32 words

Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Counter-based: a token's
noise depends on (seed, n, d, id) alone, so that it is the same on every device, alone or in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Block, Num, Ptr, cdiv, constexpr, jit, launch, tl

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def philox_ref(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10, ten rounds.

    Words are int64 tensors that hold values below 2**32 and broadcast; the result likewise.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = (
            c0 * MULTIPLIERS[0],
            c2 * MULTIPLIERS[1],
        )  # the 64-bit pattern is exact although the sign may flip
        c0 = _high(second) ^ c1 ^ k0
        c1 = second & LOW
        c2 = _high(first) ^ c3 ^ k1
        c3 = first & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def gumbel_noise_ref(seed: int, n: int, d: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise for ids [V] int64 at draw d of token n -> [V] float32.

    -ln(-ln u) with u = (first word >> 9, plus a half) / 2**23, counter (id, n, d,
    0), key (seed low, seed high).
    """
    zero = torch.zeros((), dtype=torch.int64, device=ids.device)
    word = philox_ref((ids, zero + n, zero + d, zero), (zero + (seed & LOW), zero + (seed >> 32)))[0]
    u = ((word >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & LOW


@jit
def gumbel(seed: Num, n: Num, d: Num, ids: Block) -> Block:
    """The noise of gumbel_noise_ref for ids below 2**32, with int64 seed, n, d that broadcast with them."""
    zero = tl.zeros_like(ids).to(tl.uint32)
    word = tl.philox(seed, ids.to(tl.uint32), zero + n.to(tl.uint32), zero + d.to(tl.uint32), zero)[0]
    u = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
    return -tl.log(-tl.log(u))


@jit
def _gumbel_kernel(ids: Ptr, y: Ptr, key: Ptr, V: Num, BLOCK: constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    noise = gumbel(
        tl.load(key), tl.load(key + 1), tl.load(key + 2), tl.load(ids + place, mask=place < V, other=0)
    )
    tl.store(y + place, noise, mask=place < V)


_BLOCK = 512  # 4 a thread of 4 warps: ten rounds each keep the integer units busy


def signed(seed: int) -> int:
    """The 64 bits of a seed as an int64."""
    return seed - 2**64 if seed >= 2**63 else seed


def _gumbel_noise_triton(seed: int, n: int, d: int, ids: Tensor) -> Tensor:
    y = torch.empty(len(ids), dtype=torch.float32, device=ids.device)
    key = torch.tensor([signed(seed), n, d], dtype=torch.int64, device=ids.device)
    launch(
        _gumbel_kernel,
        (cdiv(len(ids), _BLOCK),),
        ids.contiguous(),
        y,
        key,
        len(ids),
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return y


def gumbel_noise(seed: int, n: int, d: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise for ids [V] int64 at draw d of token n -> [V] float32; see gumbel_noise_ref."""
    run = _gumbel_noise_triton if choose("gumbel_noise", ids) == TRITON else gumbel_noise_ref
    return run(seed, n, d, ids)
