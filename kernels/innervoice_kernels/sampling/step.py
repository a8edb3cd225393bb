"""The two ends of a decode step: the inputs that each row feeds to the layers, and the outputs that it keeps

x = E[token], slot = page * S + position % S; behind the cursor: token, kind, position + 1        E: [V, D]   ->   x: [B, D]

A step reads nothing from the host and tells it what it emitted through a ring, so that the host
may read later than it queues.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.jit import Count, Num, Ptr, constexpr, jit, launch, next_power, tl
from innervoice_kernels.sampling.cursor import Rows
from innervoice_kernels.sampling.cursor_columns import Ending, OutputColumn, StateColumn, TokenKind

RING_COLUMNS = OutputColumn.WIDTH + 1  # the cursor's output, and the bits of the log-probability
_RUNNING, _WAITING, _PAUSED = (tl.constexpr(int(e)) for e in (Ending.RUNNING, Ending.WAITING, Ending.PAUSED))
_TRANSCRIPT, _SPEECH, _END = (
    tl.constexpr(int(kind)) for kind in (TokenKind.TRANSCRIPT, TokenKind.SPEECH, TokenKind.END)
)
_STATE_WIDTH, _IS_DONE = tl.constexpr(int(StateColumn.WIDTH)), tl.constexpr(int(StateColumn.IS_DONE))
_OUTPUT_WIDTH, _KIND, _TOKEN = (
    tl.constexpr(int(column)) for column in (OutputColumn.WIDTH, OutputColumn.KIND, OutputColumn.TOKEN)
)
_BLOCK, _LANES = 1024, 128


@dataclass(frozen=True)
class RowFeed:
    """The next inputs of a batch's rows.

    The host writes a row's line when a reply begins, and its pages as it grows.

    page_table: -1 where the row has no page yet. kind: -1 for a token of the prompt. reply: its
    number in the row where a reflection weight is at work, else 0. rests: 1 where the row feeds
    nothing until the host writes 0.
    """

    token: Tensor  # [B] int32
    kind: Tensor  # [B] int32
    position: Tensor  # [B] int32
    reply: Tensor  # [B] int32
    log_weight: Tensor  # [B] float32
    page_table: Tensor  # [B, N] int32
    rests: Tensor  # [B] int32

    @classmethod
    def allocate(cls, num_rows: int, num_pages: int, device: torch.device) -> RowFeed:
        """Rows without pages; num_pages: that a row may hold."""
        token, kind, position, reply, rests = (
            torch.zeros(num_rows, dtype=torch.int32, device=device) for _ in range(5)
        )
        log_weight = torch.zeros(num_rows, dtype=torch.float32, device=device)
        pages = torch.full((num_rows, num_pages), -1, dtype=torch.int32, device=device)
        return cls(token, kind, position, reply, log_weight, pages, rests)

    def first(self, num_rows: int) -> RowFeed:
        """The first rows, in the same memory."""
        return RowFeed(*(getattr(self, f.name)[:num_rows] for f in fields(self)))


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a step's layers; a row that feeds nothing has slot -1 and context_len 0."""

    x: Tensor  # [B, D]
    cos: Tensor  # [B, R/2]
    sin: Tensor  # [B, R/2]
    slots: Tensor  # [B] int64
    context_len: Tensor  # [B] int32
    query_tag: Tensor  # [B] int32

    @classmethod
    def allocate(
        cls, num_rows: int, width: int, half: int, dtype: torch.dtype, device: torch.device
    ) -> StepInputs:
        """Unwritten; half: R/2."""

        def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=of, device=device)

        return cls(
            x=empty(num_rows, width),
            cos=empty(num_rows, half),
            sin=empty(num_rows, half),
            slots=empty(num_rows, of=torch.int64),
            context_len=empty(num_rows, of=torch.int32),
            query_tag=empty(num_rows, of=torch.int32),
        )

    def first(self, num_rows: int) -> StepInputs:
        """The first rows, in the same memory."""
        return StepInputs(*(getattr(self, f.name)[:num_rows] for f in fields(self)))


@dataclass(frozen=True)
class Ring:
    """The outputs of the last steps: step s lies at s % len(lines). count: steps so far."""

    lines: Tensor  # [K, B, RING_COLUMNS] int32
    count: Tensor  # [1] int64

    @classmethod
    def allocate(cls, num_steps: int, num_rows: int, device: torch.device) -> Ring:
        """For the last num_steps steps."""
        lines = torch.zeros(num_steps, num_rows, RING_COLUMNS, dtype=torch.int32, device=device)
        return cls(lines, torch.zeros(1, dtype=torch.int64, device=device))


