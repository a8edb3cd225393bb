"""Admission and preemption of replies: queued, given a row and pages, and without pages again when others
need them more.
"""

from __future__ import annotations

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.pages import PagePool
from innervoice.model.sequence import Sequence
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.fused_contexts import fused_tokens
from innervoice.runtime.reply_factory import ReplyFactory
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.request import Request, check_length
from innervoice.runtime.scheduler import Phase, SchedulerSettings
from innervoice.runtime.scheduler.settings import Preempt
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.session_state import SessionState
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.types import OutOfCapacity


class Admission:
    """Admits and preempts replies. preempt_by: how keys and values of a preempted reply come back."""

    def __init__(
        self,
        table: ReplyTable,
        sessions: SessionRegistry,
        decoder: Decoder,
        emitter: Emitter,
        speech: SpeechOutput,
        pages: SequencePages,
        factory: ReplyFactory,
        trace: ReplyTrace,
        *,
        max_rows: int,
        max_model_len: int,
        max_waiting: int | None,
        preempt_by: Preempt,
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._decoder = decoder
        self._emitter = emitter
        self._speech = speech
        self._pages = pages
        self._factory = factory
        self._trace = trace
        self._max_rows = max_rows
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._preempt_by = preempt_by
        self.num_preempted = 0

    def submit(self, request: Request, now: float | None = None) -> SessionSnapshot | None:
        """Queue a request -> the history before a session's turn, None for a single reply.

        now: None: when it was made. Raises ValueError for a turn whose session is busy, closed, or with it
        too long; OutOfCapacity when as many replies wait as may.
        """
        now = request.submitted_s if now is None else now
        session = None if request.session_id is None else self._sessions.idle(request.session_id)
        history = 0 if session is None else session.num_tokens
        if request.history is not None:
            history = len(request.history.ids)
        num_tokens = history + len(request.prompt_ids)
        check_length(num_tokens, self._max_model_len)
        self.check_room()
        for context in request.contexts:
            check_length(len(context), self._max_model_len)
        num_tokens += fused_tokens(map(len, request.contexts), self._pages.page_size)

        # A turn goes on with its session's sequence, and keeps of a prefetched prompt what is right.
        snapshot, num_cached, num_pages = None, 0, 0
        if session is not None:
            self._sessions.end_prefetch(session, request.prompt_ids if request.history is None else ())
            num_cached = session.sequence.num_cached
            if request.history is not None:
                num_cached = min(num_cached, session.sequence.num_common(request.history))
            num_pages = len(session.sequence.table.pages)
            snapshot = session.plain_snapshot(
                session.paused if request.history is None else None,
                session.sequence.columns(history) if request.history is None else request.history,
            )
        self._table.enter(request, now, num_tokens=num_tokens, num_cached=num_cached, num_pages=num_pages)
        if session is not None:  # last: a request that could not enter leaves its session free
            session.busy = request.reply_id
            session.reply_ids.add(request.reply_id)
        if self._trace.enabled:
            self._trace.submitted(request, now)
        return snapshot

    def check_room(self, num_coming: int = 0) -> None:
        """Raise OutOfCapacity when no more replies may wait, with so many that are on their way.

        Thread-safe.
        """
        if self._max_waiting is None:
            return
        num_active, num_waiting = self._table.num_active, self._table.num_waiting
        num_free = max(0, self._max_rows - self._table.num_rows)
        if num_waiting + num_coming >= self._max_waiting + num_free:
            raise OutOfCapacity(
                f"{num_active} replies run and {num_waiting} wait, as many as may: try again, or load the model with "
                "a larger max_waiting",
                1.0,
            )

    def make_room(self, settings: SchedulerSettings, pool: PagePool) -> None:
        """Take pages of idle sessions back when active replies, and the first that waits, are about to need
        them.
        """
        columns = self._table.columns
        used = columns.indices
        num_waiting = int((columns.phase[used] == Phase.WAITING).sum())
        size = settings.page_size
        need = 2 * (len(used) - num_waiting + int(columns.more_rows[used].sum())) + -(
            -settings.prefill_chunk // size
        )
        first = self._table.first_waiting() if num_waiting else None
        if first is not None:
            need += int(columns.context[first]) // size + 2 - int(columns.pages[first])
        while pool.num_available < min(need, pool.num_pages) and self._sessions.release_oldest():
            pass

    def admit(self, table_index: int) -> None:
        """Give a row and pages to a request that waits, or again to a preempted reply."""
        entry = self._table.at(table_index)
        if isinstance(entry, Request):
            self._start(entry, table_index)
            return
        assert isinstance(entry, ActiveReply), "a session that prefetches has its row"
        self._pages.adopt(entry.sequence)
        if entry.host_pages is not None:
            self._pages.load(entry.sequence, entry.host_pages)
            entry.host_pages = None
        self._table.set_phase(entry, Phase.PREFILL)
        if self._trace.enabled:
            self._trace.admitted(entry, again=True)

    def preempt(self, table_index: int) -> None:
        """Take the pages of a reply, which waits for a row again, or of a session that prefetches, which
        forgets that.
        """
        entry = self._table.at(table_index)
        if isinstance(entry, SessionState):
            self._sessions.end_prefetch(entry)
            entry.sequence.release()
            return
        assert isinstance(entry, ActiveReply), "a reply without a row holds no pages"
        self._decoder.leave(entry)
        if self._preempt_by == "swap":
            entry.host_pages = self._pages.save(entry.sequence)
        for sequence in entry.sequences:
            sequence.release()
        self._table.set_phase(entry, Phase.WAITING)
        self.num_preempted += 1

    def _start(self, request: Request, table_index: int) -> None:
        self._table.take_waiting(request.reply_id)
        session = self._sessions.of_reply(request.session_id)
        sequence = self._pages.new_sequence() if session is None else session.sequence
        num_before = len(sequence.ids)
        try:
            self._begin(request, table_index, session, sequence)
        except BaseException:
            if self._table.find(request.reply_id) is None:  # else it ends as any reply
                self._take_back(session, sequence, num_before)
            raise

    def _take_back(self, session: SessionState | None, sequence: Sequence, num_before: int) -> None:
        """Undo the beginning of a reply that did not get into the table."""
        if session is None:
            sequence.release()
        else:
            sequence.truncate(min(num_before, len(sequence.ids)))
            session.drop_prefetched()

    def _begin(
        self, request: Request, table_index: int, session: SessionState | None, sequence: Sequence
    ) -> None:
        paused = None if session is None else session.paused
        num_prefetched = 0 if session is None else session.num_prefetched

        # A prompt begins a new turn in place of the rest of a paused reply.
        if request.history is not None:
            self._pages.rewrite(sequence, request.history)
            paused = None
        elif paused is not None and request.prompt_ids:
            if paused.cursor.is_done:
                sequence.drop_last()
            paused = None
        sequence.extend(request.prompt_ids[num_prefetched:])
        self._pages.adopt(sequence)
        reply = self._factory.make(request, table_index, sequence, paused)
        self._table.start(reply)
        self._speech.open(request.reply_id)
        if session is not None:
            self._sessions.begin_reply(session, reply, self._speech)
        if paused is not None:
            self._emitter.resume(reply, paused)
        self._emitter.emit_forced(reply)
        self._table.set_phase(reply, Phase.PREFILL)
        if self._trace.enabled:
            self._trace.admitted(reply)
