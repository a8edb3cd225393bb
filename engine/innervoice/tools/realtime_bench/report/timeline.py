"""The timeline of one call: question, server, chunks, reserve and playback, over one axis of seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from innervoice.telemetry.metrics import find_underruns
from innervoice.tools.realtime_bench.recordings import FRAME_S, Recording
from innervoice.tools.realtime_bench.reply import HeardReply
from innervoice.tools.realtime_bench.report.playback import PlaybackSpans, playback_spans, reserve_points
from innervoice.tools.realtime_bench.report.svg import Canvas, Scale, plain
from innervoice.tools.realtime_bench.turn import CallLog, CallTurn

WIDTH = 1120
LEFT, RIGHT = 92, 12
MOST_S = 26.0
# Lane: the name, its top and its height.
LANES = {
    "question": ("Question", 34, 48),
    "server": ("Server", 106, 36),
    "chunks": ("Chunks", 158, 32),
    "reserve": ("Reserve", 206, 54),
    "heard": ("Heard", 276, 56),
}
FOOT = 352
EDGE = 170  # from the right, where labels are written to the left


def most_telling(calls: Sequence[CallLog]) -> list[CallTurn]:
    """The turns in a row that show most: a barge-in, then underruns, then the most turns within the axis' length."""
    rows = [_within(call.turns[first:]) for call in calls for first in range(len(call.turns))]
    return max(filter(None, rows), key=_tells, default=[])


def drawn_timeline(
    turns: Sequence[CallTurn], calls: Sequence[CallLog], recordings: Mapping[str, Recording]
) -> Markup | None:
    """The drawing of some turns of a call; None without turns."""
    if not turns:
        return None
    begin_s = turns[0].begun_s - 0.3
    end_s = min(max(_end_s(turn) for turn in turns) + 0.4, begin_s + MOST_S)
    canvas = Canvas(WIDTH, FOOT + 36, "Timeline of one call: question, server, chunks, reserve, playback")
    x = Scale(0.0, end_s - begin_s, LEFT, WIDTH - RIGHT)
    drawing = _Drawing(canvas, x, begin_s, end_s)
    drawing.frame()
    for turn, following in pairwise([*turns, None]):
        if turn is not None:
            drawing.turn(turn, following, recordings.get(turn.question))
    marks = next((call.marks for call in calls if turns[0] in call.turns), [])
    drawing.marks(marks)
    return canvas.markup()


