"""Sets of ids as packed bits, 32 to a word: bit i % 32 of word i // 32 says whether id i is one of them.

The engine's schedule packs them too, so nothing here imports torch before there is something to mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bits = npt.NDArray[np.int32]


def pack_ids(ids: npt.NDArray[np.integer] | Sequence[int], size: int) -> Bits:
    """Some of `size` ids -> [ceil(size / 32)] int32."""
    flags = np.zeros(-(-size // 32) * 32, dtype=np.uint8)
    flags[np.asarray(ids, dtype=np.int64)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


def has_id(bits: Bits, token: int) -> bool:
    """Whether an id is one of them."""
    return 0 <= token < 32 * len(bits) and bool(int(bits[token // 32]) >> (token % 32) & 1)


def unpack_bits(bits: Bits, device: torch.device) -> Tensor:
    """Packed bits -> [32 * words] bool."""
    import torch

    flags = np.unpackbits(bits.view(np.uint8), bitorder="little").view(np.bool_)
    return torch.from_numpy(flags).to(device)


def keep_bits(logits: Tensor, bits: Sequence[Bits | None]) -> Tensor:
    """Logits [B, V], each row with -inf for the ids that its bits leave out; None: the row stays as it is."""
    import torch

    if all(own is None for own in bits):
        return logits
    masked = logits.clone()
    for row, own in enumerate(bits):
        if own is not None:
            masked[row].masked_fill_(~unpack_bits(own, logits.device)[: logits.shape[1]], -torch.inf)
    return masked
