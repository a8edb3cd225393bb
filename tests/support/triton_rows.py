"""Compiled schedules as the device's cursor holds them, and the host's step against the device's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from innervoice.schedule import Program
from innervoice.schedule.pack import request_values, sampling_table
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor import Programs, Rows, request_columns
from innervoice_kernels.sampling.cursor_columns import MaskColumn

Tables = tuple[Tensor, ...]


def tables_of(program: Program) -> Tables:
    """Table, forced ids, samplings and sets, as Programs.join takes them."""
    parts = (program.table, program.forced, sampling_table(program), program.sets)
    return tuple(torch.from_numpy(part) for part in parts)


def request_of(program: Program, sampling: Sampling, before: Sequence[Tables] = ()) -> list[int]:
    """The columns of a reply whose program stands behind others."""
    table, forced, samplings, sets = (sum(len(tables[i]) for tables in before) for i in range(4))
    return request_columns(
        table=table, forced=forced, samplings=samplings, sets=sets, **request_values(program, sampling)
    )


def rows_of(
    replies: Sequence[tuple[Program, Sampling, Sequence[int]]], device: str = "cpu"
) -> tuple[Rows, Programs]:
    """Replies at their start: (program, sampling, caps) each."""
    tables: list[Tables] = []
    programs = Programs.join([tables_of(program) for program, _, _ in replies], device)
    num_caps = max([len(caps) for _, _, caps in replies] + [1])
    rows = Rows.allocate(len(replies), num_caps, device, programs.sets)
    for row, (program, sampling, caps) in enumerate(replies):
        temperature, top_p = sampling.temperature or 0.0, 1.0 if sampling.top_p is None else sampling.top_p
        rows.begin(row, request_of(program, sampling, tables), temperature, top_p, sampling.seed or 0, caps)
        tables.append(tables_of(program))
    return rows, programs


def allowed_ids(rows: Rows, size: int) -> Tensor:
    """Whether the mask of each slot has an id [R, size]."""
    ids, masks = torch.arange(size), rows.draws.mask
    m = masks[:, :, None]
    ranges, single = m[:, : MaskColumn.EXTRA0], m[:, MaskColumn.EXTRA0 : MaskColumn.TOP_K]
    found = ((ids >= ranges[:, ::2]) & (ids < ranges[:, 1::2])).any(1) | (ids == single).any(1)
    places = masks[:, MaskColumn.SET, None]
    assert rows.draws.sets is not None, "rows of programs"
    words = rows.draws.sets[(places.clamp(min=0) + ids // 32).clamp(max=len(rows.draws.sets) - 1)]
    return found | ((places >= 0) & ((words >> (ids % 32)) & 1 > 0))
