"""Masked sampling   id = argmax over allowed ids of  z/T + Gumbel(seed, n, d, id),
top-k then top-p on softmax(z/T)

logits: [B, V]   ->   ids: [B] int64, logprobs: [B] float32
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.native import floats, team
from innervoice_kernels.sampling.bits import Bits, pack_ids
from innervoice_kernels.sampling.cursor_columns import MaskColumn
from innervoice_kernels.sampling.philox import gumbel_noise_ref, signed

if TYPE_CHECKING:
    from innervoice_kernels.sampling.cursor import Draws

REFUSED = -1


@dataclass(slots=True, unsafe_hash=True)
class Draw:
    """The sampling parameters of one row.

    ranges: half-open id ranges; extras: single ids; temperature 0: greedy; top_k 0 and top_p 1: off.

    seed, n, d: key of the noise (the request's seed, tokens emitted so far, 1 after a discarded draw). bits: which
    of the ids of ranges and extras may be drawn, packed; None: all.
    """

    ranges: tuple[tuple[int, int], ...]
    extras: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    n: int = 0
    d: int = 0
    bits: Bits | None = field(default=None, compare=False)


def sample_ref(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """One id a row and its log-probability (softmax of the masked logits, before temperature).

    Ids outside the mask are removed first, then temperature, top-k, top-p. Equal logits: the smallest id
    wins. A row without allowed ids, with NaN among their logits, or with a largest one that is not finite
    gets id -1 and NaN. In float32 (float64 for float64 logits).
    """
    picked = [_draw_row(row, draw) for row, draw in zip(logits, draws, strict=True)]
    device = logits.device
    ids = torch.tensor([i for i, _ in picked], dtype=torch.int64, device=device)
    return ids, torch.tensor([p for _, p in picked], dtype=torch.float32, device=device)


def allowed_ids(draw: Draw, device: torch.device) -> Tensor:
    """The ids of a mask, ascending, each once -> [N] int64."""
    spans = merge_spans((*draw.ranges, *((token, token + 1) for token in draw.extras)))
    parts = [torch.arange(low, high, device=device, dtype=torch.int64) for low, high in spans]
    ids = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)
    return ids if draw.bits is None else ids[_flags(draw.bits, device)[ids]]


def _draw_row(row: Tensor, draw: Draw) -> tuple[int, float]:
    ids = allowed_ids(draw, row.device)
    z = row[ids].to(torch.promote_types(row.dtype, torch.float32))
    if not len(ids) or not torch.isfinite(z.max()) or torch.isnan(z).any():
        return REFUSED, float("nan")
    if draw.temperature > 0:
        scaled = z / draw.temperature
        kept = _keep_top_p(scaled, _keep_top_k(scaled, draw.top_k), draw.top_p)
        noise = gumbel_noise_ref(
            draw.seed, draw.n, draw.d, ids[kept]
        )  # an id's noise does not depend on what else is kept
        index = int(kept[torch.argmax(scaled[kept] + noise)])
    else:
        index = int(torch.argmax(z))
    return int(ids[index]), float(torch.log_softmax(z, dim=0)[index])


def _keep_top_k(z: Tensor, top_k: int) -> Tensor:
    """Places of the k largest and their equals, ascending."""
    if top_k == 0 or top_k >= len(z):
        return torch.arange(len(z), device=z.device, dtype=torch.int64)
    return torch.nonzero(z >= torch.topk(z, top_k).values[-1])[:, 0]


def _keep_top_p(z: Tensor, kept: Tensor, top_p: float) -> Tensor:
    """Of the kept places, those of the most probable ids until their sum reaches
    top_p, at least one; ascending.
    """
    if top_p >= 1.0:
        return kept
    order = kept[torch.argsort(z[kept], descending=True, stable=True)]
    p = torch.softmax(z[order], dim=0)
    dropped = torch.cumsum(p, dim=0) - p >= top_p
    return order[~dropped].sort().values


def merge_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges of ids, in any order -> the same ids in ranges that ascend and do not overlap."""
    merged: list[tuple[int, int]] = []
    end = 0
    for low, high in sorted(spans):
        if max(low, end) < high:
            merged.append((max(low, end), high))
            end = high
    return merged


@lru_cache(maxsize=1024)
def _mask(ranges: tuple[tuple[int, int], ...], extras: tuple[int, ...]) -> list[tuple[int, int]]:
    return merge_spans((*ranges, *((token, token + 1) for token in extras)))


def _sample_native(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    if len(logits) != len(draws):
        raise ValueError(f"sample: {len(logits)} rows of logits for {len(draws)} draws")
    masks = [_mask(draw.ranges, draw.extras) for draw in draws]
    offsets = torch.tensor([0, *accumulate(map(len, masks))], dtype=torch.int64, device="cpu")
    ranges = torch.tensor([span for mask in masks for span in mask], dtype=torch.int64, device="cpu").reshape(
        -1, 2
    )
    keys = torch.tensor(
        [(signed(draw.seed), draw.n, draw.d) for draw in draws], dtype=torch.int64, device="cpu"
    ).reshape(-1, 3)
    temperature = torch.tensor([draw.temperature for draw in draws], dtype=torch.float32, device="cpu")
    top_k = torch.tensor([draw.top_k for draw in draws], dtype=torch.int64, device="cpu")
    top_p = torch.tensor([draw.top_p for draw in draws], dtype=torch.float64, device="cpu")
    ids, logprobs = (
        torch.empty(len(draws), dtype=torch.int64, device="cpu"),
        torch.empty(len(draws), dtype=torch.float32, device="cpu"),
    )
    _C.sample(team(), floats(logits), offsets, ranges, temperature, top_k, top_p, keys, ids, logprobs)
    return ids, logprobs


# Ranges and single ids that a kernel's mask holds.
_PARTS = (MaskColumn.EXTRA0 // 2, MaskColumn.TOP_K - MaskColumn.EXTRA0)


def _sample_triton(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    if len(logits) != len(draws) or not logits.is_floating_point():
        raise ValueError(
            f"sample: logits are {logits.dtype} {tuple(logits.shape)} for {len(draws)} draws, expected a row for each"
        )
    from innervoice_kernels.sampling.sample_pick import Offers, pick, summary

    made = draws_of(draws, logits.device)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    offers = Offers.allocate(len(draws), logits.shape[1], 1, logits.device, logits)
    summary(offers, made, 1)
    pick(offers, made, 1)
    return offers.drawn.long(), offers.logprob


@lru_cache(maxsize=1024)
def _packed(ranges: tuple[tuple[int, int], ...], extras: tuple[int, ...]) -> tuple[int, ...]:
    """A mask as a line of Draws.mask begins: 3 ranges and 7 single ids."""
    kept, single = [r for r in ranges if r[0] < r[1]], list(dict.fromkeys(extras))
    if len(kept) > _PARTS[0] or len(single) > _PARTS[1]:
        raise ValueError(
            f"sample: a mask of {kept} and {single}, expected at most {_PARTS[0]} ranges and {_PARTS[1]} single ids"
        )
    ends = [end for r in kept for end in r]
    return (*ends, *[0] * (2 * _PARTS[0] - len(ends)), *single, *[-1] * (_PARTS[1] - len(single)))


@lru_cache(maxsize=64)
def _as_bits(ranges: tuple[tuple[int, int], ...], extras: tuple[int, ...], size: int) -> Bits:
    """A mask as packed bits."""
    return pack_ids(allowed_ids(Draw(ranges, extras), torch.device("cpu")).numpy(), size)


def _flags(bits: Bits, device: torch.device) -> Tensor:
    """Packed bits -> [32 * words] bool."""
    flags = np.unpackbits(bits.view(np.uint8), bitorder="little").view(np.bool_)
    return torch.from_numpy(flags).to(device)


def _keep_bits(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits with -inf for the ids that a row's bits leave out."""
    masked = logits.clone()
    for row, draw in zip(masked, draws, strict=True):
        if draw.bits is not None:
            row.masked_fill_(~_flags(draw.bits, logits.device)[: logits.shape[1]], -torch.inf)
    return masked


def _fitting(draw: Draw, size: int) -> Draw:
    """The same draw, by packed bits where a kernel's mask does not hold its ranges and single ids."""
    if draw.bits is not None or (len(draw.ranges) <= _PARTS[0] and len(draw.extras) <= _PARTS[1]):
        return draw
    return replace(draw, ranges=((0, size),), extras=(), bits=_as_bits(draw.ranges, draw.extras, size))


def draws_of(draws: Sequence[Draw], device: torch.device) -> Draws:
    """Draws as kernels read them. Raises ValueError for a mask of more ranges or single ids than that."""
    from innervoice_kernels.sampling.cursor import Draws

    masks = [(*_packed(draw.ranges, draw.extras), draw.top_k, -1) for draw in draws]
    return Draws(
        torch.tensor(masks, dtype=torch.int32, device=device).reshape(-1, MaskColumn.WIDTH),
        torch.tensor(
            [(draw.temperature, draw.top_p) for draw in draws], dtype=torch.float32, device=device
        ).reshape(-1, 2),
        torch.tensor(
            [(signed(draw.seed), draw.n, draw.d) for draw in draws], dtype=torch.int64, device=device
        ).reshape(-1, 3),
    )


def sample(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """The public op; see `sample_ref`."""
    chosen = choose("sample", logits, has_native=True)
    if chosen == TRITON:
        draws = [_fitting(draw, logits.shape[1]) for draw in draws]
    if [draw for draw in draws if draw.bits is not None]:
        logits = _keep_bits(logits, draws)
        draws = [replace(draw, bits=None) for draw in draws]
    if chosen == NATIVE and logits.dtype == torch.float64:
        return sample_ref(logits, draws)
    run = {TRITON: _sample_triton, NATIVE: _sample_native}.get(chosen, sample_ref)
    return run(logits, draws)
