"""Lines of a trace for each reply: its decisions, segments, sound and playback below one heading.

Reads no clock. The parts of the core call it, and only while a trace is recorded; the times that they pass
are the tracer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import Phase, ReplyColumns, SchedulerSettings, StepPlan
from innervoice.runtime.scheduler.admission import num_pages
from innervoice.runtime.scheduler.table import more_rows
from innervoice.schedule import UNLIMITED, TokenKind
from innervoice.telemetry.trace import Lines, Tracer
from innervoice.types import AudioChunk, Done, Event, TokenEvent

LINES = ("decisions", "segments", "sound", "playback")
_DECISIONS, _SEGMENTS, _SOUND, _PLAYBACK = range(len(LINES))
Why = tuple[str, Mapping[str, object]]
_CUT = ("cancelled", "interrupted")  # reasons for which sound is not heard to its end


@dataclass
class _Drawn:
    """A reply, as far as it is drawn.

    segment: kind and number of the open one; dry_s: time at which its sent sound is played. last_cap: number
    of a reflection and its cap, as drawn last.
    """

    lines: Lines
    reply: ActiveReply | None = None
    state: str = ""
    segment: tuple[str, int] | None = None
    num_tokens: int = 0
    num_hidden: int = 0
    last_cap: tuple[int, int] | None = None
    cap: int = UNLIMITED
    last_s: float = 0.0
    chosen_s: float | None = None
    dry_s: float = -math.inf


class ReplyTrace:
    """Draws the replies of a core.

    find: a reply in progress by its id, for those that began before the trace did.
    """

    def __init__(self, tracer: Tracer, find: Callable[[str], ActiveReply | None]) -> None:
        self._tracer, self._find = tracer, find
        self._drawn: dict[str, _Drawn] = {}
        self._number = 0
        self._now = 0.0

    @property
    def enabled(self) -> bool:
        """Whether a trace is recorded: nothing else may be called while none is."""
        return self._tracer.enabled

    def submitted(self, request: Request, now: float) -> None:
        """Draw that a reply waits from now on."""
        drawn = self._of(request.reply_id, request, now)
        session = {} if request.session_id is None else {"session": request.session_id}
        prompt = len(request.prompt_ids)
        drawn.lines.instant(_DECISIONS, "submitted", now, prompt=prompt, priority=request.priority, **session)

    def planned(
        self, plan: StepPlan, table: ReplyTable, settings: SchedulerSettings, pages_free: int, now: float
    ) -> None:
        """Draw a step's plan before it is carried out: each reply's part in it, and the reason."""
        self._now = now
        step = _Step(plan, table.columns, settings, pages_free, now)
        for table_index in table.columns.indices.tolist():
            entry = table.at(table_index)
            if isinstance(entry, (Request, ActiveReply)):
                self._state(self._of_entry(entry, now), *step.why_not(table_index), now)
                if isinstance(entry, ActiveReply):
                    self._count(entry, table.columns, table_index, now)
        for table_index in plan.preempt:
            entry = table.at(table_index)
            if isinstance(entry, ActiveReply):
                why = {
                    "reason": step.why_preempted(table_index),
                    "pages": int(table.columns.pages[table_index]),
                    "pages_free": pages_free,
                }
                self._of_entry(entry, now).lines.instant(_DECISIONS, "preempted", now, **why)
        drawing = len(plan.decode) + more_rows(table.columns, plan.decode)
        prompts = sum(num for _, num in plan.prefill)
        if drawing or prompts:
            self._tracer.counter("batch", rows=drawing, prompt_tokens=prompts)

    def admitted(self, reply: ActiveReply, *, again: bool = False) -> None:
        """Draw that a reply got its row."""
        drawn = self._of_entry(reply, self._now)
        drawn.reply, drawn.last_s = reply, self._now
        waited_s, sequence = self._now - reply.request.submitted_s, reply.sequence
        name, cached = "admitted again" if again else "admitted", sequence.num_cached
        drawn.lines.instant(
            _DECISIONS, name, self._now, waited_s=round(waited_s, 6), tokens=len(sequence.ids), cached=cached
        )

    def granted(self, reply: ActiveReply, cap: int) -> None:
        """Draw a cap that the scheduler gave a reply's open reflection, when it is another than before."""
        cursor = reply.cursor
        if cursor.kind is not TokenKind.REFLECTION or not cursor.is_reflecting:
            return
        drawn, number = self._of_entry(reply, self._now), cursor.num_reflections
        drawn.cap = cursor.limit
        if drawn.last_cap == (number, cursor.limit):
            return
        name = "cap lowered" if drawn.last_cap is not None and drawn.last_cap[0] == number else "cap granted"
        drawn.last_cap = number, cursor.limit
        slack = _slack(reply, self._now)
        reason = {} if slack is None else {"reason": f"{slack:.3f} s of sound are unplayed"}
        drawn.lines.instant(
            _DECISIONS,
            name,
            self._now,
            cap=_plain(cursor.limit),
            used=cursor.count,
            asked=_plain(cap),
            **reason,
        )

    def chosen(self, replies: Sequence[ActiveReply], now: float) -> None:
        """Draw that the codec makes the next chunk of these replies, in one call."""
        for reply in replies:
            drawn = self._of_entry(reply, now)
            drawn.chosen_s = now
            drawn.lines.instant(
                _DECISIONS, "sound is made", now, reason=_why_sound(reply, now), chunks=len(replies)
            )

    def event(self, event: Event, now: float) -> None:
        """Draw an event that is handed over."""
        drawn = self._drawn.get(event.reply_id) if self._number == self._tracer.number else None
        if drawn is None:
            reply = self._find(event.reply_id)
            if reply is None:
                return  # it began before the trace did, and is over
            drawn = self._of_entry(reply, now)
        if isinstance(event, TokenEvent):
            self._token(drawn, event, now)
        elif isinstance(event, AudioChunk):
            self._chunk(drawn, event, now)
        elif isinstance(event, Done):
            self._done(drawn, event, now)

    def _token(self, drawn: _Drawn, event: TokenEvent, now: float) -> None:
        if drawn.segment != (event.kind, event.segment):
            self._end_segment(drawn)
            drawn.segment = (event.kind, event.segment)
            drawn.num_tokens = 0
            drawn.num_hidden = 0
            drawn.cap = UNLIMITED
            drawn.lines.begin(
                _SEGMENTS,
                event.name or event.kind,
                drawn.last_s,
                segment=event.segment,
                first_token_s=round(event.t, 6),
            )
        drawn.num_tokens += len(event.ids)
        drawn.last_s = now
        reply = drawn.reply
        if event.kind == "reflection" and reply is not None:
            vocabulary = reply.request.program.vocabulary
            marks = (vocabulary.open, vocabulary.close, vocabulary.done)
            if event.budget is not None and event.budget.spent:
                drawn.num_hidden = event.budget.spent
            elif event.forced or reply.cursor.row < 0:
                drawn.num_hidden += sum(i not in marks for i in event.ids)
            if reply.cursor.kind is TokenKind.REFLECTION and reply.cursor.is_reflecting:
                drawn.cap = reply.cursor.limit

    def _end_segment(self, drawn: _Drawn) -> None:
        if drawn.segment is None:
            return
        args: dict[str, object] = {"tokens": drawn.num_tokens}
        if drawn.segment[0] == "reflection":
            spent = drawn.num_hidden >= drawn.cap
            args |= {
                "used": drawn.num_hidden,
                "cap": _plain(drawn.cap),
                "ended": "by its cap" if spent else "by itself",
            }
        drawn.lines.end(_SEGMENTS, drawn.last_s, **args)
        drawn.segment = None

    def _chunk(self, drawn: _Drawn, event: AudioChunk, now: float) -> None:
        sound_s = len(event.pcm) / event.rate
        begin_s = now if drawn.chosen_s is None else drawn.chosen_s
        drawn.lines.span(
            _SOUND, f"{sound_s:.2f} s of sound", begin_s, now, sound_s=sound_s, start=event.start, t=event.t
        )
        playback = None if drawn.reply is None else drawn.reply.playback
        plays_s = now if playback is None else playback.dry_s - sound_s  # when the player gets to it
        if drawn.dry_s == -math.inf:
            drawn.lines.begin(_PLAYBACK, "plays", plays_s)
        elif plays_s > drawn.dry_s + 1e-9:
            drawn.lines.end(_PLAYBACK, drawn.dry_s)
            drawn.lines.span(_PLAYBACK, "stall", drawn.dry_s, plays_s)
            drawn.lines.begin(_PLAYBACK, "plays", plays_s)
        drawn.dry_s = plays_s + sound_s

    def _done(self, drawn: _Drawn, event: Done, now: float) -> None:
        self._end_segment(drawn)
        self._state(drawn, "", {}, now)
        if drawn.dry_s > -math.inf:
            drawn.lines.end(_PLAYBACK, min(drawn.dry_s, now) if event.finish_reason in _CUT else drawn.dry_s)
        why = {} if event.error is None else {"error": event.error}
        drawn.lines.instant(_DECISIONS, event.finish_reason, now, tokens=event.usage.total_new_tokens, **why)
        del self._drawn[event.reply_id]

    def _state(self, drawn: _Drawn, state: str, why: Mapping[str, object], now: float) -> None:
        """Draw why a reply does not go on, from now until it does: an empty state."""
        if state == drawn.state:
            return
        if drawn.state:
            drawn.lines.end(_DECISIONS, now)
        if state:
            drawn.lines.begin(_DECISIONS, state, now, **why)
        drawn.state = state

    def _count(self, reply: ActiveReply, columns: ReplyColumns, table_index: int, now: float) -> None:
        drawn = self._of_entry(reply, now)
        slack = _slack(reply, now)
        if slack is not None and reply.request.is_live:
            drawn.lines.counter("slack", now, seconds=round(slack, 6))
            drawn.dry_s = reply.playback.dry_s  # by the player's report, where there is one
        if columns.is_reflecting[table_index]:
            drawn.lines.counter("reflection", now, used=int(columns.hidden_count[table_index]))

    def _of_entry(self, entry: Request | ActiveReply, now: float) -> _Drawn:
        if isinstance(entry, Request):
            return self._of(entry.reply_id, entry, now)
        drawn = self._of(entry.reply_id, entry.request, now)
        if drawn.reply is None:
            drawn.reply, drawn.dry_s = entry, entry.playback.dry_s
            if entry.playback.has_begun:
                drawn.lines.begin(_PLAYBACK, "plays", now)
        return drawn

    def _of(self, reply_id: str, request: Request, now: float) -> _Drawn:
        if self._number != self._tracer.number:  # another trace than the last
            self._drawn, self._number = {}, self._tracer.number
        drawn = self._drawn.get(reply_id)
        if drawn is None:
            title = (
                f"reply {reply_id}"
                if request.session_id is None
                else f"reply {reply_id}, session {request.session_id}"
            )
            drawn = self._drawn[reply_id] = _Drawn(self._tracer.lines(title, LINES), last_s=now)
        return drawn


