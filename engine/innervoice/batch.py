"""Rows -> tensors: what one forward pass over a ragged batch reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from innervoice.blocks import PageTable
from innervoice.model.transformer import AttentionInputs
from innervoice_kernels import _C


class Role(IntEnum):
    """What a token is to the reflection weight."""

    NEUTRAL = 0  # prompt, end of turn
    HIDDEN = 1  # reflection, open, close, done: a key whose score is raised
    SPOKEN = 2  # transcript, speech: a query that raises it


@dataclass
class Row:
    """A running sequence. ids[:num_cached] have keys and values in pages; the rest is fed to the next forward pass.

    roles[i] says what ids[i] is, replies[i] which reply of the row it belongs to (0: none, then from 1).
    """

    ids: list[int]
    roles: list[Role]
    replies: list[int]
    table: PageTable
    num_cached: int = 0
    log_weight: float = 0.0

    @classmethod
    def of_prompt(cls, ids: Sequence[int], table: PageTable, log_weight: float = 0.0) -> Row:
        """A row that holds a prompt and nothing else."""
        return cls(list(ids), [Role.NEUTRAL] * len(ids), [0] * len(ids), table, log_weight=log_weight)

    def append(self, token: int, role: Role, reply: int) -> None:
        """Add a token behind the rest."""
        self.ids.append(token)
        self.roles.append(role)
        self.replies.append(reply)

    def tags(self, role: Role, begin: int) -> list[int]:
        """From position begin on: the reply's number where the token has the role, else 0."""
        pairs = zip(self.roles[begin:], self.replies[begin:], strict=True)
        return [reply if own is role else 0 for own, reply in pairs]


@dataclass(frozen=True)
class Batch:
    """One forward pass. last [B]: index of each row's last token, whose logits are wanted."""

    ids: Tensor  # [T] int64
    key_tag: Tensor  # [T] int32
    last: Tensor  # [B] int64
    attention: AttentionInputs


def make_batch(rows: Sequence[Row], page_size: int, device: torch.device) -> Batch:
    """All tokens of the rows that are not cached yet. Each row has at least one, and pages for all its tokens."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.ids) - row.num_cached)
    pages = [row.table.pages for row in rows]
    width = max(map(len, pages))
    page_table = torch.tensor([row + [0] * (width - len(row)) for row in pages], dtype=torch.int32)
    query_start = torch.tensor(starts, dtype=torch.int32)
    context_len = torch.tensor([len(row.ids) for row in rows], dtype=torch.int32)
    slots = torch.empty(starts[-1], dtype=torch.int64)
    _C.fill_slots(page_table, query_start, context_len, page_size, slots)
    positions = torch.cat([torch.arange(row.num_cached, len(row.ids)) for row in rows])
    weighted = any(row.log_weight for row in rows)
    attention = AttentionInputs(
        positions=positions.to(device),
        slots=slots.to(device),
        page_table=page_table.to(device),
        query_start=query_start.to(device),
        context_len=context_len.to(device),
        query_tag=_tags(rows, Role.SPOKEN, device) if weighted else None,
        log_weight=torch.tensor([row.log_weight for row in rows], dtype=torch.float32, device=device) if weighted else None,
    )
    ids = torch.tensor([i for row in rows for i in row.ids[row.num_cached :]], dtype=torch.int64, device=device)
    return Batch(ids, _tags(rows, Role.HIDDEN, device), attention.query_start[1:].long() - 1, attention)


def _tags(rows: Sequence[Row], role: Role, device: torch.device) -> Tensor:
    return torch.tensor([t for row in rows for t in row.tags(role, row.num_cached)], dtype=torch.int32, device=device)
