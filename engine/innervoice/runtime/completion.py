"""The end of replies: cancelled, refused, timed out, failed, or complete with their sound."""

from __future__ import annotations

import logging

import torch

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.pages import PagePool
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.outbox import Outbox, PendingDone
from innervoice.runtime.reply_factory import ReplyFactory
from innervoice.runtime.reply_table import Entry, ReplyTable
from innervoice.runtime.request import Request, end_feeds
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.session_state import SessionState
from innervoice.telemetry.trace import Tracer
from innervoice.types import Event, FinishReason

log = logging.getLogger("innervoice")


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
        faults: Faults,
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
        self._faults = faults
        self._timed_out: set[ActiveReply] = set()
        self._tracer = tracer

    def refuse(self, request: Request, error: str) -> None:
        """End a request that could not be submitted."""
        end_feeds(request)
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
        with self._faults.owning(reply):
            self._decoder.leave(reply)
            self._emitter.stop(reply, reason)
            self._table.update(reply)

    def end(self, reply: ActiveReply, reason: FinishReason) -> None:
        """End a reply with all its sound: free what it holds, and say so."""
        request, sequence = reply.request, reply.sequence
        self._decoder.leave(reply)
        self._table.remove(reply.reply_id, reply.table_index)
        self._timed_out.discard(reply)
        self._close_speech(reply)
        sequence.limit = None
        if request.session_id is None:
            for held in reply.sequences:
                held.release()
        elif reply.cursor.is_done:
            sequence.drop_last()  # the next turn's template begins with the end of this one
        else:
            sequence.drop_call(reply.number)
        self._sessions.end_reply(request.session_id)
        self._outbox.put(PendingDone(reply, reason, reply.error, reply.granted))
        self._tracer.counter("pages", available=self._pool.num_available, cached=self._pool.num_cached)

    def end_failed(self) -> None:
        """End the replies that have failed by themselves since the last call."""
        while failed := self._faults.take():
            self._decoder.settle()
            for reply in failed:
                if self._table.find(reply.reply_id) is reply:
                    self.end(reply, "error")

    def abandon(self, entry: Entry, table_index: int, error: BaseException) -> None:
        """End a request or a preempted reply that could not be admitted."""
        assert not isinstance(entry, SessionState), "a session that prefetches has its row"
        started = self._table.find(entry.reply_id)
        if started is not None:
            self._faults.fail(started, error)
        elif isinstance(entry, Request):
            log.warning("reply %s could not begin", entry.reply_id, exc_info=error)
            self._table.remove(entry.reply_id, table_index)
            self._sessions.end_reply(entry.session_id)
            self.refuse(entry, f"this reply could not begin: {error}")

    def _close_speech(self, reply: ActiveReply) -> None:
        """Have the speech output forget a reply; one that cannot keeps nobody from going on."""
        try:
            self._speech.close(reply.reply_id)
        except torch.AcceleratorError:
            raise
        except BaseException:
            log.warning("the speech output could not close reply %s", reply.reply_id, exc_info=True)

    def time_out(self, now: float) -> None:
        """End the replies whose time is over.

        One that still emits tokens is stopped, and ends with the sound of those it has, unless its reader is
        behind; one that only waits for sound ends now.
        """
        for reply in [reply for reply in self._timed_out if self._table.is_blocked(reply)]:
            self.end(reply, "timeout")
        if now < self._table.next_deadline():
            return
        for request in [request for request in self._table.waiting() if now >= request.deadline_s]:
            self.cancel(request.reply_id, "timeout")
        late = [reply for reply in self._table.active if now >= reply.request.deadline_s]
        if late:
            self._decoder.settle()
        for reply in late:
            if reply.finish is None:
                self.stop(reply, "timeout")
                self._timed_out.add(reply)
            elif reply.finish not in ("timeout", "error"):
                self.end(reply, "timeout")

    def last_events(self, now: float, error: str) -> list[Event]:
        """The Done of every reply that is not over, for a core that can go no further."""
        self._table.end_feeds()
        waiting = [self._factory.make_unstarted(request) for request in self._table.waiting()]
        return [PendingDone(reply, "error", error).stamp(now) for reply in [*self._table.active, *waiting]]
