"""Sessions as the API sees them: opened, forked, exported, prefetched for, acknowledged, interrupted, closed."""

from __future__ import annotations

from collections import abc
from dataclasses import replace

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.sequence import TokenColumns
from innervoice.model.text import TextStream, TextTokenizer
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.interrupt import (
    Behind,
    Cut,
    CutReply,
    check_choices,
    count_heard,
    cut_sequence,
    cut_tokens,
)
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.request import check_length
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.session_state import History, LastReply, SessionState
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
        speech: SpeechOutput,
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
        self._speech = speech
        self._max_rows = max_rows
        self._max_model_len = max_model_len
        self.num_late_acks = 0

    @property
    def num_rows(self) -> int:
        """Rows in use: by sessions, and by single replies in progress, one for each context."""
        return len(self._registry) + self._table.num_single_rows

    def is_busy(self, session_id: str) -> bool:
        """Whether a reply of a session waits or is in progress; not in one that is closed."""
        return session_id in self._registry and self._registry.known(session_id).busy is not None

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
        if snapshot is None:
            self._registry.add(session_id, SessionState(sequence))
            return
        check_length(len(snapshot.ids), self._max_model_len)
        self._registry.add(session_id, SessionState.restored(snapshot, sequence))

    def fork(self, session_id: str, new_id: str) -> None:
        """Open a second session that shares the pages of the first; a reply in progress is paused in it.

        Raises ValueError for a session that is closed, OutOfCapacity.
        """
        session = self._registry.known(session_id)
        self._decoder.settle()
        self.open(new_id)
        sequence = session.sequence.fork()
        sequence.truncate(session.num_tokens)
        twin = replace(
            session,
            sequence=sequence,
            paused=self._paused(session),
            busy=None,
            last=None,
            reply_ids=set(),
            num_prefetched=0,
            table_index=None,
            items=list(session.items),
            sizes=dict(session.sizes),
        )
        self._registry.add(new_id, twin)

    def export(self, session_id: str, model: str) -> SessionSnapshot:
        """The snapshot that restores a session; a reply in progress is paused in it.

        Raises ValueError for a closed one.
        """
        session = self._registry.known(session_id)
        self._decoder.settle()
        return session.snapshot(self._paused(session), model)

    def history(self, session_id: str, *, tokens: bool = True, while_busy: bool = False) -> History:
        """A session's items, and its tokens if they are asked for.

        Raises ValueError for a closed one, and, unless while_busy, for one that replies.
        """
        session = (self._registry.known if while_busy else self._registry.idle)(session_id)
        return History(
            items=list(session.items),
            num_tokens=session.num_tokens,
            own=session.columns if tokens else TokenColumns.empty(),
            head=session.head,
            own_head=session.own_head,
            paused=session.paused,
            sizes=dict(session.sizes),
        )

    def set_history(self, session_id: str, history: History) -> None:
        """Give a session other items and tokens; those that stay the same from the first on keep their pages.

        Raises ValueError for a session that replies or is closed, and for a history that is too long.
        """
        session = self._registry.idle(session_id)
        check_length(len(history.own.ids), self._max_model_len)
        self._registry.end_prefetch(session)
        session.paused = history.paused
        session.items = list(history.items)
        session.sizes = dict(history.sizes)
        session.head, session.own_head = history.head, history.own_head
        self._pages.rewrite(session.sequence, history.own)

    def count_heard(self, played_s: float) -> int:
        """The number of speech tokens that were heard in played_s seconds of a reply."""
        speech = self._speech
        return count_heard(played_s, speech.codes_per_s, speech.lag_s, speech.codes_per_frame)

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
        self,
        session_id: str,
        now: float,
        played_s: float | None,
        cut: Cut,
        reflection: Behind,
        reply_id: str | None = None,
    ) -> Heard:
        """Stop the reply, if it is not over, and cut the history to its heard part, by the player's report or
        by the clock.

        reply_id: the reply that is meant, None: the last; for one that never began, or that another has
        followed, nothing is cut. Raises ValueError, nothing changed, for a session that has not replied, and
        for what `acknowledge` and `cut` refuse.
        """
        check_choices(cut, reflection)
        session = self._registry.known(session_id)
        last, busy = session.last, session.busy
        newest = busy or (None if last is None else last.reply_id)
        if reply_id not in (None, newest):
            if reply_id not in session.reply_ids:
                raise ValueError(f"there is no reply {reply_id!r} to interrupt: this session did not make it")
            return Heard(0, "", 0, session.num_tokens)
        if busy is not None and self._table.find(busy) is None:  # it waits: nothing of it was heard
            self._completion.cancel(busy, "interrupted")
            return Heard(0, "", 0, session.num_tokens)
        if last is None:
            raise ValueError("there is nothing to interrupt: the session has not replied")
        heard_s = self._heard_s(last, now, played_s)

        # The sequence is cut where the reply really ends, without a prompt behind it.
        self._registry.end_prefetch(session)
        if busy is not None:
            self._completion.cancel(busy, "interrupted")
        last.playback.stop(heard_s)
        kept = cut_sequence(
            session.sequence,
            last.number,
            last.speech,
            self._count_heard(last, heard_s),
            cut,
            reflection,
            is_over=busy is None,
            size=session.sizes.get(last.number),
        )
        session.sizes[last.number] = kept.size
        return self._report(kept, len(session.sequence.ids), heard_s)

    def heard(self, session_id: str, now: float) -> Heard:
        """The part of the last reply that was heard so far, by the player's report or by the clock; nothing is cut.

        Raises ValueError for a closed session; one that has not replied was not heard.
        """
        session = self._registry.known(session_id)
        last = session.last
        if last is None or (session.busy is not None and session.busy != last.reply_id):
            return Heard(0, "", 0, session.num_tokens)
        heard_s = last.playback.heard_s(now)
        own = session.sequence.columns(session.num_tokens).of_reply(last.number)
        num_heard = self._count_heard(last, heard_s)
        size, is_over = session.sizes.get(last.number), session.busy is None
        kept = cut_tokens(own, last.speech, num_heard, "transcript", "drop", is_over=is_over, size=size)
        return self._report(kept, session.num_tokens, heard_s)

    def _heard_s(self, last: LastReply, now: float, played_s: float | None) -> float:
        """Seconds of the last reply that were heard: played_s, which the player reports now, if it is given."""
        playback = last.playback
        before_s = playback.acknowledged_s
        if played_s is not None:
            playback.acknowledge(now, played_s)
        heard_s = playback.heard_s(now)
        return min(played_s, heard_s) if played_s is not None and played_s < before_s else heard_s

    def _count_heard(self, last: LastReply, heard_s: float) -> int:
        if not last.playback.has_begun:
            return 0
        return count_heard(heard_s, last.codes_per_s, last.lag_s, last.codes_per_frame)

    def _report(self, kept: CutReply, num_tokens: int, heard_s: float) -> Heard:
        transcript = TextStream(self._tokenizer).feed(kept.text_ids)
        return Heard(kept.num_speech, transcript, kept.unheard, num_tokens, round(1e3 * heard_s, 3))

    def _paused(self, session: SessionState) -> PausedReply | None:
        reply = self._table.find(session.busy)
        return session.paused if reply is None else reply.pause()
