"""Steps on the device while the host works on the step before: rows of the device's batch, queued steps, and
their tokens.
"""

from __future__ import annotations

import logging
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from innervoice.model.device_step import DeviceStep, Emitted, Pending, RowStart
from innervoice.model.rows import EmbeddingRow
from innervoice.model.sequence import Sequence
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.decoder import NOTHING, StepBatch, StepResult
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.follow import CursorMismatch, check_alike, follow
from innervoice.runtime.host_decode import NO_NUMBERS, HostDecode
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.row_start import row_start
from innervoice.runtime.scheduler import Phase
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.schedule import Program
from innervoice.types import OutOfCapacity, Sampling
from innervoice_kernels.sampling.cursor_columns import Ending

log = logging.getLogger("innervoice")

_RUNNING = Ending.RUNNING
_GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=1 << 30, ignore_eos=True)


@dataclass
class _QueuedStep:
    """A step on the device. rows, caps: of each reply, its first row and what was granted with the step; others: the
    further rows of a reply that has several contexts. pending None: it only fed prompts.
    """

    replies: list[ActiveReply]
    rows: list[int]
    caps: list[int | None]
    others: dict[ActiveReply, list[int]]
    pending: Pending | None
    prompt_tokens: int
    begun: Any
    ended: Any


@dataclass(eq=False)
class _DeviceRow:
    """A row of the device's batch: the reply and the one of its sequences that it holds.

    pages: of its page table on the device, of which the first num_fixed will not change.
    """

    reply: ActiveReply
    sequence: Sequence
    number: int
    pages: list[int] = field(default_factory=list)
    num_fixed: int = 0


