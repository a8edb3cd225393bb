"""A session between turns: its sequence, the reply that it waits for, and the beginning of its next prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from innervoice.model.sequence import Sequence, TokenColumns
from innervoice.model.text.dialogue import DialogueItem
from innervoice.model.token_role import TokenRole
from innervoice.runtime.history import derive_items
from innervoice.runtime.interrupt import ReplySize
from innervoice.runtime.playback import Playback
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot


@dataclass(frozen=True)
class LastReply:
    """The session's last reply that began, in progress or over, as an interruption needs it.

    number: of the reply within the sequence. speech: range of speech ids [first, end). codes_per_s,
    codes_per_frame, lag_s: of its speech output.
    """

    reply_id: str
    number: int
    speech: tuple[int, int]
    codes_per_s: float
    codes_per_frame: int
    lag_s: float
    playback: Playback


@dataclass(frozen=True)
class History:
    """The items and tokens of a session, as its caller reads and replaces them; fields as in `SessionState`.

    num_tokens: length of the history. own: the tokens, those of all replies among them; empty where they were
    not asked for.
    """

    items: list[DialogueItem]
    num_tokens: int
    own: TokenColumns
    head: str | None = None
    own_head: str | None = None
    paused: PausedReply | None = None
    sizes: dict[int, ReplySize] = field(default_factory=dict)


@dataclass(eq=False)
class SessionState:
    """A session as the core keeps it.

    paused: an unfinished reply that the next request may go on with. busy: id of the reply that waits or is
    in progress. reply_ids: all that were ever submitted. used: a counter's value when the session was last
    needed. num_prefetched: tokens at the sequence's end that the user has said so far and may still change.
    table_index: its row of the scheduler's table while it prefetches. items: what the history consists of; the
    last is a reply. head: the system text before them; own_head: the one that the next reply goes back to. sizes: of
    replies that were cut, by their numbers.
    """

    sequence: Sequence
    paused: PausedReply | None = None
    busy: str | None = None
    last: LastReply | None = None
    reply_ids: set[str] = field(default_factory=set)
    used: int = 0
    num_prefetched: int = 0
    table_index: int | None = None
    items: list[DialogueItem] = field(default_factory=list)
    head: str | None = None
    own_head: str | None = None
    sizes: dict[int, ReplySize] = field(default_factory=dict)

    @classmethod
    def restored(cls, snapshot: SessionSnapshot, sequence: Sequence) -> SessionState:
        """The session of a snapshot, whose tokens are put into the sequence, which is empty."""
        sequence.log_weights = list(snapshot.weights)
        for token, role, reply in zip(snapshot.ids, snapshot.roles, snapshot.replies, strict=True):
            sequence.append(token, TokenRole(role), reply)
        items = list(snapshot.items) or derive_items(sequence.columns(len(snapshot.ids)))
        if items and not items[-1].reply:  # the last reply has no token
            last = len(sequence.log_weights) - 1
            number = sequence.begin_reply(0.0) if last in (0, *sequence.replies) else last
            items.append(DialogueItem("item-last", "assistant", reply=number))
        made = cls(sequence, snapshot.paused, items=items)
        made.head, made.own_head = snapshot.head, snapshot.own_head
        return made

    def snapshot(self, paused: PausedReply | None, model: str) -> SessionSnapshot:
        """The history as it is, without prefetched tokens; paused: the reply that goes on elsewhere."""
        made = self.plain_snapshot(paused, self.sequence.columns(self.num_tokens), model)
        return replace(made, items=list(self.items), head=self.head, own_head=self.own_head)

    def plain_snapshot(
        self, paused: PausedReply | None, own: TokenColumns, model: str = ""
    ) -> SessionSnapshot:
        """Tokens as the history, whose items are not known."""
        weights = list(self.sequence.log_weights)
        return SessionSnapshot(model, own.ids, own.roles, own.replies, weights, paused)

    @property
    def columns(self) -> TokenColumns:
        """The history's tokens, without those of a paused reply's end, which the next turn begins with."""
        is_ended = self.paused is not None and self.paused.cursor.is_done
        return self.sequence.columns(self.num_tokens - is_ended)

    @property
    def num_tokens(self) -> int:
        """Length of the history, without prefetched tokens."""
        return len(self.sequence.ids) - self.num_prefetched

    def drop_prefetched(self, keep: int = 0) -> None:
        """Take prefetched tokens back, but for the first `keep`, which are part of the history from now on."""
        self.sequence.truncate(self.num_tokens + keep)
        self.num_prefetched = 0
