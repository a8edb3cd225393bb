"""Every reply that waits or is in progress, by id and by its row of the scheduler's table. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, ValuesView
from typing import NamedTuple

import numpy as np

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.request import Request, end_feeds
from innervoice.runtime.scheduler import Phase, ReplyColumns
from innervoice.runtime.scheduler_view import SchedulerView
from innervoice.runtime.session_state import SessionState

Entry = Request | ActiveReply | SessionState
"""The owner of a row: a request that waits, a reply in progress, or a session that prefetches its next prompt."""


class WaitingRequest(NamedTuple):
    """A request without a row of the batch, and its row of the scheduler's table."""

    request: Request
    table_index: int


class ReplyTable:
    """Owns waiting requests, active replies and the scheduler's columns, which it keeps in step with both."""

    def __init__(self, speech: SpeechOutput) -> None:
        self._waiting: dict[str, WaitingRequest] = {}
        self._active: dict[str, ActiveReply] = {}
        self._entries: dict[int, Entry] = {}
        self._fed: dict[str, ActiveReply] = {}  # those that take ids from outside
        self._deadlines: dict[str, float] = {}  # of those requests that have one
        self._num_rows = 0  # of active replies
        self._view = SchedulerView(speech)
        self.columns: ReplyColumns = self._view.columns  # for the planner, which reads them
        self.update = self._view.update
        self.update_ready = self._view.update_ready
        self.update_prefetch = self._view.update_prefetch

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        """Replies in progress."""
        return len(self._active)

    @property
    def num_rows(self) -> int:
        """Rows that replies in progress hold, one for each of their contexts. Any thread may ask."""
        return self._num_rows

    @property
    def num_single_rows(self) -> int:
        """Rows of replies that belong to no session."""
        return sum(reply.num_rows for reply in self._active.values() if reply.request.session_id is None)

    @property
    def active(self) -> ValuesView[ActiveReply]:
        """Replies in progress, in the order in which they began."""
        return self._active.values()

    @property
    def fed(self) -> ValuesView[ActiveReply]:
        """Replies in progress whose schedule takes ids from outside."""
        return self._fed.values()

    @property
    def has_prompts_ahead(self) -> bool:
        """Whether a session has prompt tokens to prefetch."""
        columns = self.columns
        used = columns.indices
        return bool((columns.is_listening[used] & (columns.prompt_left[used] > 0)).any())

    def at(self, table_index: int) -> Entry:
        """The owner of a row."""
        return self._entries[table_index]

    def owner(self, table_index: int) -> Entry | None:
        """The same, None for a row that became free since it was planned for."""
        return self._entries.get(table_index)

    def find(self, reply_id: str | None) -> ActiveReply | None:
        """A reply in progress, None for any other."""
        return self._active.get(reply_id or "")

    def get(self, reply_id: str) -> ActiveReply:
        """A reply in progress. Raises KeyError for any other."""
        return self._active[reply_id]

    def enter(
        self, request: Request, now: float, *, num_tokens: int, num_cached: int, num_pages: int
    ) -> None:
        """Add a request that waits.

        num_tokens: of history and prompt; num_cached, num_pages: of its session's sequence.
        """
        index = self._view.add_request(
            request, now, num_tokens=num_tokens, num_cached=num_cached, num_pages=num_pages
        )
        self._entries[index] = request
        self._waiting[request.reply_id] = WaitingRequest(request, index)
        if request.deadline_s < math.inf:
            self._deadlines[request.reply_id] = request.deadline_s

    def take_waiting(self, reply_id: str) -> WaitingRequest | None:
        """Take a request out of those that wait; its row stays. None: it does not wait."""
        return self._waiting.pop(reply_id, None)

    def start(self, reply: ActiveReply) -> None:
        """Put a reply into the row of its request."""
        self._active[reply.reply_id] = reply
        self._num_rows += reply.num_rows
        self._entries[reply.table_index] = reply
        if reply.request.program.takes_ids:
            self._fed[reply.reply_id] = reply

    def set_phase(self, reply: ActiveReply, phase: Phase) -> None:
        """Change the phase, and all that depends on it: to WAITING for pages, or to PREFILL."""
        self.columns.phase[reply.table_index] = phase
        self._view.update(reply)
        if phase is Phase.WAITING:
            self.columns.prompt_left[reply.table_index] = reply.sequence.num_new

    def remove(self, reply_id: str, table_index: int) -> None:
        """Remove a reply that is over, or a request that was taken out; its feeds take nothing more."""
        entry = self._entries[table_index]
        if not isinstance(entry, SessionState):
            end_feeds(entry if isinstance(entry, Request) else entry.request)
        active = self._active.pop(reply_id, None)
        self._num_rows -= 0 if active is None else active.num_rows
        self._fed.pop(reply_id, None)
        self._deadlines.pop(reply_id, None)
        self._free(table_index)

    def begin_prefetch(self, session: SessionState) -> None:
        """Give a session a row for the beginning of its next prompt, which it may have already."""
        if session.table_index is None:
            session.table_index = self._view.add_prefetch()
            self._entries[session.table_index] = session
        self._view.update_prefetch(session)

    def end_prefetch(self, session: SessionState) -> None:
        """Free that row, if there is one."""
        if session.table_index is not None:
            self._free(session.table_index)
            session.table_index = None

    def update_sound(self, reply: ActiveReply) -> None:
        """Write how much of a reply's sound was sent, unless the reply is over."""
        if self._active.get(reply.reply_id) is reply:
            self._view.update_sound(reply)

    def set_blocked(self, reply_id: str, is_blocked: bool) -> None:
        """Note whether a reply's reader is behind: such a reply takes no part in steps.

        Replies that are over are left alone.
        """
        if reply_id in self._active:
            self.columns.is_blocked[self._active[reply_id].table_index] = is_blocked
        elif reply_id in self._waiting:
            self.columns.is_blocked[self._waiting[reply_id].table_index] = is_blocked

    def is_blocked(self, reply: ActiveReply) -> bool:
        """Whether the reader of a reply in progress is behind."""
        return bool(self.columns.is_blocked[reply.table_index])

    def waiting(self) -> Iterator[Request]:
        """Requests that wait, in order of arrival."""
        return (entry.request for entry in self._waiting.values())

    def first_waiting(self) -> int | None:
        """The row of the request or preempted reply that came first, None: nothing waits."""
        columns = self.columns
        used = columns.indices
        waiting = used[columns.phase[used] == Phase.WAITING]
        return int(waiting[np.argmin(columns.order[waiting])]) if len(waiting) else None

    def next_deadline(self) -> float:
        """The earliest deadline of those that a timeout has not stopped yet, +inf for none."""
        return min((at for key, at in self._deadlines.items() if not self._is_stopped(key)), default=math.inf)

    def end_feeds(self) -> None:
        """Let no feed take anything more: the core goes no further."""
        for entry in self._entries.values():
            if not isinstance(entry, SessionState):
                end_feeds(entry if isinstance(entry, Request) else entry.request)

    def _is_stopped(self, reply_id: str) -> bool:
        return reply_id in self._active and self._active[reply_id].finish in ("timeout", "error")

    def _free(self, table_index: int) -> None:
        self._view.remove(table_index)
        del self._entries[table_index]

    def check_integrity(self, num_prefetching: int) -> None:
        """Raise AssertionError where rows, requests and replies disagree."""
        num = len(self._entries)
        assert num == len(self.columns), "rows without owners"
        assert num == len(self._waiting) + len(self._active) + num_prefetching, "replies without rows"
        assert self._num_rows == sum(reply.num_rows for reply in self._active.values()), "rows miscounted"
