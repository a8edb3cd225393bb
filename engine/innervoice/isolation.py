"""A forward pass in which a row that breaks fails alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from innervoice.batch import Row
from innervoice.blocks import OutOfPages
from innervoice.runner import Runner


def forward_apart(
    runner: Runner, rows: Sequence[Row], new_row: Callable[[], Row], outputs: Sequence[tuple[int, int]] | None = None
) -> tuple[Tensor, dict[int, Exception]]:
    """Logits [B, V] of the rows, and what failed, by the `id` of its row; the logits of such a row are NaN. outputs: see forward.

    When the batch fails, each row is run by itself. When none goes through, a row of one harmless token is tried: a failure
    that it shares belongs to no row, and is raised.
    """
    try:
        return runner.forward(rows, outputs), {}
    except Exception as error:
        whole = error
    failed: dict[int, Exception] = {}
    logits: list[Tensor | None] = []
    for row in rows:
        try:
            logits.append(runner.forward([row], outputs))
        except Exception as error:
            failed[id(row)] = error
            logits.append(None)
    if len(failed) == len(rows) and not _is_alive(runner, new_row()):
        raise whole
    like = next((made for made in logits if made is not None), torch.zeros(1, 1))
    return torch.cat([torch.full_like(like, math.nan) if made is None else made for made in logits]), failed


def _is_alive(runner: Runner, row: Row) -> bool:
    row.extend([0])
    try:
        row.table.grow(1)
        runner.forward([row])
    except OutOfPages:
        return True
    except Exception:
        return False
    finally:
        row.release()
    return True