def begin_step_ref(
    feed: RowFeed,
    state: Tensor,
    embedding: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_tag: Tensor,
    inputs: StepInputs,
) -> None:
    """Fill inputs for the rows that run, and write the tags of their tokens' places.

    state [B, State.WIDTH] of the cursors; embedding [V, D]; cos, sin [P, R/2] by position; key_tag
    [pages, S]. A running row whose page is missing waits: it feeds and emits nothing in this step, and runs
    on when it has the page. One that rests is paused likewise.
    """
    page_size = key_tag.shape[1]
    for row in range(len(feed.token)):
        position, ending = int(feed.position[row]), int(state[row, StateColumn.IS_DONE])
        index = position // page_size
        page = int(feed.page_table[row, index]) if index < feed.page_table.shape[1] else -1
        runs, rests = ending in (Ending.RUNNING, Ending.WAITING, Ending.PAUSED), bool(feed.rests[row])
        if runs:
            state[row, StateColumn.IS_DONE] = (
                Ending.PAUSED if rests else Ending.RUNNING if page >= 0 else Ending.WAITING
            )
        if not runs or rests or page < 0:
            inputs.x[row] = inputs.cos[row] = inputs.sin[row] = 0
            inputs.slots[row] = -1
            inputs.context_len[row] = 0
            inputs.query_tag[row] = 0
            continue
        code, reply = int(feed.kind[row]), int(feed.reply[row])
        kind = (
            TokenKind(code) if code >= 0 else TokenKind.END
        )  # a prompt's token is neither spoken nor hidden
        inputs.x[row] = embedding[int(feed.token[row])]
        inputs.cos[row], inputs.sin[row] = cos[position], sin[position]
        inputs.slots[row] = page * page_size + position % page_size
        inputs.context_len[row] = position + 1
        inputs.query_tag[row] = reply if kind.is_spoken else 0
        key_tag[page, position % page_size] = reply if kind.is_hidden else 0