class _Step:
    """A planned step, and the reasons behind it, by what the planner knew."""

    def __init__(
        self, plan: StepPlan, columns: ReplyColumns, settings: SchedulerSettings, pages_free: int, now: float
    ) -> None:
        self._columns = columns
        self._settings = settings
        self._pages_free = pages_free
        self._now = now
        self._takes_part = {
            *plan.decode.tolist(),
            *(table_index for table_index, _ in plan.prefill),
            *plan.admit,
        }
        indices = columns.indices
        is_waiting = columns.phase[indices] == Phase.WAITING
        waiting = set(indices[is_waiting].tolist())
        holding = [*indices[~is_waiting & ~columns.is_listening[indices]].tolist(), *plan.admit]
        self._num_rows = sum(1 + int(columns.more_rows[table_index]) for table_index in holding)
        left = sorted(
            waiting.difference(plan.admit), key=lambda p: (-int(columns.priority[p]), int(columns.order[p]))
        )
        self._first, self._num_waiting = (left[0] if left else -1), len(left)

    def why_not(self, table_index: int) -> Why:
        """The reason why a reply takes no part, and its numbers; an empty reason: it does, or only its sound
        is left.
        """
        columns, settings = self._columns, self._settings
        phase = int(columns.phase[table_index])
        if table_index in self._takes_part or phase == Phase.VOICING:
            return "", {}
        if phase == Phase.WAITING:
            return self._why_waits(table_index)
        if columns.is_blocked[table_index]:
            return "paused: its reader is behind", {}
        if columns.is_waiting[table_index]:
            return "waits for its feed", {}
        return settings.planner.why_left_out(columns, table_index, settings, self._ahead_s(table_index))

    def why_preempted(self, table_index: int) -> str:
        """The reason why a reply gives its pages back."""
        return self._settings.planner.why_preempted(self._columns, table_index, self._ahead_s(table_index))

    def _why_waits(self, table_index: int) -> Why:
        columns, settings = self._columns, self._settings
        if table_index != self._first:
            return "waits behind others", {"waiting": self._num_waiting}
        num_rows = 1 + int(columns.more_rows[table_index])
        if self._num_rows + num_rows > settings.max_rows:
            what = "waits for a row" if num_rows == 1 else f"waits for {num_rows} rows"
            return what, {"rows": self._num_rows, "max_rows": settings.max_rows}
        needed = num_pages(int(columns.context[table_index]) + 1, settings) - int(columns.pages[table_index])
        if needed > self._pages_free:
            return "waits for pages", {"needed": needed, "free": self._pages_free}
        return "waits: with one more, the machine would not keep pace", {
            "rows": self._num_rows,
            "max_load": settings.max_load,
        }

    def _ahead_s(self, table_index: int) -> float:
        """Seconds of sound that are generated and not heard."""
        columns = self._columns
        return (
            float(columns.sound_end_s[table_index] + columns.unvoiced_s[table_index]) - self._now
            if columns.has_sound[table_index]
            else 0.0
        )


def _why_sound(reply: ActiveReply, now: float) -> str:
    if not reply.request.is_live:
        return "no player waits for it"
    slack = _slack(reply, now)
    if slack is None:
        return "its first sound"
    return (
        f"its player runs dry in {slack:.3f} s"
        if slack >= 0
        else f"its player has been dry for {-slack:.3f} s"
    )


def _slack(reply: ActiveReply, now: float) -> float | None:
    """Seconds until the player runs dry; None before its first sound."""
    return reply.playback.dry_s - now if reply.playback.has_begun else None


def _plain(cap: int) -> int | None:
    return None if cap >= UNLIMITED else cap
