"""The dialogues that a core keeps: opened, forked, exported, listened to, interrupted, and put to rest when pages are short."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator
from typing import Protocol

from innervoice.model.sequence import Sequence
from innervoice.model.text import TextStream, TextTokenizer
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.interrupt import Behind, Cut, check_choices, cut_row, heard_codes
from innervoice.runtime.scheduler_view import SchedulerView
from innervoice.runtime.session_state import LastReply, SessionState
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot
from innervoice.types import FinishReason, Heard, OutOfCapacity


class Keeper(Protocol):
    """What the dialogues need of those who keep them."""

    ledger: SchedulerView
    max_rows: int
    tokenizer: TextTokenizer

    @property
    def num_rows(self) -> int:
        """Rows in use."""

    def new_row(self) -> Sequence:
        """An empty row."""

    def check_length(self, num_tokens: int) -> None:
        """Raise ValueError for a history that leaves no room for a reply."""

    def cancel(self, reply_id: str, reason: FinishReason = "cancelled") -> None:
        """End a reply now."""

    def running(self, reply_id: str | None) -> ActiveReply | None:
        """A reply that has begun."""

    def settle(self) -> bool:
        """Let every reply stand where it really does."""


class Sessions:
    """Dialogues by session id. Belongs to one keeper and is as thread-safe as that: not at all."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._dialogues: dict[str, SessionState] = {}
        self._num_uses = 0
        self.num_late_acks = 0
        self.num_drafted = self.num_draft_kept = (
            0  # tokens fed ahead of a turn's end, and those that were right
        )

    def __len__(self) -> int:
        return len(self._dialogues)

    def __iter__(self) -> Iterator[SessionState]:
        return iter(self._dialogues.values())

    def open(self, session_id: str, export: SessionSnapshot | None = None) -> None:
        """A new dialogue, empty or as exported. Raises OutOfCapacity with the numbers, ValueError when it is too long."""
        keeper = self._keeper
        if keeper.num_rows >= keeper.max_rows:
            raise OutOfCapacity(
                f"all {keeper.max_rows} sessions are in use: close one, or load the model with more max_sessions",
                1.0,
            )
        row = keeper.new_row()
        if export is not None:
            keeper.check_length(len(export.ids))
            export.fill(row)
        self._dialogues[session_id] = SessionState(row, None if export is None else export.paused)

    def fork(self, session_id: str, new_id: str) -> None:
        """A second dialogue that shares the pages of the first; a running reply is paused in it. Raises OutOfCapacity."""
        dialogue = self.known(session_id)
        self._keeper.settle()
        self.open(new_id)
        row = dialogue.row.fork()
        row.truncate(len(row.ids) - dialogue.draft)
        self._dialogues[new_id] = SessionState(row, self._paused(dialogue))

    def export(self, session_id: str, model: str) -> SessionSnapshot:
        """What restores the dialogue; a running reply is paused in it."""
        dialogue = self.known(session_id)
        self._keeper.settle()
        return SessionSnapshot.of(
            dialogue.row, self._paused(dialogue), model, len(dialogue.row.ids) - dialogue.draft
        )

    def session_state(self, session_id: str) -> tuple[int, PausedReply | None]:
        """Tokens of its history, and the reply that a fork or a restore left unfinished. Raises ValueError while it replies."""
        dialogue = self.idle(session_id)
        return len(dialogue.row.ids) - dialogue.draft, dialogue.paused

    def close(self, session_id: str) -> None:
        """End its reply and free its pages. Raises ValueError for a dialogue that is not there."""
        dialogue = self.known(session_id)
        if dialogue.busy is not None:
            self._keeper.cancel(dialogue.busy)
        self.end_draft(dialogue)
        del self._dialogues[session_id]
        dialogue.row.release()

    def known(self, session_id: str) -> SessionState:
        """A dialogue. Raises ValueError for one that is not there."""
        if session_id not in self._dialogues:
            raise ValueError("the session is closed: open a new one, or restore it from an export")
        return self._dialogues[session_id]

    def idle(self, session_id: str) -> SessionState:
        """A dialogue that does not reply. Raises ValueError."""
        dialogue = self.known(session_id)
        if dialogue.busy is not None:
            raise ValueError("the session is still replying: read that reply to its end or cancel it")
        return dialogue

    def rest(self, dialogue: SessionState) -> None:
        """Its reply is over."""
        self._num_uses += 1
        dialogue.busy, dialogue.used = None, self._num_uses

    def speaks(self, dialogue: SessionState, running: ActiveReply, codes_per_s: float) -> None:
        """Its reply begins."""
        speech = running.request.program.vocabulary.speech or (0, 0)
        dialogue.last = LastReply(
            running.request.reply_id, running.number, speech, codes_per_s, running.playback
        )

    def release_oldest(self) -> bool:
        """Take back the pages of the idle dialogue that was used least lately; False: none holds any. Its tokens stay."""
        idle = [d for d in self if d.busy is None and d.row.table.pages]
        if not idle:
            return False
        oldest = min(idle, key=lambda d: d.used)
        self.end_draft(oldest)
        oldest.row.release()
        return True

    def listen(self, session_id: str, ids: abc.Sequence[int]) -> None:
        """What a user who still speaks has said so far, as the beginning of the next turn's prompt: fed ahead when there is room.

        Ids may change from call to call, none takes them back; what stays the same is kept. Nothing is done in a session that
        holds a reply that was cut out. Raises ValueError for one that replies or is gone, and for a prompt that does not fit.
        """
        dialogue = self.idle(session_id)
        if dialogue.paused is not None:
            return
        if not ids:
            self.end_draft(dialogue)
            return
        row = dialogue.row
        history = len(row.ids) - dialogue.draft
        self._keeper.check_length(history + len(ids))
        same = _num_common(row.ids[history:], ids)
        self.num_drafted += len(ids) - same
        dialogue.drop_draft(keep=same)
        row.extend(ids[same:])
        dialogue.draft = len(ids)
        if dialogue.draft_place is None:
            dialogue.draft_place = self._keeper.ledger.enter_listener(dialogue)
        self._num_uses += 1
        dialogue.used = self._num_uses
        self._keeper.ledger.update_listener(dialogue)

    def end_draft(self, dialogue: SessionState, prompt_ids: abc.Sequence[int] = ()) -> None:
        """The turn is over, and this is its prompt: what was fed ahead and is not its beginning is taken back."""
        row = dialogue.row
        if dialogue.draft_place is not None:
            self._keeper.ledger.leave(dialogue.draft_place)
            dialogue.draft_place = None
        row.limit = None
        if dialogue.draft:
            history = len(row.ids) - dialogue.draft
            same = _num_common(row.ids[history:], prompt_ids[:-1])
            dialogue.drop_draft(keep=same)
            dialogue.draft = same
            self.num_draft_kept += same

    def acknowledge(self, session_id: str, now: float, played_s: float, reply_id: str | None = None) -> None:
        """The player's report on the last reply; one on an earlier reply is counted. Raises ValueError, nothing changed."""
        dialogue = self.known(session_id)
        last = dialogue.last
        if last is None or (
            reply_id is not None and reply_id != last.reply_id and reply_id not in dialogue.replies
        ):
            told = "nothing" if reply_id is None else f"no reply {reply_id!r}"
            raise ValueError(f"{told} was played in this session: acknowledge what it replied")
        if reply_id is not None and reply_id != last.reply_id:
            if not played_s >= 0:
                raise ValueError(f"played_ms is {1e3 * played_s:g}: it must be 0 or more")
            self.num_late_acks += 1
            return
        last.playback.acknowledge(now, played_s)
        running = self._keeper.running(last.reply_id)
        if running is not None:
            self._keeper.ledger.update_sound(running)

    def interrupt(
        self, session_id: str, now: float, played_s: float | None, cut: Cut, reflection: Behind
    ) -> Heard:
        """Stop the reply, if it still runs, and cut the history to what was heard of it, by the player's word or by the clock.

        Raises ValueError, nothing changed, for a session that has not replied, and for what `acknowledge` and `cut` refuse.
        """
        check_choices(cut, reflection)
        dialogue = self.known(session_id)
        last, busy = dialogue.last, dialogue.busy
        if (
            busy is not None and self._keeper.running(busy) is None
        ):  # it waits for its turn: nothing of it was heard
            self._keeper.cancel(busy, "interrupted")
            return Heard(0, "", 0, len(dialogue.row.ids) - dialogue.draft)
        if last is None:
            raise ValueError("there is nothing to interrupt: the session has not replied")
        if played_s is not None:
            last.playback.acknowledge(now, played_s)
        self.end_draft(dialogue)
        if busy is not None:
            self._keeper.cancel(busy, "interrupted")
        num_heard = (
            heard_codes(last.playback.heard_s(now), last.codes_per_s) if last.playback.has_begun else 0
        )
        kept = cut_row(
            dialogue.row, last.number, last.speech, num_heard, cut, reflection, is_over=busy is None
        )
        transcript = TextStream(self._keeper.tokenizer).feed(kept.text_ids)
        return Heard(kept.num_speech, transcript, kept.unheard, len(dialogue.row.ids))

    def _paused(self, dialogue: SessionState) -> PausedReply | None:
        running = self._keeper.running(dialogue.busy)
        return dialogue.paused if running is None else running.pause()


def _num_common(one: abc.Sequence[int], other: abc.Sequence[int]) -> int:
    num = min(len(one), len(other))
    return next((i for i in range(num) if one[i] != other[i]), num)
