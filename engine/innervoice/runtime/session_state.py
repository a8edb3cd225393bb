"""A session between turns: its sequence, the reply that it waits for, and the beginning of its next prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from innervoice.model.sequence import Sequence
from innervoice.runtime.playback import Playback
from innervoice.runtime.snapshot import PausedReply


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


@dataclass(eq=False)
class SessionState:
    """A session as the core keeps it.

    paused: an unfinished reply that the next request may go on with. busy: id of the reply that waits or is
    in progress. reply_ids: all that were ever submitted. used: a counter's value when the session was last
    needed. num_prefetched: tokens at the sequence's end that the user has said so far and may still change.
    table_index: its row of the scheduler's table while it prefetches.
    """

    sequence: Sequence
    paused: PausedReply | None = None
    busy: str | None = None
    last: LastReply | None = None
    reply_ids: set[str] = field(default_factory=set)
    used: int = 0
    num_prefetched: int = 0
    table_index: int | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the history, without prefetched tokens."""
        return len(self.sequence.ids) - self.num_prefetched

    def drop_prefetched(self, keep: int = 0) -> None:
        """Take prefetched tokens back, but for the first `keep`, which are part of the history from now on."""
        self.sequence.truncate(self.num_tokens + keep)
        self.num_prefetched = 0
