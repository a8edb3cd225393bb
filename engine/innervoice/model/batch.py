"""Sequences to tensors: the inputs of one forward pass over a ragged batch. Pure."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice.model.sequence import Sequence
from innervoice.model.transformer import AttentionInputs
from innervoice_kernels import _C


@dataclass(frozen=True)
class Batch:
    """One forward pass. last [B]: index of each sequence's last token, whose logits are wanted."""

    ids: Tensor  # [T] int64
    key_tag: Tensor  # [T] int32
    last: Tensor  # [B] int64
    attention: AttentionInputs


def make_batch(sequences: abc.Sequence[Sequence], page_size: int, device: torch.device) -> Batch:
    """Lay out the tokens that the sequences are to be fed. Each has at least one, and pages for all of them.

    Arrays are NumPy's until they go to the device: small ones take it a fraction of torch's time.
    """

    def tensor(numbers: abc.Sequence[float] | NDArray[Any], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype)).to(device)

    # Where each sequence begins in the batch, and its pages, padded to the longest table.
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + sequence.num_new)
    pages = [sequence.table.pages for sequence in sequences]
    width = max(map(len, pages))
    page_table = np.array([held + [0] * (width - len(held)) for held in pages], np.int32)
    query_start = np.array(starts, np.int32)
    context_len = np.array([sequence.end for sequence in sequences], np.int32)
    slots = np.empty(starts[-1], np.int64)
    _C.fill_slots(page_table, query_start, context_len, page_size, slots)
    # The reflection weight: tags and weights only where some reply has one.
    key_tags = np.zeros(starts[-1], np.int32)
    query_tag = log_weight = None
    if any(weight for sequence in sequences for weight in sequence.log_weights):
        query_tags = [(sequence, tag) for sequence in sequences for tag in sequence.query_tags()]
        query_tag = tensor([tag for _, tag in query_tags], np.int32)
        log_weight = tensor([sequence.log_weights[tag] for sequence, tag in query_tags], np.float32)
        key_tags[:] = [tag for sequence in sequences for tag in sequence.key_tags()]
    attention = AttentionInputs(
        positions=tensor([t for s in sequences for t in range(s.num_cached, s.end)], np.int64),
        slots=tensor(slots, np.int64),
        page_table=tensor(page_table, np.int32),
        query_start=tensor(query_start, np.int32),
        context_len=tensor(context_len, np.int32),
        query_tag=query_tag,
        log_weight=log_weight,
    )
    ids = tensor([i for s in sequences for i in s.ids[s.num_cached : s.end]], np.int64)
    return Batch(ids, tensor(key_tags, np.int32), tensor(query_start[1:] - 1, np.int64), attention)
