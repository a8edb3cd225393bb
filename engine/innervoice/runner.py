"""One forward pass over a batch of rows; owns the pages of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from innervoice.batch import Row, make_batch
from innervoice.model.native import make_native
from innervoice.model.transformer import KVCache, Transformer
from innervoice.trace import Tracer


class Runner:
    """Runs the model. num_pages pages of page_size tokens hold the keys and values of every row.

    backend: "auto" (native code on the CPU where it covers the model, else plain PyTorch), "native" or "plain"; threads: of the
    native code, None: one for each physical core that the process may use.
    """

    def __init__(
        self,
        model: Transformer,
        num_pages: int,
        page_size: int,
        tracer: Tracer,
        *,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        embedding = model.weights.embedding
        self.model, self.page_size, self.device = model, page_size, embedding.device
        self.kv = KVCache.allocate(model.config, num_pages, page_size, embedding.dtype, embedding.device)
        self._native = make_native(model, self.kv, backend, threads)
        self._tracer = tracer

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of all layers from one page to another."""
        for pages in (self.kv.k, self.kv.v):
            pages[:, target] = pages[:, source]
        self.kv.key_tag[target] = self.kv.key_tag[source]

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Feed what the rows have not cached yet; logits [B, V] float32 after each row's last token."""
        batch = make_batch(rows, self.page_size, self.device)
        with self._tracer.span("forward", rows=len(rows), tokens=len(batch.ids)):
            self.kv.key_tag.view(-1)[batch.attention.slots] = batch.key_tag
            if self._native is not None:
                logits = self._native.logits(batch.ids, batch.attention, self.kv, batch.last)
            else:
                hidden = self.model.forward(batch.ids, batch.attention, self.kv)
                logits = self.model.logits(hidden[batch.last])
        for row in rows:
            row.num_cached = len(row.ids)
        return logits
