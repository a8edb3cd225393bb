"""A dialogue between turns: its row, and what continues a reply that it was cut out of. Exported as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from innervoice.model.sequence import Sequence
from innervoice.runtime.playback import Playback
from innervoice.runtime.snapshot import PausedReply


@dataclass(frozen=True)
class LastReply:
    """The reply that a dialogue heard last, running or over: what an interruption needs. number: within the row."""

    reply_id: str
    number: int
    speech: tuple[int, int]
    codes_per_s: float
    playback: Playback


@dataclass
class SessionState:
    """A session as the core keeps it.

    busy: the reply that is running, if any. last: the one that is, or was, heard. replies: ids of all it ever made. used: when it
    was last needed, as a count. draft: how many tokens at the row's end are guessed: what a user who still speaks has said.
    """

    row: Sequence
    paused: PausedReply | None = None
    busy: str | None = None
    last: LastReply | None = None
    replies: set[str] = field(default_factory=set)
    used: int = 0
    draft: int = 0
    draft_place: int | None = None

    def drop_draft(self, keep: int = 0) -> None:
        """Take what is guessed back, but for its first `keep` tokens, which are certain now."""
        self.row.truncate(len(self.row.ids) - self.draft + keep)
        self.draft = 0
