"""Sets of ids as packed bits, 32 to a word: bit i % 32 of word i // 32 says whether id i is one of them.

The engine's schedule packs them too, so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int32]


def pack_ids(ids: npt.NDArray[np.integer] | Sequence[int], size: int) -> Bits:
    """Some of `size` ids -> [ceil(size / 32)] int32."""
    flags = np.zeros(-(-size // 32) * 32, dtype=np.uint8)
    flags[np.asarray(ids, dtype=np.int64)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


def has_id(bits: Bits, token: int) -> bool:
    """Whether an id is one of them."""
    return 0 <= token < 32 * len(bits) and bool(int(bits[token // 32]) >> (token % 32) & 1)