class Overlap:
    """Draws on the device where that can hold a reply, and on the host where not. See Decoder.

    `begin` puts a reply into a row of the device's batch, or into a row for each of its contexts, whose cursors walk
    alike. `step` queues a step of some rows behind the
    prompts that it feeds, and reads the step before: the host's cursor then follows the device's token by
    token. Work that needs a reply's present state calls `settle` first. trial_program: the schedule of rows
    that mean nothing, by which steps are timed.
    """

    captures_graphs = True

    def __init__(
        self,
        host: HostDecode,
        device_step: DeviceStep,
        trial_program: Program,
        pages: SequencePages,
        table: ReplyTable,
        emitter: Emitter,
        faults: Faults,
        trace: ReplyTrace,
    ) -> None:
        self.device_step = device_step
        self._host = host
        self._trial_program = trial_program
        self._pages = pages
        self._table = table
        self._emitter = emitter
        self._faults = faults
        self._trace = trace
        self._rows: list[_DeviceRow] = []
        self._rows_of: dict[ActiveReply, list[_DeviceRow]] = {}
        self._caps: dict[ActiveReply, int] = {}  # for the next step
        self._queued: deque[_QueuedStep] = deque()

    @property
    def num_queued(self) -> int:
        """Steps that are queued and not read."""
        return len(self._queued)

    def mark(self) -> Any:
        """A step begins, of which prompts may be a part: the time is taken from here."""
        return self.device_step.mark()

    def begin(self, reply: ActiveReply) -> bool:
        """Put a reply with its pages into a row; its last token is fed by its first step.

        False: the device cannot hold it.
        """
        sequences = reply.sequences
        if any(
            isinstance(one.ids[-1], EmbeddingRow) for one in sequences
        ):  # which a device's step does not take
            reply.by_host = True
        if reply.by_host:
            return False
        first, longest = len(self._rows), max(len(one.ids) for one in sequences)
        try:
            if first + len(sequences) > self.device_step.max_rows:
                free = self.device_step.max_rows - first
                raise OutOfCapacity(f"it takes {len(sequences)} rows of the batch, and {free} are free", 1.0)
            for number, sequence in enumerate(sequences, first):
                self.device_step.begin(
                    number, row_start(reply, sequence, self.device_step.max_model_len - longest)
                )
        except (ValueError, TypeError, OverflowError, OutOfCapacity) as error:
            log.info("reply %s is drawn by the host: %s", reply.reply_id, error)
            for number in range(first, min(first + len(sequences), self.device_step.max_rows)):
                self.device_step.rows.end(number)
            reply.by_host = True
            return False
        reply.device_row = first
        made = [
            _DeviceRow(reply, one, number, list(one.table.pages), one.table.num_published)
            for number, one in enumerate(sequences, first)
        ]
        self._rows += made
        self._rows_of[reply] = made
        if reply.fused is not None:
            self.device_step.rows.fuse([row.number for row in made], reply.fused.fusing)
        return True

    def leave(self, reply: ActiveReply) -> None:
        """Take a reply out of its rows, which the last rows fill. A reply without a row is left alone."""
        if reply.device_row is None:
            return
        rows = self._rows_of.pop(reply)
        if reply.fused is not None and reply.finish is None:  # it may go on elsewhere
            reply.fused.believe(self.device_step.rows.log_prior([row.number for row in rows]))
        reply.device_row = None
        for row in rows:
            self.device_step.rows.end(row.number)
        for row in sorted(rows, key=lambda row: -row.number):
            last = self._rows.pop()
            if last is not row:
                self._move(last, row.number)

    def _move(self, row: _DeviceRow, number: int) -> None:
        """Put a row in the place of an idle one."""
        self.device_step.rows.move(row.number, number)
        self._rows[number], row.number = row, number
        row.reply.device_row = self._rows_of[row.reply][0].number

    def is_spent(self, reply: ActiveReply) -> bool:
        """Whether queued steps already draw all that the reply may have."""
        num = reply.num_tokens + reply.in_flight
        most = reply.request.sampling.max_new_tokens
        longest = (
            len(reply.sequence.ids) if reply.fused is None else max(len(one.ids) for one in reply.sequences)
        )
        return num >= most or longest + reply.in_flight >= self.device_step.max_model_len

    def grant(self, reply: ActiveReply, cap: int) -> None:
        """Cap a reply's open reflection, or its next: the device's cursor with the step that follows."""
        if reply.device_row is None:
            self._host.grant(reply, cap)
        else:
            self._caps[reply] = min(cap, self._caps.get(reply, cap))

    def step(self, batch: StepBatch) -> StepResult:
        """Feed prompts, queue a step of the device, draw for the other replies, read the step before."""
        num_host_rows = batch.num_host_rows
        drawing, logits = self._host.forward(batch)
        num_queued = self._queue(batch)
        self._host.draw(drawing, logits)
        self._host.update_table(batch)
        read = self._read(keep=1 if num_queued else 0) or NOTHING

        # Prompts before a step that only the device draws are a part of that step,
        # and counted when it is read.
        if num_queued and not batch.by_host:
            return replace(read, queued=num_queued)
        return StepResult(
            rows=read.rows + num_host_rows,
            prompt_tokens=read.prompt_tokens + batch.prompt_tokens,
            queued=num_queued,
            step_s=None if batch.by_host else read.step_s,
        )

    def settle(self) -> bool:
        """Read all queued steps, so that host state equals device state. False: none was queued."""
        return self._read(keep=0) is not None

    def warmup(self) -> None:
        """Compile the kernels of a step and capture its graphs."""
        self.device_step.warmup()

    @contextmanager
    def trial(self, sequences: abc.Sequence[Sequence]) -> Iterator[Callable[[], None]]:
        """A function that takes a step of sequences of one token that mean nothing, and waits for it."""
        assert not self._rows, "replies are in progress"
        for number, sequence in enumerate(sequences):
            start = RowStart(
                token=sequence.ids[-1],
                position=len(sequence.ids) - 1,
                pages=sequence.table.pages,
                program=self._trial_program,
                sampling=_GREEDY,
            )
            self.device_step.begin(number, start)

        def step() -> None:
            self.device_step.rows.order(dict.fromkeys(range(len(sequences))))
            self.device_step.read(self.device_step.step(len(sequences)))

        try:
            yield step
        finally:
            for number in range(len(sequences)):
                self.device_step.rows.end(number)

    def check_integrity(self) -> None:
        """Raise AssertionError where a reply, its row and, if all is read, its cursor on the device disagree."""
        for number, row in enumerate(self._rows):
            reply = row.reply
            assert row.number == number and row in self._rows_of[reply] and reply.finish is None, (
                "rows without replies"
            )
            assert reply.device_row == self._rows_of[reply][0].number, "a reply's first row"
            num = sum(other is reply for queued in self._queued for other in queued.replies)
            assert reply.in_flight == num, "steps that are not counted"
            if self._queued:
                continue
            state, num_tokens = self.device_step.rows.state(number)
            assert num_tokens == reply.num_tokens, "tokens that the host does not know"
            host = reply.cursor.state
            assert replace(state, caps=host.caps, granted=host.granted) == host, "cursors apart"
            pages = row.sequence.table.pages
            assert row.pages[: row.num_fixed] == pages[: row.num_fixed], "pages of another row"

    def _queue(self, batch: StepBatch) -> int:
        """Queue a step behind the prompts that were fed -> its rows, those that were only fed among them."""
        drawing = []
        for reply in batch.by_device:
            if reply.finish is None:
                drawing.append(reply)
            else:
                self.leave(reply)  # its prompt failed
        caps, self._caps = self._caps, {}
        if not (batch.by_device or batch.feeding):
            return 0
        numbers = [_row_of(reply) for reply in drawing]
        granted = [caps.get(reply) for reply in drawing]
        others = {
            reply: [row.number for row in self._rows_of[reply][1:]]
            for reply in batch.fused
            if reply.device_row is not None and reply.finish is None
        }
        pending = None
        if drawing:
            order = dict(zip(numbers, granted, strict=True))
            for reply, further in others.items():
                order |= dict.fromkeys(further, caps.get(reply))
            self._send_pages(order)
            self.device_step.rows.order(order)
            pending = self.device_step.step(1 + max(order), begun=batch.begun)
            for reply in drawing:
                reply.in_flight += 1
        ended = self.device_step.mark() if pending is None else None
        prompt_tokens = 0 if batch.by_host else batch.prompt_tokens
        self._queued.append(
            _QueuedStep(drawing, numbers, granted, others, pending, prompt_tokens, batch.begun, ended)
        )
        return len(numbers) + sum(map(len, others.values())) + len(batch.feeding)

    def _send_pages(self, numbers: Iterable[int]) -> None:
        """Send the page tables of these rows that changed.

        Published pages stay, but for the last, which may have been shared and copied.
        """
        changed = {}
        rows = self._rows
        for number in numbers:
            row = rows[number]
            table = row.sequence.table
            first = max(min(row.num_fixed, table.num_published) - 1, 0)
            if row.pages[first:] != table.pages[first:]:
                changed[number] = table.pages
                row.pages = list(table.pages)
            row.num_fixed = table.num_published
        if changed:
            self.device_step.rows.set_pages(changed)

    def _read(self, keep: int) -> StepResult | None:
        """Read all queued steps but the last `keep` -> the last one's result; None: there was none."""
        result = None
        while len(self._queued) > keep:
            queued = self._queued.popleft()
            if queued.pending is None:
                result = _prompts_result(queued)
                continue
            (step,) = self.device_step.read(queued.pending)
            by_row = {emitted.row: emitted for emitted in step}
            for reply in queued.replies:
                reply.in_flight -= 1
            num_rows = len(queued.replies) + sum(map(len, queued.others.values()))
            result = StepResult(num_rows, queued.prompt_tokens, step_s=queued.pending.took_s)
            for reply, number, cap in zip(queued.replies, queued.rows, queued.caps, strict=True):
                # A reply that is over has left: tokens drawn behind its end are dropped.
                if reply.device_row is None:
                    continue
                with self._faults.owning(reply):
                    further = (
                        None if reply.fused is None else [by_row.get(one) for one in queued.others[reply]]
                    )
                    self._accept(reply, by_row.get(number), cap, further)
                    self._table.update(reply)
                if reply.finish is not None:
                    self.leave(reply)
        return result

    def _accept(
        self,
        reply: ActiveReply,
        emitted: Emitted | None,
        cap: int | None,
        further: abc.Sequence[Emitted | None] | None,
    ) -> None:
        """Emit the token that the device drew for a reply. further: what it drew in the reply's other rows."""
        try:
            if emitted is None or emitted.ending is Ending.WAITING:
                raise CursorMismatch(
                    "a step of this reply came to nothing on the device, without an end or a page: please report this"
                )
            if further is not None:
                check_alike(emitted, further)
            if emitted.ending is Ending.REFUSED:
                raise FloatingPointError(NO_NUMBERS)
            if cap is not None:
                reply.grant(cap)
                if self._trace.enabled:
                    self._trace.granted(reply, cap)
            if emitted.token < 0:  # no more than the end of a feed
                self._hand_over(reply, emitted)
                return
            emission = follow(reply, emitted)
        except (CursorMismatch, FloatingPointError) as error:
            self._fail(reply, str(error))
            return
        sequences = [reply.sequence] if reply.fused is None else reply.sequences
        for sequence in sequences:
            sequence.num_cached = len(sequence.ids)
        self._pages.publish(sequences)
        self._emitter.emit(reply, emission, emitted.logprob)
        if reply.finish is None and emitted.ending is not _RUNNING:
            self._end(reply, emitted.ending)

    def _end(self, reply: ActiveReply, ending: Ending) -> None:
        """Let the host go on with a reply that the device leaves to it; any other end is none of the host's."""
        if ending is Ending.FED:
            self._hand_over(reply)
            return
        self._fail(
            reply, f"the device ended this reply ({ending.name}) where the host does not: please report this"
        )

    def _hand_over(self, reply: ActiveReply, emitted: Emitted | None = None) -> None:
        """Let the host go on with a reply that waits for ids, or that goes on without a feed which is closed.

        emitted: what the device says where it drew nothing but the end of the text.
        """
        if emitted is not None:
            for sequence in reply.sequences:
                sequence.num_cached = len(sequence.ids)
            if emitted.discarded:
                reply.cursor.finish_text()
        self.leave(reply)
        self._drop_queued(reply)
        for sequence in reply.sequences:
            sequence.feed_last()
        self._table.set_phase(reply, Phase.PREFILL)

    def _drop_queued(self, reply: ActiveReply) -> None:
        """Take a reply out of the steps that are queued, in which its row emits nothing more: it comes back."""
        for queued in self._queued:
            if reply in queued.replies:
                place = queued.replies.index(reply)
                del queued.replies[place]
                del queued.rows[place]
                del queued.caps[place]
                queued.others.pop(reply, None)
                reply.in_flight -= 1

    def _fail(self, reply: ActiveReply, error: str) -> None:
        reply.error = error
        self.leave(reply)
        self._emitter.stop(reply, "error")


def _row_of(reply: ActiveReply) -> int:
    assert reply.device_row is not None, "the host draws for this reply"
    return reply.device_row


def _prompts_result(queued: _QueuedStep) -> StepResult:
    """The result of a step that only fed prompts, once it is over."""
    if queued.ended is None:
        return StepResult(prompt_tokens=queued.prompt_tokens)
    queued.ended.synchronize()
    took_s = queued.begun.elapsed_time(queued.ended) / 1e3
    return StepResult(prompt_tokens=queued.prompt_tokens, step_s=took_s)
