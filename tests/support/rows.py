"""Rows over a paged cache, for tests of the decoder without the engine around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from innervoice.model.kv_cache import KVCache
from innervoice.model.transformer import AttentionInputs, Transformer

PAGE = 16


class Rows:
    """Rows over a paged cache whose pages are handed out in shuffled order; step() feeds each row any number of tokens."""

    def __init__(
        self,
        model: Transformer,
        num_rows: int,
        max_len: int,
        weights: Sequence[float] | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        config = model.config
        pages = -(-max_len // PAGE)
        self.model = model
        self.kv = KVCache.allocate(config, num_rows * pages, PAGE, kv_dtype or model.weights.dtype)
        self.kv.k.fill_(float("nan"))
        self.kv.v.fill_(float("nan"))
        order = torch.randperm(num_rows * pages, generator=torch.Generator().manual_seed(3))
        self.table = order.reshape(num_rows, pages).int()
        self.lengths = [0] * num_rows
        self.log_weight = None if weights is None else torch.tensor(weights).log()

    def step(
        self, ids: Sequence[Sequence[int]], tags: Sequence[Sequence[tuple[int, int]]] | None = None
    ) -> list[Tensor]:
        """Logits [n, V] of each row's new tokens; tags: (query tag, key tag) of each token."""
        positions = [torch.arange(n, n + len(new)) for n, new in zip(self.lengths, ids, strict=True)]
        slots = torch.cat(
            [self.table[row, p // PAGE].long() * PAGE + p % PAGE for row, p in enumerate(positions)]
        )
        self.lengths = [n + len(new) for n, new in zip(self.lengths, ids, strict=True)]
        flat_tags = torch.tensor([tag for row in tags or [] for tag in row], dtype=torch.int32)
        if tags is not None:
            self.kv.key_tag.flatten()[slots] = flat_tags[:, 1]
        counts = [len(new) for new in ids]
        batch = AttentionInputs(
            positions=torch.cat(positions),
            slots=slots,
            page_table=self.table,
            query_start=torch.tensor([0, *counts]).cumsum(0).int(),
            context_len=torch.tensor(self.lengths, dtype=torch.int32),
            query_tag=None if tags is None else flat_tags[:, 0],
            log_weight=None
            if self.log_weight is None
            else self.log_weight.repeat_interleave(torch.tensor(counts)),
        )
        hidden = self.model.forward(torch.tensor([i for new in ids for i in new]), batch, self.kv)
        return list(self.model.logits(hidden).split(counts))


def greedy(rows: Rows, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Decode `count` ids after each prompt, always the one of the largest logit."""
    out: list[list[int]] = [[] for _ in prompts]
    feed = prompts
    for _ in range(count):
        feed = [[int(logits[-1].argmax())] for logits in rows.step(feed)]
        for ids, new in zip(out, feed, strict=True):
            ids.extend(new)
    return out