class _Drawing:
    """Draws on a canvas; times are the caller's."""

    def __init__(self, canvas: Canvas, x: Scale, begin_s: float, end_s: float) -> None:
        self._canvas = canvas
        self._scale = x
        self._begin_s = begin_s
        self._end_s = end_s

    def x(self, time_s: float) -> float:
        """The place of a time, on the axis."""
        return self._scale(min(max(time_s, self._begin_s), self._end_s) - self._begin_s)

    def frame(self) -> None:
        """Draw lanes and axis."""
        self._canvas.axis(self._scale, FOOT, "", lambda value: f"{plain(value)} s", top=22)
        for name, top, height in LANES.values():
            self._canvas.text(0, top + height / 2 + 4, name, "lane")
            if name != "Heard":
                self._canvas.line((LEFT, top + height + 8), (WIDTH - RIGHT, top + height + 8), "grid")

    def turn(self, turn: CallTurn, following: CallTurn | None, recording: Recording | None) -> None:
        """Draw a question and its reply."""
        if recording is not None:
            self._question(turn, recording)
        reply = turn.reply
        if reply is None:
            return
        self._server(reply)
        if not reply.has_sound:
            return
        spans = playback_spans(reply.audio, reply.rate, reply.stopped_s, reply.done_s)
        self._chunks(reply)
        self._reserve(reply)
        self._heard(reply, spans, following)
        self._wait(turn, reply)
        if turn.barge is not None:
            self._barge_in(turn, reply)

    def marks(self, marks: Sequence[tuple[float, str]]) -> None:
        """Draw what the server said about turns."""
        _, top, height = LANES["server"]
        for time_s, name in marks:
            if name != "committed" and self._begin_s <= time_s <= self._end_s:
                kind = "speech-mark" if name == "speech_started" else "stop-mark"
                self._canvas.rect(
                    self.x(time_s) - 1.5, top, 3, height, kind, title=f"{name} {self._at(time_s)}"
                )

    def _question(self, turn: CallTurn, recording: Recording) -> None:
        _, top, height = LANES["question"]
        self._wave(turn.begun_s, recording.peaks, top + height / 2, height / 2, "user")
        self._canvas.text(self.x(turn.begun_s), top - 4, turn.question, "small")

    def _server(self, reply: HeardReply) -> None:
        _, top, height = LANES["server"]
        end_s = self._end_s if reply.done_s is None else reply.done_s
        title = (
            f"response.created {self._at(reply.created_s)}, response.done {reply.status} {self._at(end_s)}"
        )
        left = self.x(reply.created_s)
        self._canvas.rect(
            left, top + 8, max(3.0, self.x(end_s) - left), height - 16, "reflection", title=title, round=4
        )

    def _chunks(self, reply: HeardReply) -> None:
        _, top, height = LANES["chunks"]
        longest = max(count for _, count in reply.audio)
        for time_s, count in reply.audio:
            if time_s <= self._end_s:
                size = 6 + (height - 6) * count / longest
                is_late = reply.stopped_s is not None and time_s > reply.stopped_s
                title = f"{count / reply.rate:.2f} s of sound {self._at(time_s)}"
                left = self.x(time_s)
                self._canvas.rect(
                    left - 1.5, top + height - size, 3, size, "bad" if is_late else "speech", title=title
                )

    def _reserve(self, reply: HeardReply) -> None:
        _, top, height = LANES["reserve"]
        points = reserve_points(reply.audio, reply.rate, reply.stopped_s)
        most_s = max(left_s for _, left_s in points)
        y = Scale(0.0, most_s, top + height, top)
        line = [(self.x(time_s), y(left_s)) for time_s, left_s in points]
        self._canvas.path([(line[0][0], y(0)), *line, (line[-1][0], y(0))], "reserve", closed=True)
        peak = max(points, key=lambda point: point[1])
        if peak[0] <= self._end_s:
            self._canvas.text(self.x(peak[0]) + 6, y(peak[1]) + 10, f"{most_s:.1f} s", "small")

    def _heard(self, reply: HeardReply, spans: PlaybackSpans, following: CallTurn | None) -> None:
        _, top, height = LANES["heard"]
        peaks = [peak for chunk in reply.peaks for peak in chunk]
        for span in spans.heard:
            part = peaks[
                round(span.place_s / FRAME_S) : round((span.place_s + span.end_s - span.begin_s) / FRAME_S)
            ]
            self._wave(span.begin_s, part, top + height / 2, height / 2, "sound")
        for begin_s, end_s in spans.gaps:
            if begin_s < self._end_s:
                left = self.x(begin_s)
                title = f"underrun of {1e3 * (end_s - begin_s):.0f} ms {self._at(begin_s)}"
                self._canvas.rect(
                    left, top - 4, max(2.0, self.x(end_s) - left), height + 8, "gap", title=title, round=2
                )
        if spans.unheard is not None:
            begin_s, end_s = spans.unheard
            # It must not lie over the next reply.
            limit_s = self._end_s
            if following is not None and following.reply is not None and following.reply.has_sound:
                limit_s = following.reply.audio[0][0]
            left = self.x(begin_s)
            title = f"{end_s - begin_s:.2f} s that came and were never heard"
            self._canvas.rect(
                left, top, max(2.0, self.x(min(end_s, limit_s)) - left), height, "unheard", title=title
            )

    def _wait(self, turn: CallTurn, reply: HeardReply) -> None:
        """Mark the wait from the end of the question to the first sound."""
        if turn.submitted_s is None or reply.audio[0][0] > self._end_s:
            return
        _, top, height = LANES["question"]
        y, left, right = top + height / 2, self.x(turn.submitted_s), self.x(reply.audio[0][0])
        self._canvas.line((left, y), (right, y), "wait")
        for place in (left, right):
            self._canvas.line((place, y - 5), (place, y + 5), "wait")
        wait_ms = 1e3 * (reply.audio[0][0] - turn.submitted_s)
        self._canvas.text((left + right) / 2, top + height + 2, f"{wait_ms:.0f} ms", "wait-label", "middle")

    def _barge_in(self, turn: CallTurn, reply: HeardReply) -> None:
        assert turn.barge is not None, "the caller looked"
        if turn.barge.loud_s > self._end_s:
            return
        x = self.x(turn.barge.loud_s)
        self._canvas.line((x, 22), (x, FOOT), "cut")
        cut = turn.interruption
        words = "barge-in" if cut is None else f"barge-in, silent after {cut.silent_ms:.0f} ms"
        is_right = x > WIDTH - EDGE
        self._canvas.text(
            x - 5 if is_right else x + 5, FOOT - 4, words, "cut-label", "end" if is_right else "start"
        )

    def _wave(self, begin_s: float, peaks: Sequence[float], middle: float, half: float, kind: str) -> None:
        """Draw the peaks of frames of 20 ms as an area around a line."""
        shown = [
            (self.x(begin_s + (place + 0.5) * FRAME_S), max(0.7, half * min(1.0, peak * 1.6)))
            for place, peak in enumerate(peaks)
            if begin_s + place * FRAME_S <= self._end_s
        ]
        above = [(x, middle - size) for x, size in shown]
        below = [(x, middle + size) for x, size in reversed(shown)]
        self._canvas.path([*above, *below], kind, closed=True)

    def _at(self, time_s: float) -> str:
        return f"at {time_s - self._begin_s:.2f} s"


def _end_s(turn: CallTurn) -> float:
    """The time at which a turn is over for the caller."""
    reply = turn.reply
    if reply is None or not reply.has_sound:
        return turn.submitted_s or turn.begun_s
    return reply.dry_s if reply.stopped_s is None else max(reply.stopped_s, reply.done_s or 0.0)


def _within(turns: Sequence[CallTurn]) -> list[CallTurn]:
    """The first turns that are over within the axis' length, but at least one that has a reply."""
    some = [turn for turn in turns if turn.is_over and turn.reply is not None and turn.reply.has_sound]
    return [turn for turn in some if _end_s(turn) - some[0].begun_s <= MOST_S - 1] or some[:1]


def _tells(turns: Sequence[CallTurn]) -> tuple[int, int, int]:
    stalls = sum(
        find_underruns(turn.reply.played, turn.reply.rate).num_stalls
        for turn in turns
        if turn.reply is not None
    )
    return min(1, sum(turn.barge is not None for turn in turns[:-1])), min(1, stalls), len(turns)
