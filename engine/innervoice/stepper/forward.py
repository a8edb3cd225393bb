"""The forward pass of one token a row by the fused layers, a graph a batch bucket; draws and cursors stay with the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innervoice.batch import Role, Row
from innervoice.model.quant import embed
from innervoice.model.transformer import KVCache, Transformer
from innervoice.schedule.compile import Kind
from innervoice.stepper.layers import Memory, decode_layers
from innervoice.stepper.stepper import buckets_for
from innervoice.trace import Tracer
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.cursor_columns import Ending, State
from innervoice_kernels.step import Feed, Inputs, begin_step

_KINDS = {Role.NEUTRAL: -1, Role.HIDDEN: int(Kind.REFLECTION), Role.SPOKEN: int(Kind.SPEECH)}
_TOKEN, _KIND, _POSITION, _REPLY, _ENDING, _WEIGHT, _WIDTH = range(7)


class DecodeForward:
    """Hidden states of rows that feed one token each, as `Transformer.forward` computes them.

    kv: where keys and values are, and go. graphs: capture a CUDA graph a bucket; never on a CPU, where kernels run in Triton's
    interpreter. Not for two threads at once. Raises ValueError where Triton cannot run.
    """

    def __init__(
        self,
        model: Transformer,
        kv: KVCache,
        *,
        max_rows: int,
        max_model_len: int,
        tracer: Tracer | None = None,
        graphs: bool = True,
    ) -> None:
        weights, page_size = model.weights, kv.k.shape[2]
        if choose("step", weights.final_norm) != TRITON:
            raise ValueError(f"the fused step needs Triton, which does not run on {weights.device.type} here")
        self.max_rows, self.max_model_len, device = max_rows, max_model_len, weights.device
        self._model, self._kv, self._tracer = model, kv, tracer or Tracer()
        self._buckets = buckets_for(max_rows)
        self._use_graphs = graphs and device.type == "cuda"
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None  # one pool of memory for all graphs: they run one at a time
        self._cos, self._sin = model.rotation(torch.arange(max_model_len, device=device))
        self._memory = Memory.allocate(model, max_rows, max_model_len)
        width = model.config.hidden_size
        self._inputs = Inputs.allocate(max_rows, width, self._cos.shape[1], weights.dtype, device)
        self._hidden = torch.zeros(max_rows, width, dtype=weights.dtype, device=device)
        # A quantised table is looked up by the model's own means; what is looked up then has no width.
        self._table = weights.embedding if isinstance(weights.embedding, Tensor) else torch.empty(1, 0, device=device)
        num_pages = -(-max_model_len // page_size)
        self._lines = np.zeros((_WIDTH, max_rows), np.int32)
        self._pages = np.full((max_rows, num_pages), -1, np.int32)
        self._held: list[list[int]] = [[] for _ in range(max_rows)]  # the pages that stand in each line
        on_device = torch.zeros(_WIDTH, max_rows, dtype=torch.int32, device=device)
        self._device_lines = on_device
        page_table = torch.full((max_rows, num_pages), -1, dtype=torch.int32, device=device)
        weight = on_device[_WEIGHT].view(torch.float32)
        token, kind, position, reply = (on_device[i] for i in (_TOKEN, _KIND, _POSITION, _REPLY))
        self._feed = Feed(token, kind, position, reply, weight, page_table)
        self._state = torch.zeros(max_rows, int(State.WIDTH), dtype=torch.int32, device=device)

    def covers(self, rows: Sequence[Row]) -> bool:
        """Whether these rows feed one token each, and are not too many or too long."""
        return len(rows) <= self.max_rows and all(row.num_new == 1 and row.end <= self.max_model_len for row in rows)

    @torch.inference_mode()
    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [B, D] after the final norm, valid until the next call; keys, values and tags are written."""
        bucket = next(b for b in self._buckets if b >= len(rows))
        weighted = self._write(rows, bucket)
        with self._tracer.span("fused step", rows=len(rows)):
            self._run(bucket, weighted)
        return self._hidden[: len(rows)]

    @torch.inference_mode()
    def warmup(self) -> None:
        """Compile every kernel and capture every bucket. Only while no row is fed."""
        for bucket in reversed(self._buckets):
            for weighted in (False, True):
                self._write([], bucket)
                self._run(bucket, weighted)
        if self._device_lines.is_cuda:
            torch.cuda.synchronize(self._device_lines.device)

    @property
    def num_graphs(self) -> int:
        """Graphs that were captured."""
        return len(self._graphs)

    def _write(self, rows: Sequence[Row], bucket: int) -> bool:
        """Tell the device what the rows feed -> whether some row has a reflection weight. Lines behind theirs are idle."""
        lines = self._lines
        lines[_ENDING, len(rows) :] = Ending.IDLE
        weights = lines[_WEIGHT].view(np.float32)
        changed = False
        for index, row in enumerate(rows):
            at = row.num_cached
            role, reply = row.roles[at], row.replies[at]
            number = reply if row.weights[reply] else 0
            lines[:_WEIGHT, index] = (row.ids[at], _KINDS[role], at, number, Ending.RUNNING)
            weights[index] = row.weights[number]
            pages = row.table.pages
            if pages != self._held[index]:
                self._pages[index, : len(pages)] = pages
                self._held[index], changed = list(pages), True
        self._device_lines.copy_(torch.from_numpy(lines))
        if changed:
            self._feed.page_table[:bucket].copy_(torch.from_numpy(self._pages[:bucket]))
        return any(weight for row in rows for weight in row.weights)

    def _run(self, bucket: int, weighted: bool) -> None:
        key = (bucket, weighted)
        if key in self._graphs:
            self._graphs[key].replay()
            return
        self._launch(bucket, weighted)  # compiles what is not compiled yet
        if self._use_graphs:
            torch.cuda.synchronize(self._hidden.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others may allocate
                self._launch(bucket, weighted)
            self._pool = graph.pool()
            self._graphs[key] = graph

    def _launch(self, bucket: int, weighted: bool) -> None:
        weights = self._model.weights
        feed, inputs, state = self._feed.first(bucket), self._inputs.first(bucket), self._state[:bucket]
        state[:, State.IS_DONE] = self._device_lines[_ENDING, :bucket]
        begin_step(feed, state, self._table, self._cos, self._sin, self._kv.key_tag, inputs)
        if self._table.shape[1] == 0:
            inputs.x.copy_(embed(weights.embedding, feed.token, weights.dtype))
        tracer = Tracer() if self._use_graphs else self._tracer
        made = decode_layers(
            self._model, feed, inputs, self._kv, self._memory, tracer, weighted=weighted, invariant=False
        )  # fmt: skip
        self._hidden[:bucket].copy_(made)