@jit
def _begin_kernel(
    token: Ptr, kind: Ptr, position: Ptr, reply: Ptr, page_table: Ptr, rests: Ptr, state: Ptr, embedding: Ptr, cos_table: Ptr,
    sin_table: Ptr, key_tag: Ptr, x: Ptr, cos: Ptr, sin: Ptr, slots: Ptr, context_len: Ptr, query_tag: Ptr, num_pages: Num,
    table_row: Num, embedding_row: Num, D: Num, PAGE_SIZE: constexpr, HALF: constexpr, HALF_BLOCK: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One row a program."""
    row = tl.program_id(0)
    place = tl.load(position + row)
    ending_at = state + row * _STATE_WIDTH + _IS_DONE
    ending = tl.load(ending_at)
    runs = (ending == _RUNNING) | (ending == _WAITING) | (ending == _PAUSED)
    takes_part = runs & (tl.load(rests + row) == 0)
    index = place // PAGE_SIZE
    page = tl.load(page_table + row * table_row + index, mask=takes_part & (index < num_pages), other=-1).to(
        tl.int64
    )
    feeds = takes_part & (page >= 0)
    tl.store(ending_at, tl.where(feeds, _RUNNING, tl.where(takes_part, _WAITING, _PAUSED)), mask=runs)
    slot = page * PAGE_SIZE + place % PAGE_SIZE
    what, number = tl.load(kind + row), tl.load(reply + row)
    is_spoken = (what == _TRANSCRIPT) | (what == _SPEECH)
    is_hidden = (is_spoken == 0) & (what >= 0) & (what < _END)  # calls have the kinds behind it
    tl.store(slots + row, tl.where(feeds, slot, -1))
    tl.store(context_len + row, tl.where(feeds, place + 1, 0))
    tl.store(query_tag + row, tl.where(feeds & is_spoken, number, 0))
    tl.store(key_tag + slot, tl.where(is_hidden, number, 0), mask=feeds)
    half = tl.arange(0, HALF_BLOCK)
    known = feeds & (half < HALF)
    angle = place.to(tl.int64) * HALF + half
    tl.store(cos + row * HALF + half, tl.load(cos_table + angle, mask=known, other=0.0), mask=half < HALF)
    tl.store(sin + row * HALF + half, tl.load(sin_table + angle, mask=known, other=0.0), mask=half < HALF)
    source = embedding + tl.load(token + row).to(tl.int64) * embedding_row
    for first in range(0, D, BLOCK):
        column = first + tl.arange(0, BLOCK)
        values = tl.load(source + column, mask=feeds & (column < D), other=0.0)
        tl.store(x + row * D + column, values, mask=column < D)


def begin_step(
    feed: RowFeed,
    state: Tensor,
    embedding: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_tag: Tensor,
    inputs: StepInputs,
) -> None:
    """Fill inputs; see begin_step_ref. Tables and inputs are contiguous."""
    if choose("begin_step", embedding) != TRITON:
        begin_step_ref(feed, state, embedding, cos, sin, key_tag, inputs)
        return
    half = cos.shape[1]
    launch(
        _begin_kernel, (len(feed.token),), feed.token, feed.kind, feed.position, feed.reply, feed.page_table, feed.rests, state,
        embedding, cos, sin, key_tag, inputs.x, inputs.cos, inputs.sin, inputs.slots, inputs.context_len, inputs.query_tag,
        feed.page_table.shape[1], feed.page_table.stride(0), embedding.stride(0), embedding.shape[1],
        PAGE_SIZE=key_tag.shape[1], HALF=half, HALF_BLOCK=next_power(half), BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def end_step_ref(feed: RowFeed, rows: Rows, ring: Ring) -> None:
    """Rows that emitted feed their token next, one position on; all outputs go to
    the ring's line of this step.
    """
    emitted = rows.output[:, OutputColumn.KIND] >= 0
    feed.token.copy_(torch.where(emitted, rows.output[:, OutputColumn.TOKEN], feed.token))
    feed.kind.copy_(torch.where(emitted, rows.output[:, OutputColumn.KIND], feed.kind))
    feed.position.add_(emitted.to(torch.int32))
    line = ring.lines[int(ring.count) % len(ring.lines)]
    line[: len(emitted), : OutputColumn.WIDTH] = rows.output
    line[: len(emitted), OutputColumn.WIDTH] = rows.logprob.view(torch.int32)
    ring.count.add_(1)


@jit
def _end_kernel(
    token: Ptr, kind: Ptr, position: Ptr, output: Ptr, logprob: Ptr, lines: Ptr, count: Ptr, B: Count, ring_len: Num,
    line_len: Num, LANES: constexpr,
) -> None:  # fmt: skip
    """All rows in one program, which therefore may count the step."""
    done = tl.load(count)
    line = lines + done % ring_len * line_len
    for first in range(0, B, LANES):
        row = first + tl.arange(0, LANES)
        exists = row < B
        out, entry = output + row * _OUTPUT_WIDTH, line + row * (_OUTPUT_WIDTH + 1)
        new_kind = tl.load(out + _KIND, mask=exists, other=-1)
        emitted = exists & (new_kind >= 0)
        tl.store(token + row, tl.load(out + _TOKEN, mask=emitted, other=0), mask=emitted)
        tl.store(kind + row, new_kind, mask=emitted)
        tl.store(position + row, tl.load(position + row, mask=emitted, other=0) + 1, mask=emitted)
        for column in tl.static_range(_OUTPUT_WIDTH):
            tl.store(entry + column, tl.load(out + column, mask=exists, other=0), mask=exists)
        bits = tl.load(logprob + row, mask=exists, other=0.0).to(tl.int32, bitcast=True)
        tl.store(entry + _OUTPUT_WIDTH, bits, mask=exists)
    tl.debug_barrier()  # every thread has read the count
    tl.store(count, done + 1)


def end_step(feed: RowFeed, rows: Rows, ring: Ring) -> None:
    """Keep the emitted tokens of all rows and write them to the ring; see end_step_ref."""
    if choose("end_step", feed.token) != TRITON:
        end_step_ref(feed, rows, ring)
        return
    num_rows = len(feed.token)
    launch(
        _end_kernel, (1,), feed.token, feed.kind, feed.position, rows.output, rows.logprob, ring.lines, ring.count, num_rows,
        len(ring.lines), ring.lines.stride(0), LANES=_LANES, num_warps=4,
    )  # fmt: skip
