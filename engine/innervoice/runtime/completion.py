"""The end of replies: cancelled, refused, timed out, failed, or complete with their sound."""

from __future__ import annotations

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.pages import PagePool
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.outbox import Outbox, PendingDone
from innervoice.runtime.reply_factory import ReplyFactory
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.request import Request
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.telemetry.trace import Tracer
from innervoice.types import Event, FinishReason


class Completion:
    """Ends replies: each has one Done, and holds nothing after it."""

    def __init__(
        self,
        table: ReplyTable,
        sessions: SessionRegistry,
        decoder: Decoder,
        emitter: Emitter,
        speech: SpeechOutput,
        outbox: Outbox,
        factory: ReplyFactory,
        pool: PagePool,
        tracer: Tracer,
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._decoder = decoder
        self._emitter = emitter
        self._speech = speech
        self._outbox = outbox
        self._factory = factory
        self._pool = pool
        self._tracer = tracer

    def refuse(self, request: Request, error: str) -> None:
        """End a request that could not be submitted."""
        self._outbox.put(PendingDone(self._factory.make_unstarted(request), "error", error))

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled", error: str | None = None) -> None:
        """End a reply now; its pages are free and its Done is next.

        Unknown and ended replies are left alone.
        """
        waiting = self._table.take_waiting(reply_id)
        if waiting is not None:
            self._table.remove(reply_id, waiting.table_index)
            self._sessions.end_reply(waiting.request.session_id)
            unstarted = self._factory.make_unstarted(waiting.request)
            self._outbox.put(PendingDone(unstarted, reason, error))
        elif self._table.find(reply_id) is not None:
            self._decoder.settle()
            reply = self._table.get(reply_id)
            reply.error = error
            self.end(reply, reason)

    def stop(self, reply: ActiveReply, reason: FinishReason) -> None:
        """Take no more tokens of a reply; sound of codes that were emitted is still made."""
        self._decoder.leave(reply)
        self._emitter.stop(reply, reason)
        self._table.update(reply)

    def end(self, reply: ActiveReply, reason: FinishReason) -> None:
        """End a reply with all its sound: free what it holds, and say so."""
        request, sequence = reply.request, reply.sequence
        self._decoder.leave(reply)
        self._table.remove(reply.reply_id, reply.table_index)
        self._speech.close(reply.reply_id)
        sequence.limit = None
        if request.session_id is None:
            sequence.release()
        elif reply.cursor.is_done:
            sequence.drop_last()  # the next turn's template begins with the end of this one
        self._sessions.end_reply(request.session_id)
        self._outbox.put(PendingDone(reply, reason, reply.error, reply.granted))
        self._tracer.counter("pages", available=self._pool.num_available, cached=self._pool.num_cached)

    def time_out(self, now: float) -> None:
        """End the replies whose time is over."""
        if now < self._table.next_deadline():
            return
        for request in [request for request in self._table.waiting() if now >= request.deadline_s]:
            self.cancel(request.reply_id, "timeout")
        late = [r for r in self._table.active if r.finish is None and now >= r.request.deadline_s]
        if late:
            self._decoder.settle()
        for reply in late:
            if reply.finish is None:
                self.stop(reply, "timeout")

    def last_events(self, now: float, error: str) -> list[Event]:
        """The Done of every reply that is not over, for a core that can go no further."""
        waiting = [self._factory.make_unstarted(request) for request in self._table.waiting()]
        return [PendingDone(reply, "error", error).stamp(now) for reply in [*self._table.active, *waiting]]
