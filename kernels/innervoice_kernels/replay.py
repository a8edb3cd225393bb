"""Replies over scripted logits, by the kernels of a step's end: how they are held to golden traces and to the host's cursor."""

from __future__ import annotations

import torch
from torch import Tensor

from innervoice_kernels.cursor import SLOTS, Programs, Rows, prepare
from innervoice_kernels.cursor_columns import Ending, Kind, Output
from innervoice_kernels.sample_pick import Offers, pick, summary

Trace = tuple[list[int], list[str]]


def replay_rows(rows: Rows, programs: Programs, logits: Tensor) -> list[Trace]:
    """Ids and kinds of each row's reply, token t of which is drawn from logits[:, t]: logits [B, T, V] where the rows are.

    Raises ValueError when a reply goes on behind the last logits, or a draw is refused.
    """
    if logits.ndim != 3 or len(logits) != len(rows.state):
        raise ValueError(f"logits are {tuple(logits.shape)}, expected [B, T, V] with B {len(rows.state)}")
    traces: list[Trace] = [([], []) for _ in range(len(rows.state))]
    offers = Offers.allocate(len(logits), logits.shape[2], SLOTS, logits.device)
    running = True
    for t in range(logits.shape[1]):
        step(rows, programs, logits[:, t], offers)
        output = rows.output.tolist()
        for row, ((ids, kinds), line) in enumerate(zip(traces, output, strict=True)):
            if line[Output.IS_DONE] == Ending.REFUSED:
                raise ValueError(f"row {row}: no id could be drawn for token {len(ids)}, its logits are not numbers")
            if line[Output.KIND] >= 0:
                ids.append(line[Output.TOKEN])
                kinds.append(Kind(line[Output.KIND]).name.lower())
        running = any(line[Output.IS_DONE] == Ending.RUNNING for line in output)
        if not running:
            break
    if running:
        raise ValueError(f"logits hold {logits.shape[1]} rows, but a reply goes on after that many tokens")
    return traces


def step(rows: Rows, programs: Programs, logits: Tensor, offers: Offers) -> None:
    """One token of every row from logits [B, V] -> rows.output, rows.logprob."""
    prepare(rows, programs)
    offers.logits.copy_(logits.to(torch.float32))
    summary(offers, rows.draws, SLOTS)
    pick(offers, rows.draws, SLOTS, rows, programs)
