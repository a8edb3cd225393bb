"""The batch of a step, made from its plan: the rows that take part, each with pages for the tokens that it
feeds.
"""

from __future__ import annotations

from dataclasses import replace

from innervoice.model.pages import PagePool
from innervoice.model.sequence import Sequence
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import Decoder, StepBatch
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import Phase, SchedulerSettings, StepPlan
from innervoice.runtime.sequence_pages import SequencePages

_DECODE = int(Phase.DECODE)
_FORCED_MARGIN = 16  # forced tokens behind a prompt do not cost a step of their own


class BatchBuilder:
    """Makes the batch of each step.

    When no row gets its pages, and none can be taken back, the last reply ends.
    """

    def __init__(
        self,
        table: ReplyTable,
        pages: SequencePages,
        pool: PagePool,
        decoder: Decoder,
        completion: Completion,
        settings: SchedulerSettings,
    ) -> None:
        self._table = table
        self._pages = pages
        self._pool = pool
        self._decoder = decoder
        self._completion = completion
        self._prefill_chunk = settings.prefill_chunk

    def build(self, plan: StepPlan, now: float) -> StepBatch:
        """The rows that the plan names and that have pages. now: served from now on."""
        batch = StepBatch([], [], [], 0, self._decoder.mark(), [])
        prompt_tokens = sum(self._feed(index, num, batch, now) for index, num in plan.prefill)
        self._decode(plan.decode.tolist(), batch, now)
        if batch.is_empty and (plan.prefill or len(plan.decode)) and self._decoder.num_queued == 0:
            self._give_up(plan)
        return replace(batch, prompt_tokens=prompt_tokens)

    def _feed(self, index: int, num: int, batch: StepBatch, now: float) -> int:
        """Let a prompt be fed up to `num` tokens; a reply whose prompt is through draws as well -> tokens
        fed.
        """
        entry = self._table.owner(index)
        if entry is None:  # it could not begin
            return 0
        assert not isinstance(entry, Request), "a reply without a row is not fed"
        if isinstance(entry, ActiveReply) and entry.fused is not None:
            return self._feed_fused(entry, num, batch, now)
        reply = entry if isinstance(entry, ActiveReply) else None
        sequence: Sequence = entry.sequence
        # Whoever waits for ids keeps the last token, from which it may have to draw.
        waits = reply is not None and reply.cursor.waits
        left = sequence.num_new - waits
        if reply is not None and (reply.finish is not None or left <= 0):
            return 0
        margin = _FORCED_MARGIN if reply is not None and num < self._prefill_chunk else 0
        is_whole = not waits and left - num <= margin
        sequence.limit = None if is_whole else sequence.num_cached + min(num, left)
        if not self._pages.make_writable(sequence):
            sequence.limit = None
            return 0
        num_fed = sequence.num_new
        columns = self._table.columns
        columns.served_s[index] = now
        if reply is None or not is_whole:
            batch.feeding.append(sequence)
            return num_fed

        # The prompt is through. On the device its last token is a part of the step that draws.
        columns.phase[index] = _DECODE
        columns.prompt_left[index] = 0
        if not self._decoder.begin(reply):
            batch.by_host.append(reply)
            return num_fed
        batch.by_device.append(reply)
        if sequence.num_new > 1:
            sequence.limit = len(sequence.ids) - 1
            batch.feeding.append(sequence)
        return num_fed

    def _feed_fused(self, reply: ActiveReply, num: int, batch: StepBatch, now: float) -> int:
        """The same for a reply of several contexts: its prompt first, whose pages the others may share."""
        pages, waits = self._pages, reply.cursor.waits
        first, *others = reply.sequences
        shares = pages.shares and first.num_new > self._pool.page_size
        for sequence in others if not shares else ():
            pages.adopt(sequence)
        # The last token of each is fed with those of all others, by the step that draws.
        left = [sequence.num_new - 1 for sequence in reply.sequences]
        if reply.finish is not None or (waits and sum(left) == 0):
            return 0
        is_whole = not waits and not shares and sum(left) <= num
        if shares:
            left = [left[0], *[0] * len(others)]
        fed, room = [], num
        for sequence, piece in zip(reply.sequences, left, strict=True):
            piece = piece + 1 if is_whole else min(piece, room)
            if piece > 0:
                sequence.limit = None if is_whole else sequence.num_cached + piece
                fed.append(sequence)
                room -= piece
        if not all(map(pages.make_writable, fed)):
            for sequence in fed:
                sequence.limit = None
            return 0
        self._table.columns.served_s[reply.table_index] = now
        if is_whole:
            self._table.columns.phase[reply.table_index] = _DECODE
            self._table.columns.prompt_left[reply.table_index] = 0
            self._begin_fused(reply, batch)
        else:
            batch.feeding.extend(fed)
        return num - room

    def _begin_fused(self, reply: ActiveReply, batch: StepBatch) -> None:
        """The last tokens of all contexts: on the device they are a part of the step that draws."""
        batch.fused.append(reply)
        if not self._decoder.begin(reply):
            batch.by_host.append(reply)
            return
        batch.by_device.append(reply)
        for sequence in reply.sequences:
            if sequence.num_new > 1:
                sequence.limit = len(sequence.ids) - 1
                batch.feeding.append(sequence)

    def _decode(self, indices: list[int], batch: StepBatch, now: float) -> None:
        """Let replies draw a token each, where they have pages for it."""
        table, pages, is_spent = self._table, self._pages, self._decoder.is_spent
        served = []
        for index in indices:
            reply = table.owner(index)
            if not isinstance(reply, ActiveReply) or reply.finish is not None or is_spent(reply):
                continue
            if not pages.make_writable(reply.sequence, reply.in_flight):
                continue
            fused = reply.fused
            if fused is not None:
                if not all(pages.make_writable(sequence, reply.in_flight) for sequence in fused.sequences):
                    continue
                batch.fused.append(reply)
            served.append(index)
            if reply.device_row is None:
                batch.by_host.append(reply)
            else:
                table.columns.pages[index] = len(reply.sequence.table.pages)
                if fused is not None:
                    table.columns.pages[index] += sum(len(one.table.pages) for one in fused.sequences)
                batch.by_device.append(reply)
        table.columns.served_s[served] = now

    def _give_up(self, plan: StepPlan) -> None:
        """No row got its pages although none are left to take back: end the reply that came last."""
        indices = [index for index, _ in plan.prefill] + plan.decode.tolist()
        entries = [self._table.owner(index) for index in indices]
        replies = [entry for entry in entries if isinstance(entry, ActiveReply) and entry.finish is None]
        replies = [reply for reply in replies if not reply.cursor.waits]
        if replies:
            order = self._table.columns.order
            last = max(replies, key=lambda reply: int(order[reply.table_index]))
            last.error = (
                f"the cache of {self._pool.num_pages} pages is full: load the model with more max_sessions"
            )
            self._completion.stop(last, "error")
