"""Events that have been made and wait for the time they are handed over."""

from __future__ import annotations

from typing import NamedTuple

from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.faults import Faults
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.schedule import Emission
from innervoice.types import Event, FinishReason, Pcm16, Samples


class PendingToken(NamedTuple):
    """An emitted token."""

    reply: ActiveReply
    emission: Emission
    logprob: float | None

    def stamp(self, now: float) -> Event:
        """The token's event, ready at `now`."""
        reply = self.reply
        t = now - reply.request.submitted_s
        return reply.events.token(self.emission, self.logprob, t=t, reserve_s=reply.playback.unplayed_s(now))


class PendingAudio(NamedTuple):
    """Samples of a reply, as the caller asked for them."""

    reply: ActiveReply
    pcm: Samples | Pcm16

    def stamp(self, now: float) -> Event:
        """The chunk's event, sent at `now`: the listener's clock goes on from here."""
        reply = self.reply
        event = reply.events.audio(self.pcm, t=now - reply.request.submitted_s)
        reply.playback.send(now, len(self.pcm) / reply.events.rate)
        return event


class PendingDone(NamedTuple):
    """The end of a reply. caps: those that its reflections had."""

    reply: ActiveReply
    reason: FinishReason
    error: str | None
    caps: tuple[int, ...] = ()

    def stamp(self, now: float) -> Event:
        """The reply's last event, ready at `now`."""
        reply = self.reply
        t = now - reply.request.submitted_s
        return reply.events.done(self.reason, self.error, self.caps, t=t)


PendingEvent = PendingToken | PendingAudio | PendingDone


class Outbox:
    """Pending events of all replies, in order. `drain` makes them events."""

    def __init__(self, table: ReplyTable, trace: ReplyTrace, faults: Faults) -> None:
        self._table = table
        self._trace = trace
        self._faults = faults
        self._pending: list[PendingEvent] = []
        self.put = self._pending.append  # add an event behind the others

    def __len__(self) -> int:
        return len(self._pending)

    def drain(self, now: float) -> list[Event]:
        """All pending events, stamped with the time `now`. One that cannot be made ends its reply."""
        pending = self._pending.copy()
        self._pending.clear()
        events: list[Event] = []
        for one in pending:
            with self._faults.owning(one.reply):
                event = one.stamp(now)
                events.append(event)
                if self._trace.enabled:  # before the next one moves the player's clock
                    self._trace.event(event, now)
        # The scheduler counts sound from the time it is sent.
        for one in pending:
            if type(one) is PendingAudio:
                self._table.update_sound(one.reply)
        return events
