"""The host's side of a step: the forward pass, a draw a row under the cursor's mask, and what came of it."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.decoder import StepBatch, StepResult
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.telemetry.trace import Tracer
from innervoice_kernels.sampling.fuse import FIRST, fuse
from innervoice_kernels.sampling.sample import REFUSED, merge_spans, sample

NO_NUMBERS = "the model's logits are not numbers: check the weights, or use a wider dtype"
_NO_LOGITS = torch.empty(0, 0, dtype=torch.float32, device="cpu")


class HostDecode:
    """Feeds and draws, and waits for each step. See Decoder."""

    captures_graphs = False
    num_queued = 0

    def __init__(
        self,
        runner: ModelRunner,
        pages: SequencePages,
        table: ReplyTable,
        sessions: SessionRegistry,
        emitter: Emitter,
        faults: Faults,
        trace: ReplyTrace,
        tracer: Tracer,
    ) -> None:
        self._runner = runner
        self._pages = pages
        self._table = table
        self._sessions = sessions
        self._emitter = emitter
        self._faults = faults
        self._trace = trace
        self._tracer = tracer

    def step(self, batch: StepBatch) -> StepResult:
        """Feed and draw."""
        drawing, logits = self.forward(batch)
        self.draw(drawing, logits)
        self.update_table(batch)
        return StepResult(batch.num_host_rows, batch.prompt_tokens)

    def grant(self, reply: ActiveReply, cap: int) -> None:
        """Cap a reply's open reflection, or its next; a cap that is reached closes it."""
        with self._faults.owning(reply):
            reply.grant(cap)
            if self._tracer.enabled:
                self._trace.granted(reply, cap)
            if reply.cursor.forced is not None:
                self._emitter.emit_forced(reply)
                self._table.update(reply)

    def forward(self, batch: StepBatch) -> tuple[list[ActiveReply], Tensor]:
        """Feed what the host feeds -> the replies that it draws for, without those that failed, and their
        logits [B, V].
        """
        drawing = batch.by_host
        spans = {span for reply in drawing for span in reply.cursor.offered}
        fused = [reply for reply in batch.fused if reply.device_row is None]
        if fused:  # a combination of contexts takes the logits of all ids
            sequences = [sequence for reply in drawing for sequence in reply.sequences] + batch.feeding
            spans |= {(0, reply.request.program.vocabulary.size) for reply in fused}
        else:
            sequences = [reply.sequence for reply in drawing] + batch.feeding
        if not sequences:
            return [], _NO_LOGITS
        logits, failed = self._runner.forward_isolated(
            sequences, self._pages.new_sequence, merge_spans(spans)
        )
        for sequence in sequences:
            sequence.limit = None

        # A sequence that failed ends its reply, or is not prefetched; the others' full pages may be shared.
        if failed:
            self._fail(batch, failed)
            sequences = [sequence for sequence in sequences if id(sequence) not in failed]
        self._pages.publish(sequences)

        # Logits of the rows that draw, which come first.
        if fused:
            return self._combined(drawing, logits, failed)
        if not failed:
            return drawing, logits[: len(drawing)]
        alive = [i for i, reply in enumerate(drawing) if id(reply.sequence) not in failed]
        return [drawing[i] for i in alive], logits[alive] if alive else _NO_LOGITS

    def _combined(
        self, drawing: abc.Sequence[ActiveReply], logits: Tensor, failed: abc.Container[int]
    ) -> tuple[list[ActiveReply], Tensor]:
        """The replies that can draw, and a row of logits for each, of all its contexts."""
        groups = [FIRST if reply.fused is None else reply.fused.fusing for reply in drawing]
        num_rows = sum(how.size for how in groups)
        rows, stats = fuse(logits[:num_rows], groups)
        alive: list[int] = []
        begin = 0
        for index, reply in enumerate(drawing):
            end = begin + len(reply.sequences)
            if not any(id(sequence) in failed for sequence in reply.sequences):
                with self._faults.owning(reply):
                    if reply.fused is not None:
                        reply.fused.offer(logits[begin:end], stats[begin:end])
                        if reply.fused.combine is not None:
                            rows[index] = reply.fused.call(logits[begin:end])
                    alive.append(index)
            begin = end
        kept = rows if len(alive) == len(drawing) else rows[alive]
        return [drawing[index] for index in alive], kept

    def draw(self, drawing: abc.Sequence[ActiveReply], logits: Tensor) -> None:
        """Draw and emit a token of each reply."""
        if drawing:
            with self._tracer.span("sample", rows=len(drawing)):
                self._draw(drawing, logits, d=0)

    def update_table(self, batch: StepBatch) -> None:
        """Bring the table up to date with the tokens that were drawn and fed."""
        for reply in batch.by_host:
            self._update(reply)
        fed = {id(sequence) for sequence in batch.feeding}
        if not fed:
            return
        for reply in self._table.active:
            if any(id(sequence) in fed for sequence in reply.sequences):
                self._update(reply)
        for session in self._sessions:
            if id(session.sequence) in fed and session.table_index is not None:
                self._table.update_prefetch(session)

    def _draw(self, drawing: abc.Sequence[ActiveReply], logits: Tensor, *, d: int) -> None:
        again: list[int] = []
        for index, token, logprob in self._sampled(drawing, logits, d):
            reply = drawing[index]
            with self._faults.owning(reply):
                if self._take(reply, token, logprob):
                    again.append(index)
        if again:
            assert d == 0, "a token takes at most one discarded draw"
            self._draw([drawing[i] for i in again], logits[again], d=1)

    def _sampled(
        self, drawing: abc.Sequence[ActiveReply], logits: Tensor, d: int
    ) -> Iterator[tuple[int, int, float]]:
        """The index, drawn id and logprob of each reply; one whose draw fails is left out, and ends."""
        try:
            ids, logprobs = sample(logits, [reply.draw(d) for reply in drawing])
        except torch.AcceleratorError:
            raise
        except Exception:
            # One by one, to find those that it belongs to. A draw depends on its seed and number alone.
            for index, reply in enumerate(drawing):
                with self._faults.owning(reply):
                    ids, logprobs = sample(logits[index : index + 1], [reply.draw(d)])
                    yield index, int(ids[0]), float(logprobs[0])
            return
        yield from zip(range(len(drawing)), ids.tolist(), logprobs.tolist(), strict=True)

    def _take(self, reply: ActiveReply, token: int, logprob: float) -> bool:
        """Emit a drawn id, and what the schedule forces behind it; True: it was discarded, draw again."""
        if token == REFUSED:
            reply.error = NO_NUMBERS
            self._emitter.stop(reply, "error")
            return False
        emission = reply.cursor.draw(token)
        if emission is not None:
            if reply.fused is not None:
                reply.fused.hear(token)
            self._emitter.emit(reply, emission, logprob)
        if reply.cursor.forced is not None:
            self._emitter.emit_forced(reply)
        # Unless a forced id has taken the place of this token.
        if emission is not None or reply.finish is not None or reply.sequence.num_new:
            return False
        if reply.cursor.waits:
            for sequence in reply.sequences:
                sequence.feed_last()
        return not reply.cursor.waits

    def _update(self, reply: ActiveReply) -> None:
        with self._faults.owning(reply):
            self._table.update(reply)

    def _fail(self, batch: StepBatch, failed: dict[int, Exception]) -> None:
        """End the replies whose sequences failed, and the prefetching of sessions.

        failed: errors by the id of the sequence.
        """
        for reply in batch.by_host:
            for error in [failed[id(one)] for one in reply.sequences if id(one) in failed][:1]:
                with self._faults.owning(reply):
                    reply.error = f"a step of this reply failed: {str(error) or type(error).__name__}"
                    self._emitter.stop(reply, "error")
        broken = {id(sequence) for sequence in batch.feeding if id(sequence) in failed}
        if not broken:
            return
        for reply in self._table.active:
            for error in [failed[id(one)] for one in reply.sequences if id(one) in broken][:1]:
                with self._faults.owning(reply):
                    reply.error = f"the prompt of this reply failed: {error}"
                    self._emitter.stop(reply, "error")
                    self._table.update(reply)
        for session in self._sessions:
            if id(session.sequence) in broken:
                self._sessions.end_prefetch(session)

    # What the device would do: the rest of Decoder.

    def mark(self) -> None:
        """Return no mark: there is no device whose time is taken."""

    def begin(self, reply: ActiveReply) -> bool:
        """False: the host draws."""
        return False

    def leave(self, reply: ActiveReply) -> None:
        """Nothing was taken over."""

    def is_spent(self, reply: ActiveReply) -> bool:
        """False: nothing is queued."""
        return False

    def settle(self) -> bool:
        """False: nothing is queued."""
        return False

    def warmup(self) -> None:
        """Nothing is compiled."""

    @contextmanager
    def trial(self, sequences: abc.Sequence[Sequence]) -> Iterator[Callable[[], None]]:
        """A function that feeds the sequences and waits for their logits."""

        def forward() -> None:
            for sequence in sequences:
                sequence.num_cached = 0
            self._runner.forward(sequences)[0, 0].item()

        yield forward

    def check_integrity(self) -> None:
        """There is no device to disagree with."""
