"""Sessions as the API sees them: opened, forked, exported, prefetched for, acknowledged, interrupted, closed."""

from __future__ import annotations

from collections import abc

from innervoice.model.text import TextStream, TextTokenizer
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.interrupt import Behind, Cut, check_choices, count_heard, cut_sequence
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.request import check_length
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.session_state import SessionState
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot
from innervoice.types import Heard, OutOfCapacity


class Sessions:
    """Operations on the sessions of a core, for its thread alone.

    num_late_acks: reports on replies before the last.
    """

    def __init__(
        self,
        registry: SessionRegistry,
        table: ReplyTable,
        completion: Completion,
        decoder: Decoder,
        pages: SequencePages,
        tokenizer: TextTokenizer,
        *,
        max_rows: int,
        max_model_len: int,
    ) -> None:
        self._registry = registry
        self._table = table
        self._completion = completion
        self._decoder = decoder
        self._pages = pages
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._max_model_len = max_model_len
        self.num_late_acks = 0

    @property
    def num_rows(self) -> int:
        """Rows in use: by sessions, and by single replies in progress."""
        return len(self._registry) + self._table.num_single

    def open(self, session_id: str, snapshot: SessionSnapshot | None = None) -> None:
        """Open a session, empty or as exported.

        Raises OutOfCapacity with the numbers, ValueError when it is too long.
        """
        if self.num_rows >= self._max_rows:
            raise OutOfCapacity(
                f"all {self._max_rows} sessions are in use: close one, or load the model with more max_sessions",
                1.0,
            )
        sequence = self._pages.new_sequence()
        if snapshot is not None:
            check_length(len(snapshot.ids), self._max_model_len)
            snapshot.fill(sequence)
        paused = None if snapshot is None else snapshot.paused
        self._registry.add(session_id, SessionState(sequence, paused))

    def fork(self, session_id: str, new_id: str) -> None:
        """Open a second session that shares the pages of the first; a reply in progress is paused in it.

        Raises ValueError for a session that is closed, OutOfCapacity.
        """
        session = self._registry.known(session_id)
        self._decoder.settle()
        self.open(new_id)
        sequence = session.sequence.fork()
        sequence.truncate(session.num_tokens)
        self._registry.add(new_id, SessionState(sequence, self._paused(session)))

    def export(self, session_id: str, model: str) -> SessionSnapshot:
        """The snapshot that restores a session; a reply in progress is paused in it.

        Raises ValueError for a closed one.
        """
        session = self._registry.known(session_id)
        self._decoder.settle()
        return SessionSnapshot.of(session.sequence, self._paused(session), model, session.num_tokens)

    def session_state(self, session_id: str) -> tuple[int, PausedReply | None]:
        """Tokens of the history, and the reply that a fork or a restore left unfinished.

        Raises ValueError while it replies.
        """
        session = self._registry.idle(session_id)
        return session.num_tokens, session.paused

    def close(self, session_id: str) -> None:
        """End the session's reply and free its pages. Raises ValueError for a session that is closed."""
        session = self._registry.known(session_id)
        if session.busy is not None:
            self._completion.cancel(session.busy)
        self._registry.remove(session_id)

    def prefetch(self, session_id: str, ids: abc.Sequence[int]) -> None:
        """Feed ahead, when there is room, the prompt of a user who still speaks: `ids` are its beginning as
        of now.

        Ids may change from call to call; no ids: forget them. In a session with a paused reply nothing is
        done. Raises ValueError for a session that replies or is closed, and for a prompt that does not fit.
        """
        session = self._registry.idle(session_id)
        if session.paused is not None:
            return
        if not ids:
            self._registry.end_prefetch(session)
            return
        check_length(session.num_tokens + len(ids), self._max_model_len)
        self._registry.prefetch(session, ids)

    def acknowledge(self, session_id: str, now: float, played_s: float, reply_id: str | None = None) -> None:
        """Take the player's report on the last reply; one on an earlier reply is counted.

        Raises ValueError, nothing changed.
        """
        session = self._registry.known(session_id)
        last = session.last
        is_known = reply_id is None or reply_id in session.reply_ids
        if last is None or (not is_known and reply_id != last.reply_id):
            played = "nothing" if reply_id is None else f"no reply {reply_id!r}"
            raise ValueError(f"{played} was played in this session: acknowledge what it replied")
        if reply_id is not None and reply_id != last.reply_id:
            if not played_s >= 0:
                raise ValueError(f"played_ms is {1e3 * played_s:g}: it must be 0 or more")
            self.num_late_acks += 1
            return
        last.playback.acknowledge(now, played_s)
        reply = self._table.find(last.reply_id)
        if reply is not None:
            self._table.update_sound(reply)

    def interrupt(
        self, session_id: str, now: float, played_s: float | None, cut: Cut, reflection: Behind
    ) -> Heard:
        """Stop the reply, if it is not over, and cut the history to its heard part, by the player's report or
        by the clock.

        Raises ValueError, nothing changed, for a session that has not replied, and for what `acknowledge` and
        `cut` refuse.
        """
        check_choices(cut, reflection)
        session = self._registry.known(session_id)
        last, busy = session.last, session.busy
        if busy is not None and self._table.find(busy) is None:  # it waits: nothing of it was heard
            self._completion.cancel(busy, "interrupted")
            return Heard(0, "", 0, session.num_tokens)
        if last is None:
            raise ValueError("there is nothing to interrupt: the session has not replied")
        if played_s is not None:
            last.playback.acknowledge(now, played_s)

        # The sequence is cut where the reply really ends, without a prompt behind it.
        self._registry.end_prefetch(session)
        if busy is not None:
            self._completion.cancel(busy, "interrupted")
        playback = last.playback
        num_heard = 0
        if playback.has_begun:
            heard_s = playback.heard_s(now)
            num_heard = count_heard(heard_s, last.codes_per_s, last.lag_s, last.codes_per_frame)
        kept = cut_sequence(
            session.sequence, last.number, last.speech, num_heard, cut, reflection, is_over=busy is None
        )
        transcript = TextStream(self._tokenizer).feed(kept.text_ids)
        return Heard(kept.num_speech, transcript, kept.unheard, len(session.sequence.ids))

    def _paused(self, session: SessionState) -> PausedReply | None:
        reply = self._table.find(session.busy)
        return session.paused if reply is None else reply.pause()
