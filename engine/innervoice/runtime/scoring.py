"""Scoring: choices whose texts' total log-probabilities decide, computed between the steps of replies."""

from __future__ import annotations

from collections.abc import Generator

from innervoice.model.token_role import TokenRole
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.completion import Completion
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.feeding import go_on
from innervoice.runtime.probing import ProbeAnswer, ProbedPrompt, Probing
from innervoice.runtime.reply_table import ReplyTable
from innervoice.schedule import Cursor
from innervoice.types import OutOfCapacity


class Scoring:
    """Scores the texts of the choices that replies wait for, one reply after another."""

    def __init__(
        self,
        probing: Probing,
        table: ReplyTable,
        emitter: Emitter,
        completion: Completion,
        faults: Faults,
        max_model_len: int,
    ) -> None:
        self._max_model_len = max_model_len
        self._probing = probing
        self._table = table
        self._emitter = emitter
        self._completion = completion
        self._faults = faults
        self._reply: ActiveReply | None = None
        self._question: ProbedPrompt | None = None
        self._steps: Generator[int, None, list[ProbeAnswer]] | None = None

    def step(self) -> int:
        """Feed a piece of the texts that are scored -> its tokens, 0 where nothing is to be scored."""
        reply = self._reply
        if reply is not None and (reply.finish is not None or self._table.find(reply.reply_id) is not reply):
            self._leave()
            reply = None
        if reply is None:
            reply = self._next()
        if reply is None:
            return 0
        num_fed = 0
        with self._faults.owning(reply):
            num_fed = self._advance(reply)
        if reply.finish is not None:
            self._leave()
        return num_fed

    def _next(self) -> ActiveReply | None:
        """Begin with the first reply that waits for scores; None: none does."""
        for reply in list(self._table.fed):
            cursor = reply.cursor
            waits = isinstance(cursor, Cursor) and cursor.waits and cursor.feed_name is None
            if waits and reply.device_row is None and reply.finish is None:
                sequence = reply.sequence
                texts = list(cursor.program.scores[cursor.row])
                if len(sequence.ids) + max(map(len, texts)) > self._max_model_len:
                    self._completion.stop(reply, "length")  # they cannot be compared
                    continue
                self._question = ProbedPrompt.of(
                    sequence.columns(len(sequence.ids)),
                    texts,
                    TokenRole.of(cursor.kind),
                    reply.number,
                    tuple(sequence.log_weights),
                )
                self._reply, self._steps = reply, self._probing.answers(self._question.probes)
                return reply
        return None

    def _advance(self, reply: ActiveReply) -> int:
        steps, question, cursor = self._steps, self._question, reply.cursor
        assert steps is not None and question is not None and isinstance(cursor, Cursor), "begun"
        try:
            return next(steps)
        except StopIteration as end:
            self._leave()
            self._choose(reply, cursor, question, question.logprobs(end.value))
        except OutOfCapacity as error:
            self._leave()
            columns = self._table.columns
            if all(columns.is_waiting[other.table_index] for other in self._table.active):
                reply.error = str(error)  # nobody else will give pages back
                self._completion.stop(reply, "error")
        return 0

    def _choose(
        self, reply: ActiveReply, cursor: Cursor, question: ProbedPrompt, logprobs: list[tuple[float, ...]]
    ) -> None:
        """Emit the text with the largest total, the first of those that have it."""
        best = max(range(len(logprobs)), key=lambda place: sum(logprobs[place]))
        ids, label = question.continuations[best], cursor.program.scores[cursor.row]
        for place, (token, logprob) in enumerate(zip(ids, logprobs[best], strict=True)):
            if reply.finish is None:
                text = label[ids] if place == len(ids) - 1 else None
                self._emitter.emit(reply, cursor.feed(token, text), logprob)
        self._emitter.emit_forced(reply)
        go_on(self._table, reply)

    def _leave(self) -> None:
        """Give back what the scoring of a reply holds."""
        if self._steps is not None:
            self._steps.close()
        self._reply = self._question = self._steps = None
