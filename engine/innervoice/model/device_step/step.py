"""The step itself: one graph a batch bucket, replayed as often as asked, read when it is convenient."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from innervoice.model.device_step.fused import FusedLogits
from innervoice.model.device_step.graphs import BucketGraphs, StepKind
from innervoice.model.device_step.layers import Memory, decode_layers
from innervoice.model.device_step.rows import DeviceRows, RowStart
from innervoice.model.kv_cache import KVCache
from innervoice.model.quant import embed
from innervoice.model.transformer import Transformer
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.graphs import GraphPool, device_seconds
from innervoice_kernels.jit import (
    PDL_SINCE,
    Launch,
    compile_all,
    dependent_launches,
    num_compiled,
    recorded,
)
from innervoice_kernels.sampling.cursor import SLOTS, Rows, prepare
from innervoice_kernels.sampling.cursor_columns import Ending, OutputColumn, TokenKind
from innervoice_kernels.sampling.fuse import fuse_into, listen
from innervoice_kernels.sampling.head import head, head_step
from innervoice_kernels.sampling.sample_pick import Offers, pick, summary
from innervoice_kernels.sampling.step import Ring, StepInputs, begin_step, end_step

PDL_VARIABLE = "INNERVOICE_PDL"
NUM_CAPS = 64  # of reflections, that a row holds
_RING = 64  # steps that may be queued by one call
_TOLD = (
    Ending.REFUSED,
    Ending.WAITING,
    Ending.FED,
)  # endings of which a row tells in every step, with no token


@dataclass(frozen=True)
class Emitted:
    """The token that a row emitted in a step. token -1 and kind None: nothing, because its draw was
    refused or it waits for a page.

    ending: RUNNING, or why this was its last token. logprob: None of forced tokens. discarded: whether a draw
    before it said that the text is finished.
    """

    row: int
    token: int
    kind: TokenKind | None
    segment: int
    forced: bool
    ending: Ending
    logprob: float | None
    discarded: bool = False


@dataclass
class Pending:
    """Steps that are queued: numbers first to first + count.

    Read it once, after later steps are queued if that pays.
    """

    first: int
    count: int
    num_rows: int
    lines: Tensor  # [count, num_rows, RING_COLUMNS] int32 on the host, written when `ended` has happened
    begun: torch.cuda.Event | None = None
    ended: torch.cuda.Event | None = None
    queued_ns: int = 0

    @property
    def took_s(self) -> float | None:
        """Seconds on the device from `begun` to the end, once it was read; None where there is no GPU to say."""
        return None if self.begun is None or self.ended is None else self.begun.elapsed_time(self.ended) / 1e3


@dataclass(frozen=True)
class StepStats:
    """ready_s: what `warmup` took, None before it.

    jit_after_warmup: kernels compiled since; 0 is what it should be.

    graphs: captured; replays and eager_steps: steps taken by either.
    """

    ready_s: float | None
    jit_after_warmup: int
    graphs: int
    replays: int
    eager_steps: int


@dataclass(frozen=True)
class Buffers:
    """The tensors that a device step keeps from step to step."""

    rows: DeviceRows
    layers: Memory
    inputs: StepInputs
    offers: Offers
    fused: FusedLogits
    ring: Ring
    cos: Tensor  # [max_model_len, R/2]
    sin: Tensor

    @classmethod
    def allocate(
        cls, model: Transformer, max_rows: int, max_model_len: int, page_size: int, num_caps: int = NUM_CAPS
    ) -> Buffers:
        """On the device of the model's weights."""
        c, weights = model.config, model.weights
        cos, sin = model.rotation(torch.arange(max_model_len, device=weights.device, dtype=torch.int64))
        return cls(
            rows=DeviceRows(max_rows, -(-max_model_len // page_size), num_caps, weights.device),
            layers=Memory.allocate(model, max_rows, max_model_len),
            inputs=StepInputs.allocate(max_rows, c.hidden_size, cos.shape[1], weights.dtype, weights.device),
            offers=Offers.allocate(max_rows, c.vocab_size, SLOTS, weights.device),
            fused=FusedLogits.allocate(max_rows, c.vocab_size, weights.device),
            ring=Ring.allocate(_RING, max_rows, weights.device),
            cos=cos,
            sin=sin,
        )

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors."""
        parts: list[Any] = [
            self,
            self.rows.feed,
            self.rows.cursor,
            self.rows.groups,
            self.rows.programs.tensors,
        ]
        found = 0
        while parts:
            part = parts.pop()
            if isinstance(part, Tensor):
                found += part.nbytes
            elif is_dataclass(part):
                parts += (getattr(part, f.name) for f in fields(part))
        return found


class DeviceStep:
    """Steps rows of one token each: embedding, layers, head, draw and cursor, without the host.

    For the loop that drives it:

    - `rows.begin(row, RowStart(...))` puts a reply into a row once its prompt, but for the last token, is
      cached. Rows are numbered; a step runs the first `num_rows`, idle ones among them at the cost of their
      place (`rows.move` closes gaps).
    - `step(num_rows, count)` queues steps and returns at once. `read(pending)` waits for them and tells what
      was emitted: called after the next `step`, the host reads one step late and the device never waits for
      it. A row that ended stays as it is; what later steps say of it is nothing.
    - A row needs pages for what it will feed: `rows.set_pages` before they are needed. A row without a page
      for its next token waits, tells so, and goes on when it has one. `rows.order` says before a step who
      takes part, and grants reflection.
    - The schedule, length limit (sampling.max_new_tokens) and end of turn are the device's. What else ends a
      reply (stop_token_ids, max_audio_s, timeouts, cancellation) is the host's: `rows.end(row)`; tokens read
      after that are dropped.
    - `rows.lower_cap`, `rows.state` (the host cursor's, for a fork or an export; it waits for the device).

    graphs: capture a CUDA graph a bucket; never on a CPU, where kernels run in Triton's interpreter. fused: `warmup`
    captures steps whose rows are contexts of one reply too; else each is captured when it is first taken.
    invariant: a row's tokens are the same alone and in any bucket, without cuBLAS, which is faster for more
    than 16 rows. pdl: programmatic dependent launch, a layer's kernels fetch their weights while the one
    before ends; None: as INNERVOICE_PDL says, or, where it is not set, as `warmup` measures to be faster for a bucket.
    It changes no token, and GPUs older than compute capability 9.0 do without. Raises ValueError where Triton cannot run.
    """

    def __init__(
        self,
        model: Transformer,
        kv: KVCache,
        *,
        max_rows: int,
        max_model_len: int,
        num_caps: int = NUM_CAPS,
        tracer: Tracer | None = None,
        graphs: bool = True,
        fused: bool = False,
        invariant: bool = False,
        pdl: bool | None = None,
    ) -> None:
        weights, page_size = model.weights, kv.k.shape[2]
        if choose("step", weights.final_norm) != TRITON:
            raise ValueError(
                f"the device step needs Triton on {weights.device.type}: use a GPU with Triton, or TRITON_INTERPRET=1 with "
                "INNERVOICE_BACKEND=triton to interpret its kernels"
            )
        self.device, self.invariant = weights.device, invariant
        self.max_rows, self.max_model_len = max_rows, max_model_len
        self.buckets = buckets_for(max_rows)
        buffers = Buffers.allocate(model, max_rows, max_model_len, page_size, num_caps)
        self.rows = buffers.rows
        self._memory = buffers.layers
        self._inputs = buffers.inputs
        self._offers = buffers.offers
        self._fused = buffers.fused
        self._ring = buffers.ring
        self._cos = buffers.cos
        self._sin = buffers.sin
        self._model = model
        self._kv = kv
        self._tracer = tracer or Tracer()
        self._use_graphs = graphs and self.device.type == "cuda"
        self._captures_fused = fused
        self.pdl = _wants_pdl() if pdl is None else pdl
        if self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) < PDL_SINCE:
            self.pdl = False
        # A quantised table is looked up by the model's own means; what is looked up then has no width.
        self._table = (
            weights.embedding
            if isinstance(weights.embedding, Tensor)
            else torch.empty(1, 0, device=self.device, dtype=torch.float32)
        )
        self._ways = (bool(self.pdl),) if self.pdl is not None or not self._use_graphs else (False, True)
        self.graphs = BucketGraphs(self._launch, self._ways, GraphPool(self.device).capture, device_seconds)
        self._count = self._replays = self._eager = 0
        self._ready_s: float | None = None
        self._compiled = num_compiled()

    def begin(self, row: int, start: RowStart) -> None:
        """Put a reply into a row; see DeviceRows.begin.

        Raises ValueError for a position behind the model's length.
        """
        if not 0 <= start.position < self.max_model_len:
            raise ValueError(f"row {row} begins at position {start.position}, of {self.max_model_len}")
        self.rows.begin(row, start)

    @torch.inference_mode()
    def step(self, num_rows: int, count: int = 1, begun: torch.cuda.Event | None = None) -> Pending:
        """Queue `count` steps of the first num_rows rows.

        Raises ValueError for more rows or steps than there are places.

        begun: what `mark` gave, for the time of what was queued since then beside these steps.
        """
        if not 1 <= num_rows <= self.max_rows or not 1 <= count <= _RING:
            raise ValueError(
                f"step: {count} steps of {num_rows} rows, expected 1 to {_RING} of 1 to {self.max_rows}"
            )
        kind = StepKind(self.rows.is_weighted, self.rows.is_fused and num_rows > 1)
        bucket = next(b for b in self.buckets if b >= num_rows)
        begun = begun or self.mark()
        queued_ns = self._tracer.now_ns()
        with self._tracer.span("queue", rows=num_rows, steps=count):
            for _ in range(count):
                self._once(bucket, kind)
        first, self._count = self._count, self._count + count
        host = torch.empty(
            count,
            num_rows,
            self._ring.lines.shape[2],
            dtype=torch.int32,
            pin_memory=self.device.type == "cuda",
            device="cpu",
        )
        for index in range(count):
            host[index].copy_(self._ring.lines[(first + index) % _RING, :num_rows], non_blocking=True)
        return Pending(first, count, num_rows, host, begun, self.mark(), queued_ns)

    def mark(self) -> torch.cuda.Event | None:
        """A point on the device's clock: behind all that is queued. None where there is no GPU."""
        if self.device.type != "cuda":
            return None
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def read(self, pending: Pending) -> list[list[Emitted]]:
        """Wait for queued steps -> for each of them what its rows emitted; rows that are
        idle or had ended say nothing.
        """
        if pending.ended is not None:
            with self._tracer.span("wait", steps=pending.count):
                pending.ended.synchronize()
            if pending.begun is not None and self._tracer.enabled:
                took = pending.begun.elapsed_time(pending.ended)
                self._tracer.device_span(
                    "step", pending.queued_ns, took, rows=pending.num_rows, steps=pending.count
                )
        logprobs = pending.lines[..., OutputColumn.WIDTH].contiguous().view(torch.float32).tolist()
        return [
            [
                _emitted(row, line, logprob)
                for row, (line, logprob) in enumerate(zip(step, probs, strict=True))
                if _says(line)
            ]
            for step, probs in zip(pending.lines.tolist(), logprobs, strict=True)
        ]

    @torch.inference_mode()
    def launches(
        self,
        weighted: Sequence[bool] = (False, True),
        buckets: Sequence[int] | None = None,
        fused: Sequence[bool] = (False,),
    ) -> list[Launch]:
        """Note what the steps of these buckets launch, None: of all; nothing runs."""
        with recorded() as launches:
            for bucket in self.buckets if buckets is None else buckets:
                for *kind, way in product(weighted, fused, self._ways):
                    self._launch(bucket, StepKind(*kind), way)
        return launches

    @torch.inference_mode()
    def warmup(self, weighted: Sequence[bool] = (False, True), buckets: Sequence[int] | None = None) -> float:
        """Compile every kernel and capture these buckets, None: all -> seconds taken. Only while all rows are idle."""
        begin_ns = self._tracer.now_ns()
        buckets = sorted(self.buckets if buckets is None else buckets, reverse=True)
        compile_all(self.launches(weighted, buckets, (False, True)))
        for bucket in buckets:
            # The contexts of a reply are two rows at least; how many, and which, a graph reads from memory.
            combines = (False, True) if self._captures_fused and bucket > 1 else (False,)
            for weighs, fuses in product(weighted, combines):
                kind = StepKind(weighs, fuses)
                if self._use_graphs:
                    self.graphs.warm(bucket, kind)
                else:
                    self._eager_step(bucket, kind)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._count = int(self._ring.count)
        self._ready_s = (self._tracer.now_ns() - begin_ns) / 1e9
        self._compiled = num_compiled()
        self._eager = 0
        return self._ready_s

    def stats(self) -> StepStats:
        """Counts since the beginning."""
        compiled = 0 if self._ready_s is None else num_compiled() - self._compiled
        return StepStats(self._ready_s, compiled, len(self.graphs), self._replays, self._eager)

    def _once(self, bucket: int, kind: StepKind) -> None:
        replay = self.graphs.find(bucket, kind)
        if not self._use_graphs:
            self._eager_step(bucket, kind, self._tracer)
        elif replay is not None:
            replay()
            self._replays += 1
        else:  # without warmup: the first step of a bucket compiles its kernels, and is a step
            self._eager_step(bucket, kind)
            self.graphs.add(bucket, kind)

    def _eager_step(self, bucket: int, kind: StepKind, tracer: Tracer | None = None) -> None:
        self._launch(bucket, kind, self._ways[0], tracer)
        self._eager += 1

    def _launch(self, bucket: int, kind: StepKind, pdl: bool, tracer: Tracer | None = None) -> None:
        tracer = tracer or Tracer()
        weights, rows = self._model.weights, self.rows
        feed = rows.feed.first(bucket)
        cursor = rows.cursor.first(bucket)
        programs = rows.programs.tensors
        inputs, offers = self._inputs.first(bucket), self._offers.first(bucket, SLOTS)
        with tracer.span("begin", rows=bucket):
            begin_step(feed, cursor.state, self._table, self._cos, self._sin, self._kv.key_tag, inputs)
            if self._table.shape[1] == 0:
                inputs.x.copy_(embed(weights.embedding, feed.token, weights.dtype))
            prepare(cursor, programs)
        with dependent_launches(pdl):
            hidden = decode_layers(
                self._model,
                feed,
                inputs,
                self._kv,
                self._memory,
                tracer,
                weighted=kind.weighted,
                invariant=self.invariant,
            )
        with tracer.span("head", rows=bucket):
            if kind.fused:
                self._fused_head(hidden, cursor, offers)
            elif isinstance(weights.output, Tensor):
                head_step(hidden, weights.output, cursor, programs, offers, invariant=self.invariant)
            else:
                offers.logits.copy_(self._model.logits(hidden))
                summary(offers, cursor.draws, SLOTS)
                pick(offers, cursor.draws, SLOTS, cursor, programs)
        end_step(feed, cursor, self._ring)

    def _fused_head(self, hidden: Tensor, cursor: Rows, offers: Offers) -> None:
        """The end of a step some of whose rows are contexts of one reply: all logits, combined, and drawn from."""
        weights, groups = self._model.weights, self.rows.groups.first(len(hidden))
        raw = self._fused.first(len(hidden))
        if isinstance(weights.output, Tensor):
            head(hidden, weights.output, raw.all_ids, raw.offers, 1, invariant=self.invariant)
        else:
            raw.offers.logits.copy_(self._model.logits(hidden))
        fuse_into(raw.offers.logits, groups, raw.stats, offers.logits)
        summary(offers, cursor.draws, SLOTS)
        pick(offers, cursor.draws, SLOTS, cursor, self.rows.programs.tensors)
        tokens, forced = cursor.output[:, OutputColumn.TOKEN], cursor.output[:, OutputColumn.IS_FORCED]
        listen(raw.offers.logits, groups, raw.stats, tokens, forced, self.max_rows)


@cache
def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that a step is made for: powers of two up to 16, which is one
    tile; then every 16, 32 and 64.
    """
    steps = [1, 2, 4, 8, *range(16, 64, 16), *range(64, 128, 32), *range(128, max_rows + 64, 64)]
    return tuple(sorted({b for b in steps if b < max_rows} | {max_rows}))


def _wants_pdl() -> bool | None:
    value = os.environ.get(PDL_VARIABLE)
    if value is None:
        return None
    if value not in ("0", "1"):
        raise ValueError(f"{PDL_VARIABLE}={value}: use 0 or 1")
    return value == "1"


def _says(line: list[int]) -> bool:
    return line[OutputColumn.KIND] >= 0 or line[OutputColumn.IS_DONE] in _TOLD


def _emitted(row: int, line: list[int], logprob: float) -> Emitted:
    kind = None if line[OutputColumn.KIND] < 0 else TokenKind(line[OutputColumn.KIND])
    return Emitted(
        row=row,
        token=line[OutputColumn.TOKEN] if kind is not None else -1,
        kind=kind,
        segment=line[OutputColumn.SEGMENT],
        forced=bool(line[OutputColumn.IS_FORCED]),
        ending=Ending(line[OutputColumn.IS_DONE]),
        logprob=None if logprob != logprob else logprob,
        discarded=bool(line[OutputColumn.DISCARDED]),
    )
