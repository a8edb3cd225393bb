"""Compiled schedules as the device's cursor holds them, and the host's step against the device's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from innervoice.schedule import Program
from innervoice.types import Sampling
from innervoice_kernels.cursor import Programs, Rows, request_columns
from innervoice_kernels.cursor_columns import UNLIMITED

Tables = tuple[Tensor, Tensor, Tensor]


def tables_of(program: Program) -> Tables:
    """Table, forced ids and samplings, as Programs.join takes them."""

    def known(value: float | None) -> float:
        return math.nan if value is None else float(value)

    samplings = [[known(s.temperature), known(s.top_p), known(s.top_k)] for s in program.samplings]
    return torch.from_numpy(program.table), torch.from_numpy(program.forced), torch.tensor(samplings).reshape(-1, 3)


def request_of(program: Program, sampling: Sampling, before: Sequence[Tables] = ()) -> list[int]:
    """The columns of a reply whose program stands behind others."""
    v, cap = program.vocabulary, program.schedule.reflection
    low, high = v.speech or (0, 0)
    table, forced, samplings = (sum(len(tables[i]) for tables in before) for i in range(3))
    return request_columns(
        table=table, forced=forced, samplings=samplings, start=max(program.start, 0), is_guided=program.schedule.guided,
        floor=program.schedule.floor, reflect=cap if isinstance(cap, int) else UNLIMITED, end_of_turn=v.end_of_turn, open=v.open,
        close=v.close, done=v.done, speech_low=low, speech_high=high, vocabulary=v.size, ignore_eos=sampling.ignore_eos,
        max_tokens=sampling.max_new_tokens, top_k=sampling.top_k or 0, eos=v.eos,
    )  # fmt: skip


def rows_of(replies: Sequence[tuple[Program, Sampling, Sequence[int]]], device: str = "cpu") -> tuple[Rows, Programs]:
    """Replies at their start: (program, sampling, caps) each."""
    rows = Rows.allocate(len(replies), max([len(caps) for _, _, caps in replies] + [1]), device)
    tables: list[Tables] = []
    for row, (program, sampling, caps) in enumerate(replies):
        temperature, top_p = sampling.temperature or 0.0, 1.0 if sampling.top_p is None else sampling.top_p
        rows.begin(row, request_of(program, sampling, tables), temperature, top_p, sampling.seed or 0, caps)
        tables.append(tables_of(program))
    return rows, Programs.join(tables, device)
