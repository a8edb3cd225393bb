"""Sequences to tensors: the inputs of one forward pass over a ragged batch. Pure."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice.model.rows import rows_among
from innervoice.model.sequence import Sequence
from innervoice.model.transformer import AttentionInputs
from innervoice_kernels import _C
from innervoice_kernels.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """One forward pass. last [B]: index of each sequence's last token, whose logits are wanted. rows: places [R]
    int64 and values [R, D] float32 of the embedding rows among the tokens, None: there are none.
    """

    ids: Tensor  # [T] int64
    key_tag: Tensor  # [T] int32
    last: Tensor  # [B] int64
    attention: AttentionInputs
    rows: tuple[Tensor, Tensor] | None = None


def make_batch(
    sequences: abc.Sequence[Sequence], page_size: int, device: torch.device, width: int | None = None
) -> Batch:
    """Lay out the tokens that the sequences are to be fed. Each has at least one, and pages for all of them.

    width: pages of a row of the page table, the same in every batch; None: those of the longest. All numbers go
    to the device in one copy.
    """
    # Where each sequence begins in the batch, and its pages.
    queries = [sequence.num_new for sequence in sequences]
    starts = [0, *accumulate(queries)]
    pages = [sequence.table.pages for sequence in sequences]
    width = width or max(map(len, pages))
    page_table = np.array([held + [0] * (width - len(held)) for held in pages], np.int32)
    query_start = np.array(starts, np.int32)
    context_len = np.array([sequence.end for sequence in sequences], np.int32)
    slots = np.empty(starts[-1], np.int64)
    _C.fill_slots(page_table, query_start, context_len, page_size, slots)
    positions = np.array([t for s in sequences for t in range(s.num_cached, s.end)], np.int64)
    ids = np.array([i for s in sequences for i in s.ids[s.num_cached : s.end]], np.int64)
    last = np.array([start - 1 for start in starts[1:]], np.int64)
    key_tags = np.zeros(starts[-1], np.int32)
    arrays: list[NDArray[Any]] = [ids, key_tags, last, positions, slots, page_table, query_start, context_len]
    # The reflection weight: tags and weights only where some reply has one.
    if any(weight for sequence in sequences for weight in sequence.log_weights):
        query_tags = [(sequence, tag) for sequence in sequences for tag in sequence.query_tags()]
        key_tags[:] = [tag for sequence in sequences for tag in sequence.key_tags()]
        arrays.append(np.array([tag for _, tag in query_tags], np.int32))
        arrays.append(np.array([sequence.log_weights[tag] for sequence, tag in query_tags], np.float32))
    there = to_device(arrays, device)
    attention = AttentionInputs(
        positions=there[3],
        slots=there[4],
        page_table=there[5],
        query_start=there[6],
        context_len=there[7],
        query_tag=there[8] if len(there) > 8 else None,
        log_weight=there[9] if len(there) > 9 else None,
        min_queries=min(queries),
        max_queries=max(queries),
    )
    fed = (token for s in sequences for token in s.ids[s.num_cached : s.end])
    return Batch(there[0], there[1], there[2], attention, _rows(fed, device))


def _rows(fed: abc.Iterable[int], device: torch.device) -> tuple[Tensor, Tensor] | None:
    found = list(rows_among(fed))
    if not found:
        return None
    places = np.array([place for place, _ in found], np.int64)
    there = to_device([places, np.stack([row.values for _, row in found])], device)
    return there[0], there[1]
