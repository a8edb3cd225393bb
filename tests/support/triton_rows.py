"""Compiled schedules as the device's cursor holds them, and the host's step against the device's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from innervoice.schedule import Program
from innervoice.schedule.pack import request_values, sampling_table
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor import Programs, Rows, request_columns

Tables = tuple[Tensor, Tensor, Tensor]


def tables_of(program: Program) -> Tables:
    """Table, forced ids and samplings, as Programs.join takes them."""
    return tuple(torch.from_numpy(part) for part in (program.table, program.forced, sampling_table(program)))


def request_of(program: Program, sampling: Sampling, before: Sequence[Tables] = ()) -> list[int]:
    """The columns of a reply whose program stands behind others."""
    table, forced, samplings = (sum(len(tables[i]) for tables in before) for i in range(3))
    return request_columns(
        table=table, forced=forced, samplings=samplings, **request_values(program, sampling)
    )


def rows_of(
    replies: Sequence[tuple[Program, Sampling, Sequence[int]]], device: str = "cpu"
) -> tuple[Rows, Programs]:
    """Replies at their start: (program, sampling, caps) each."""
    rows = Rows.allocate(len(replies), max([len(caps) for _, _, caps in replies] + [1]), device)
    tables: list[Tables] = []
    for row, (program, sampling, caps) in enumerate(replies):
        temperature, top_p = sampling.temperature or 0.0, 1.0 if sampling.top_p is None else sampling.top_p
        rows.begin(row, request_of(program, sampling, tables), temperature, top_p, sampling.seed or 0, caps)
        tables.append(tables_of(program))
    return rows, Programs.join(tables, device)
