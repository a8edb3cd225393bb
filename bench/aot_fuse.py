"""The combination of contexts' logits whose kernels are compiled ahead of time, over GLM-4-Voice's vocabulary."""

from __future__ import annotations

import torch
from bench.aot_shapes import VOCABULARY, Call, empty, ints

from innervoice_kernels.sampling import fuse
from innervoice_kernels.sampling.cursor_columns import OutputColumn


def fused(rows: int) -> Call:
    """Groups of three contexts of logits that are there already, and a listener who hears what was drawn."""
    how = fuse.Fusing("pragmatic", log_prior=(-1.0,) * 3)
    groups = fuse.FusedGroups.of([how] * (rows // 3), torch.device("meta"))
    logits, stats = empty(rows, VOCABULARY, dtype=torch.float32), empty(rows, 2, dtype=torch.float32)
    output = ints(rows, OutputColumn.WIDTH)
    tokens, forced = output[:, OutputColumn.TOKEN], output[:, OutputColumn.IS_FORCED]

    def run() -> None:
        fuse.fuse_into(logits, groups, stats, torch.empty_like(logits))
        fuse.listen(logits, groups, stats, tokens, forced, 64)

    return Call(f"{rows} rows of logits", run)


CALLS = [fused(3)]
