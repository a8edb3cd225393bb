"""Replies over scripted logits, by the kernels of a step's end: how they are held to golden
traces and to the host's cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose, use
from innervoice_kernels.sampling.cursor import SLOTS, Programs, Rows, prepare, request_columns
from innervoice_kernels.sampling.cursor_columns import Ending, OutputColumn, TokenKind
from innervoice_kernels.sampling.sample_pick import Offers, pick, summary

Trace = tuple[list[int], list[str]]
Arrays = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]


def replay_rows(rows: Rows, programs: Programs, logits: Tensor) -> list[Trace]:
    """Ids and kinds of each row's reply, token t of which is drawn from logits[:, t]: logits
    [B, T, V] where the rows are.

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
            if line[OutputColumn.IS_DONE] == Ending.REFUSED:
                raise ValueError(
                    f"row {row}: no id could be drawn for token {len(ids)}, its logits are not numbers"
                )
            if line[OutputColumn.KIND] >= 0:
                ids.append(line[OutputColumn.TOKEN])
                kinds.append(TokenKind(line[OutputColumn.KIND]).label)
        running = any(line[OutputColumn.IS_DONE] == Ending.RUNNING for line in output)
        if not running:
            break
    if running:
        raise ValueError(f"logits hold {logits.shape[1]} rows, but a reply goes on after that many tokens")
    return traces


def replay_program(
    program: Arrays,
    request: Mapping[str, Any],
    logits: NDArray[Any],
    caps: Sequence[int],
    device: str | None = None,
) -> Trace:
    """One greedy reply.

    program: its table, forced ids, samplings and sets; request: as request_columns takes it; logits [T, V].

    device: the GPU where there is one, unless given. Raises ValueError where the kernels cannot
    run, and as `replay_rows` does.
    """
    scripted = torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(
        device or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    with use(TRITON):
        choose("replay", scripted)
    programs = Programs.join([tuple(torch.from_numpy(np.asarray(part)) for part in program)], scripted.device)
    rows = Rows.allocate(1, max(len(caps), 1), scripted.device, programs.sets)
    rows.begin(0, request_columns(**request), temperature=0.0, top_p=1.0, seed=0, caps=caps)
    return replay_rows(rows, programs, scripted[None])[0]


def step(rows: Rows, programs: Programs, logits: Tensor, offers: Offers) -> None:
    """One token of every row from logits [B, V] -> rows.output, rows.logprob."""
    prepare(rows, programs)
    offers.logits.copy_(logits.to(torch.float32))
    summary(offers, rows.draws, SLOTS)
    pick(offers, rows.draws, SLOTS, rows, programs)
