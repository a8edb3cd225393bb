"""FeedStep: gives replies that wait the ids of their feeds, before each step. Reads no clock."""

from __future__ import annotations

import math

from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.completion import Completion
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.feed import Feed
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.scheduler import Phase
from innervoice.schedule import Cursor, ProgramColumn, next_feed

_BUDGET = int(ProgramColumn.BUDGET)


class FeedStep:
    """Feeds the replies whose schedules take ids from outside; `wake_s`: when the first of them waits too long."""

    def __init__(
        self, table: ReplyTable, decoder: Decoder, emitter: Emitter, completion: Completion, faults: Faults
    ) -> None:
        self._table = table
        self._decoder = decoder
        self._emitter = emitter
        self._completion = completion
        self._faults = faults
        self._since_s: dict[ActiveReply, float] = {}  # of those that wait
        self.wake_s = math.inf

    def step(self, now: float) -> None:
        """Give every reply that waits what its feed has, and end those that have waited too long."""
        self.wake_s = math.inf
        waiting = self._since_s
        self._since_s = {}
        for reply in list(self._table.fed):
            with self._faults.owning(reply):
                self._end_feeds(reply)
                if reply.finish is None and isinstance(reply.cursor, Cursor):
                    self._close_thought(reply, reply.cursor)
                    if reply.cursor.waits and reply.device_row is None:
                        self._feed(reply, reply.cursor, waiting.get(reply, now), now)

    def _end_feeds(self, reply: ActiveReply) -> None:
        """Let nothing more be put into feeds that the reply has closed, or into any once it is over."""
        for name, feed in reply.request.feeds.items():
            if reply.finish is not None or name in reply.cursor.closed:
                feed.end()

    def _close_thought(self, reply: ActiveReply, cursor: Cursor) -> None:
        """Close what a listener's reflection thinks once the next piece of the input is there."""
        coming = (
            next_feed(cursor) if reply.request.is_live and cursor.count and cursor.is_reflecting else None
        )
        if coming is None or cursor.limit <= cursor.count:
            return
        feed = reply.request.feeds[coming.name]
        if feed.is_closed or (coming.budget is not None and feed.num_unread >= coming.budget):
            self._decoder.grant(reply, cursor.count)

    def _feed(self, reply: ActiveReply, cursor: Cursor, since_s: float, now: float) -> None:
        """Emit the ids that are there, until it waits for nothing, or for more."""
        num_before = reply.num_tokens
        while cursor.waits and reply.finish is None:
            name = cursor.feed_name
            if name is None:  # the scores of a choice are no caller's to give
                break
            feed = reply.request.feeds[name]
            if self._take(reply, cursor, feed):
                continue
            if feed.failure is not None:
                self._fail(reply, f"the feed {name!r} of this reply failed: {feed.failure}")
            elif feed.is_spent:
                cursor.close_feed()
            else:
                since_s = now if reply.num_tokens > num_before else since_s
                self._wait(reply, name, feed.timeout_s, since_s, now)
                break
        self._emitter.emit_forced(reply)
        if reply.finish is not None or reply.num_tokens > num_before or not cursor.waits:
            go_on(self._table, reply)

    def _take(self, reply: ActiveReply, cursor: Cursor, feed: Feed) -> bool:
        """Emit what the open segment may take -> whether there was anything."""
        budget = cursor.program.rows[cursor.row][_BUDGET]
        taken = feed.take(None if budget < 0 else budget - cursor.count)
        for token in taken:
            if reply.finish is not None:
                break
            self._emitter.emit(reply, cursor.feed(token), None)
        return bool(taken)

    def _wait(self, reply: ActiveReply, name: str, timeout_s: float, since_s: float, now: float) -> None:
        self._since_s[reply] = since_s
        if now - since_s < timeout_s:
            self.wake_s = min(self.wake_s, since_s + timeout_s)
            return
        self._fail(
            reply,
            f"this reply has waited {timeout_s:g} s for its feed {name!r}: put something, close it, or give the Feed a "
            "longer timeout_s",
        )

    def _fail(self, reply: ActiveReply, error: str) -> None:
        reply.error = error
        self._completion.stop(reply, "error")


def go_on(table: ReplyTable, reply: ActiveReply) -> None:
    """Let the model be fed what a reply was given; without pages it waits for them first."""
    if reply.finish is not None:
        table.update(reply)
        return
    waits = table.columns.phase[reply.table_index] == Phase.WAITING
    table.set_phase(reply, Phase.WAITING if waits else Phase.PREFILL)
