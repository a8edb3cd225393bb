"""Sessions by id, which of them are busy, and the beginnings of prompts that they prefetch."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.text.dialogue import DialogueItem
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.session_state import LastReply, SessionState
from innervoice.types import Ids


class SessionRegistry:
    """Keeps the sessions of a core.

    num_prefetch_kept: prefetched tokens that a turn's prompt did begin with.
    """

    def __init__(self, table: ReplyTable) -> None:
        self._table = table
        self._sessions: dict[str, SessionState] = {}
        self._num_uses = 0
        self.num_prefetch_kept = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[SessionState]:
        return iter(self._sessions.values())

    def add(self, session_id: str, session: SessionState) -> None:
        """Add a session, or put another in its place."""
        self._sessions[session_id] = session

    def remove(self, session_id: str) -> None:
        """Forget a session and free its pages."""
        session = self._sessions.pop(session_id)
        self.end_prefetch(session)
        session.sequence.release()

    def known(self, session_id: str) -> SessionState:
        """The session of an id. Raises ValueError for one that is closed."""
        if session_id not in self._sessions:
            raise ValueError("the session is closed: open a new one, or restore it from an export")
        return self._sessions[session_id]

    def idle(self, session_id: str) -> SessionState:
        """The same, of a session without a reply that waits or is in progress. Raises ValueError."""
        session = self.known(session_id)
        if session.busy is not None:
            raise ValueError("the session is still replying: read that reply to its end or cancel it")
        return session

    def of_reply(self, session_id: str | None) -> SessionState | None:
        """The session of a request, None for a single reply."""
        return None if session_id is None else self.known(session_id)

    def begin_reply(self, session: SessionState, reply: ActiveReply, output: SpeechOutput) -> None:
        """Note that a session's reply begins."""
        session.num_prefetched = 0
        session.paused = None
        self._begin_item(session, reply)
        session.last = LastReply(
            reply_id=reply.reply_id,
            number=reply.number,
            speech=reply.request.program.vocabulary.speech or (0, 0),
            codes_per_s=output.codes_per_s,
            codes_per_frame=output.codes_per_frame,
            lag_s=output.lag_s,
            playback=reply.playback,
        )
        if reply.request.turn is not None:
            reply.request.turn.on_begun()

    def _begin_item(self, session: SessionState, reply: ActiveReply) -> None:
        """Add the reply to the session's items, with its prompt; a reply that goes on is among them already."""
        request, number = reply.request, reply.number
        turn, prompt = request.turn, request.prompt_ids
        if turn is not None:
            session.items = list(turn.items)
            session.head, session.own_head = turn.head, turn.own_head
        elif prompt:
            name = f"{request.reply_id}-prompt"
            session.items.append(DialogueItem(name, "prompt", (Ids(prompt),)))
        elif session.items:
            return
        name = request.reply_id if turn is None or turn.item_id is None else turn.item_id
        session.items.append(DialogueItem(name, "assistant", reply=number, reply_id=request.reply_id))

    def end_reply(self, session_id: str | None) -> None:
        """Note that the reply of a session, if it has one, is over."""
        session = self.of_reply(session_id)
        if session is not None:
            session.busy = None
            self._use(session)

    def release_oldest(self) -> bool:
        """Take back the pages of the idle session that was used least recently; its tokens stay.

        False: no session holds any.
        """
        idle = [session for session in self if session.busy is None and session.sequence.table.pages]
        if not idle:
            return False
        oldest = min(idle, key=lambda session: session.used)
        self.end_prefetch(oldest)
        oldest.sequence.release()
        return True

    def prefetch(self, session: SessionState, ids: abc.Sequence[int]) -> None:
        """Make `ids` the prefetched beginning of a session's next prompt, and keep the tokens that stay the
        same.
        """
        sequence = session.sequence
        same = _num_common(sequence.ids[session.num_tokens :], ids)
        session.drop_prefetched(keep=same)
        sequence.extend(ids[same:])
        session.num_prefetched = len(ids)
        self._use(session)
        self._table.begin_prefetch(session)

    def end_prefetch(self, session: SessionState, prompt_ids: abc.Sequence[int] = ()) -> None:
        """Stop prefetching; tokens that the turn's prompt does not begin with are taken back."""
        sequence = session.sequence
        self._table.end_prefetch(session)
        sequence.limit = None
        if session.num_prefetched:
            same = _num_common(sequence.ids[session.num_tokens :], prompt_ids[:-1])
            session.drop_prefetched(keep=same)
            session.num_prefetched = same
            self.num_prefetch_kept += same

    def _use(self, session: SessionState) -> None:
        self._num_uses += 1
        session.used = self._num_uses


def _num_common(one: abc.Sequence[int], other: abc.Sequence[int]) -> int:
    num = min(len(one), len(other))
    return next((i for i in range(num) if one[i] != other[i]), num)
