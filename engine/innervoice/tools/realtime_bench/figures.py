"""The figures of a crowd of callers, as pure functions of their logs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from innervoice.telemetry.metrics import Distribution, RunMetrics, find_underruns, percent, summarize
from innervoice.tools.realtime_bench.crowd import CrowdLog
from innervoice.tools.realtime_bench.labels import counted
from innervoice.tools.realtime_bench.recordings import FRAME_S
from innervoice.tools.realtime_bench.turn import CallLog

LATE_P99_MS = 1e3 * FRAME_S
LATE_MOST_MS = 200.0
# Figures of tokens, which the protocol does not have.
_OF_TOKENS = frozenset(
    {
        "ttft_ms",
        "tpot_ms",
        "itl_ms",
        "by_kind",
        "reflection_per_audio_s",
        "hidden_before_audio",
        "decode_tok_s",
    }
)


@dataclass(frozen=True)
class InterruptionFigures:
    """Distributions over the barge-ins, as `Interruption` defines them. num_ignored: the server never said that
    speech began.
    """

    num: int
    num_ignored: int
    noticed_ms: Distribution
    last_delta_ms: Distribution
    silent_ms: Distribution
    sound_after_s: Distribution


@dataclass(frozen=True)
class RealtimeFigures:
    """Figures of a run. replies: as `RunMetrics` defines them, over all turns; submission is the end of the
    question, or its commit.

    num_planned: turns that would have been held had none failed; None: as many as fit in a time.
    num_failed_calls: that ended early. turn_end_ms: end of the question to the server's `speech_stopped`.
    response_ms: end of the question to `response.created`. stream_underruns: times that a player ran dry, by
    call. underrun_free: percent of the calls in which none did; calls without a measured reply are left out.
    errors: failures of turns and calls, and `error` events, by type. lag_ms: of this process: how late frames of
    20 ms were sent. stalled_s: for which servers took no frames. invalid: why the figures say nothing of the
    server, or None.
    """

    num_callers: int
    num_calls: int
    num_planned: int | None
    num_failed_calls: int
    replies: RunMetrics
    turn_end_ms: Distribution
    response_ms: Distribution
    stream_underruns: Distribution
    underrun_free: float | None
    interruptions: InterruptionFigures
    errors: dict[str, int]
    error_events: dict[str, int]
    lag_ms: Distribution
    stalled_s: float
    wall_s: float
    invalid: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, without the figures of tokens."""
        replies = {name: value for name, value in self.replies.to_dict().items() if name not in _OF_TOKENS}
        return asdict(self) | {"replies": replies}


def figures_of(log: CrowdLog) -> RealtimeFigures:
    """The figures of all calls."""
    turns = log.turns
    ended = [turn for turn in turns if turn.submitted_s is not None]
    cuts = [cut for turn in turns if (cut := turn.interruption) is not None]
    stalls = [num for call in log.calls if (num := num_stalls(call)) is not None]
    errors = Counter(turn.error for turn in turns if turn.error is not None)
    errors.update(call.failure for call in log.calls if call.failure is not None)
    lag_ms = Distribution.of(1e3 * lag_s for call in log.calls for lag_s in call.lags_s)
    failed = [
        call for call in log.calls if call.failure is not None or any(turn.error for turn in call.turns)
    ]
    return RealtimeFigures(
        num_callers=len({call.caller for call in log.calls}),
        num_calls=len(log.calls),
        num_planned=log.num_planned,
        num_failed_calls=len(failed),
        replies=summarize([turn.timings for turn in turns]),
        turn_end_ms=Distribution.of(_ms(one.submitted_s, one.stopped_s) for one in ended),
        response_ms=Distribution.of(
            _ms(one.submitted_s, one.reply.created_s) for one in ended if one.reply is not None
        ),
        stream_underruns=Distribution.of(stalls),
        underrun_free=percent(num == 0 for num in stalls),
        interruptions=InterruptionFigures(
            num=len(cuts),
            num_ignored=sum(cut.noticed_ms is None for cut in cuts),
            noticed_ms=Distribution.of(cut.noticed_ms for cut in cuts),
            last_delta_ms=Distribution.of(cut.last_delta_ms for cut in cuts),
            silent_ms=Distribution.of(cut.silent_ms for cut in cuts),
            sound_after_s=Distribution.of(cut.sound_after_s for cut in cuts),
        ),
        errors=dict(errors.most_common()),
        error_events=dict(sum((call.error_codes for call in log.calls), Counter[str]()).most_common()),
        lag_ms=lag_ms,
        stalled_s=sum(call.stalled_s for call in log.calls),
        wall_s=log.wall_s,
        invalid=_invalid(log, lag_ms, len(failed)),
    )


def num_stalls(call: CallLog) -> int | None:
    """Times that the player of a call ran dry; None: no reply had two chunks."""
    found = [
        find_underruns(turn.reply.played, turn.reply.rate)
        for turn in call.turns
        if turn.is_over and turn.reply is not None
    ]
    measured = [one.num_stalls for one in found if one.is_measured]
    return sum(measured) if measured else None


def columns(figures: RealtimeFigures) -> dict[str, Distribution]:
    """The distributions of a run by name, in the order in which they are shown."""
    replies = {f.name: getattr(figures.replies, f.name) for f in fields(figures.replies)}
    own = {
        name: one for name, one in replies.items() if isinstance(one, Distribution) and name not in _OF_TOKENS
    }
    cut = figures.interruptions
    return {
        "audio_ttfp_ms": own.pop("audio_ttfp_ms"),
        "first_chunk_s": own.pop("first_chunk_s"),
        "turn_end_ms": figures.turn_end_ms,
        "response_ms": figures.response_ms,
        **own,
        "stream_underruns": figures.stream_underruns,
        "interruption_noticed_ms": cut.noticed_ms,
        "interruption_last_delta_ms": cut.last_delta_ms,
        "interruption_silent_ms": cut.silent_ms,
        "interruption_sound_after_s": cut.sound_after_s,
        "lag_ms": figures.lag_ms,
    }


def populations(figures: RealtimeFigures) -> str:
    """A sentence on the turns and calls that the counts of figures are of."""
    num, planned = figures.replies.num_requests, figures.num_planned
    held = counted(num, "turn") if planned is None else f"{num} of {counted(planned, 'planned turn')}"
    calls = f"{figures.stream_underruns.n} of {counted(figures.num_calls, 'call')}"
    return (
        f"n: {held} came to an end and {figures.replies.audio_ttfp_ms.n} had sound; "
        f"underruns are counted in {calls}, those with a reply of two chunks."
    )


def _ms(begin_s: float | None, end_s: float | None) -> float | None:
    """Milliseconds between two times, the second after the first; None where one is missing."""
    return None if begin_s is None or end_s is None or end_s < begin_s else 1e3 * (end_s - begin_s)


def _invalid(log: CrowdLog, lag_ms: Distribution, num_failed: int) -> str | None:
    reasons = []
    p99, most = lag_ms.p99 if lag_ms.p99 is not None else lag_ms.most, lag_ms.most
    if p99 is not None and most is not None and (p99 > LATE_P99_MS or most > LATE_MOST_MS):
        reasons.append(f"the callers were late: p99 {p99:.0f} ms, at most {most:.0f} ms")
    if num_failed:
        reasons.append(f"{num_failed} of {len(log.calls)} calls failed")
    if log.is_cut:
        reasons.append("the run was interrupted")
    return "; ".join(reasons) or None
