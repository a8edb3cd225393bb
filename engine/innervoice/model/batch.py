"""Rows -> tensors: what one forward pass over a ragged batch reads. Pure."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice.model.sequence import Sequence, TokenRole
from innervoice.model.transformer import AttentionInputs
from innervoice_kernels import _C


@dataclass(frozen=True)
class Batch:
    """One forward pass. last [B]: index of each row's last token, whose logits are wanted."""

    ids: Tensor  # [T] int64
    key_tag: Tensor  # [T] int32
    last: Tensor  # [B] int64
    attention: AttentionInputs


def make_batch(rows: abc.Sequence[Sequence], page_size: int, device: torch.device) -> Batch:
    """The tokens that the rows are to be fed. Each row has at least one, and pages for all of them.

    Arrays are NumPy's until they go to the device: small ones take it a fraction of torch's time.
    """
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + row.num_new)
    pages = [row.table.pages for row in rows]
    width = max(map(len, pages))
    page_table = np.array([row + [0] * (width - len(row)) for row in pages], np.int32)
    query_start, context_len = np.array(starts, np.int32), np.array([row.end for row in rows], np.int32)
    slots = np.empty(starts[-1], np.int64)
    _C.fill_slots(page_table, query_start, context_len, page_size, slots)
    query_tags = [(row, tag) for row in rows for tag in row.tags(TokenRole.SPOKEN)]
    weighted = any(weight for row in rows for weight in row.weights)

    def tensor(numbers: abc.Sequence[float] | NDArray[Any], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype)).to(device)

    attention = AttentionInputs(
        positions=tensor([t for row in rows for t in range(row.num_cached, row.end)], np.int64),
        slots=tensor(slots, np.int64),
        page_table=tensor(page_table, np.int32),
        query_start=tensor(query_start, np.int32),
        context_len=tensor(context_len, np.int32),
        query_tag=tensor([tag for _, tag in query_tags], np.int32) if weighted else None,
        log_weight=tensor([row.weights[tag] for row, tag in query_tags], np.float32) if weighted else None,
    )
    ids = tensor([i for row in rows for i in row.ids[row.num_cached : row.end]], np.int64)
    key_tag = tensor([tag for row in rows for tag in row.tags(TokenRole.HIDDEN)], np.int32)
    return Batch(ids, key_tag, tensor(query_start[1:] - 1, np.int64), attention)
