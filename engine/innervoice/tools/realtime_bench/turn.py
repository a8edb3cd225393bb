"""CallTurn and CallLog: a question with its reply, and all that happened in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from innervoice.telemetry.metrics import RequestTimings
from innervoice.tools.realtime_bench.reply import FINISHES, HeardReply

Marks = list[tuple[float, str]]


@dataclass
class BargeIn:
    """An interruption of a reply by the next question. loud_s: its first loud frame was sent. noticed_s: the
    server's `speech_started` came or, in manual turns, the caller's `response.cancel` left; None: never.
    """

    loud_s: float
    noticed_s: float | None = None


@dataclass
class Interruption:
    """Figures of a barge-in, all from the first loud frame on.

    noticed_ms: to `speech_started`, or 0 for a caller who cancels by itself. last_delta_ms: to the last delta of
    the interrupted reply; 0 where all of it had come before. silent_ms: to the moment at which the caller hears
    nothing more: its player is cleared or has played all. sound_after_s: sound that came after `speech_started`
    or the cancellation; a perfect server sends none.
    """

    noticed_ms: float | None
    last_delta_ms: float
    silent_ms: float
    sound_after_s: float


@dataclass
class CallTurn:
    """A question and its reply. Times are in seconds of the caller's clock.

    begun_s: the question's first frame is recorded; loud_s: its first loud frame was sent; submitted_s: the question
    ended, or was committed; stopped_s: the server's `speech_stopped`. error: why it counts as failed.
    """

    caller: int
    number: int
    question: str
    begun_s: float = 0.0
    loud_s: float | None = None
    submitted_s: float | None = None
    stopped_s: float | None = None
    reply: HeardReply | None = None
    barge: BargeIn | None = None
    error: str | None = None
    is_over: bool = False

    @property
    def timings(self) -> RequestTimings:
        """The arrivals of the reply, up to an interruption, as the figures are computed from."""
        reply = self.reply
        begun_s = self.begun_s if self.submitted_s is None else self.submitted_s
        name = f"call {self.caller} turn {self.number}"
        if reply is None or reply.created_s < begun_s:
            return RequestTimings(begun_s, error=self.error or "no reply", request_id=name)
        finish = "interrupted" if self.barge is not None else FINISHES.get(reply.status, reply.status)
        return RequestTimings(
            submitted_s=begun_s,
            rate=reply.rate,
            audio=reply.played,
            finished_s=reply.done_s,
            leading_silence_s=reply.silence_s,
            finish_reason=finish or None,
            error=self.error,
            request_id=name,
        )

    @property
    def interruption(self) -> Interruption | None:
        """Figures of the barge-in into this turn's reply; None: there was none."""
        reply, barge = self.reply, self.barge
        if reply is None or barge is None:
            return None
        last_s = reply.audio[-1][0]
        silent_s = (
            reply.dry_s if reply.stopped_s is None else min(reply.stopped_s, max(reply.dry_s, barge.loud_s))
        )
        after = [count for t, count in reply.audio if barge.noticed_s is not None and t > barge.noticed_s]
        return Interruption(
            noticed_ms=None if barge.noticed_s is None else 1e3 * (barge.noticed_s - barge.loud_s),
            last_delta_ms=1e3 * max(0.0, last_s - barge.loud_s),
            silent_ms=1e3 * max(0.0, silent_s - barge.loud_s),
            sound_after_s=sum(after) / reply.rate,
        )

    def to_dict(self) -> dict[str, Any]:
        """One line of the results, which `RequestTimings.from_dict` reads too."""
        own = {"question": self.question, "caller": self.caller, "turn": self.number}
        cut = self.interruption
        return self.timings.to_dict() | own | {"interruption": None if cut is None else vars(cut)}


@dataclass
class CallLog:
    """One call, from its first to its last moment. number: of the caller's calls.

    failure: why it ended early, outside of a turn. error_codes: of the server's `error` events. marks: (time,
    event type) of what the server said about turns. lags_s: of the microphone's frames. model: the server's name
    of it.
    """

    caller: int
    begun_s: float
    number: int = 0
    turns: list[CallTurn] = field(default_factory=list)
    failure: str | None = None
    details: list[str] = field(default_factory=list)
    error_codes: Counter[str] = field(default_factory=Counter)
    marks: Marks = field(default_factory=list)
    lags_s: Sequence[float] = ()
    stalled_s: float = 0.0
    model: str = ""
    dialect: str = ""
    ended_s: float | None = None
