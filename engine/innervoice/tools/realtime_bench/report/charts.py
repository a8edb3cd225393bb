"""Charts of a run: histograms with their percentiles, the parts of the wait, underruns call by call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from innervoice.telemetry.metrics import Distribution
from innervoice.tools.realtime_bench.figures import num_stalls
from innervoice.tools.realtime_bench.report.svg import Canvas, Scale, plain, ticks
from innervoice.tools.realtime_bench.turn import CallLog, CallTurn

WIDTH, HEIGHT = 540, 230
LEFT, RIGHT, TOP, FOOT = 40, 24, 52, 42
NUM_BINS = 36
MOST_ROWS = 48
LONG_MS = 10_000.0  # from there on an axis is in seconds
PARTS = (("user", "end of the turn found"), ("reflection", "response.created"), ("sound", "first sound"))


def histogram(values: Sequence[float], unit: str, label: str, kind: str) -> Markup | None:
    """Bars of counts, and lines at p50, p90 and p99; None without values."""
    if not values:
        return None
    canvas = Canvas(WIDTH, HEIGHT, label)
    high = _round_up(max(values))
    x = Scale(0.0, high, LEFT, WIDTH - RIGHT)
    unit, shown = _readable(high, unit)
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(NUM_BINS - 1, max(0, int(value / high * NUM_BINS)))] += 1
    y = Scale(0.0, max(counts), HEIGHT - FOOT, TOP)
    for value in ticks(0.0, max(counts), 4):
        if value == int(value):
            canvas.line((LEFT, y(value)), (WIDTH - RIGHT, y(value)), "grid")
            canvas.text(LEFT - 8, y(value) + 4, _count(value), "tick", "end")
    step = (WIDTH - RIGHT - LEFT) / NUM_BINS
    for place, count in enumerate(counts):
        if count:
            low_edge, high_edge = (shown(high * edge / NUM_BINS) for edge in (place, place + 1))
            edges = f"{low_edge} to {high_edge} {unit}: {count}"
            top = y(count)
            canvas.rect(LEFT + place * step + 1, top, step - 2, y(0) - top, kind, title=edges, round=2)
    canvas.axis(x, HEIGHT - FOOT, unit, shown)
    _percentiles(canvas, Distribution.of(values), x, HEIGHT - FOOT, shown)
    return canvas.markup()


def strips(rows: Sequence[tuple[str, Sequence[float], str]], unit: str, label: str) -> Markup | None:
    """A dot a value, a row a figure of (name, values, kind), and a bar at each median; None without values."""
    some = [(name, values, kind) for name, values, kind in rows if values]
    if not some:
        return None
    canvas = Canvas(WIDTH, 40 + 58 * len(some) + FOOT, label)
    high = _round_up(max(max(values) for _, values, _ in some))
    x = Scale(0.0, high, LEFT, WIDTH - RIGHT)
    unit, shown = _readable(high, unit)
    foot = canvas.height - FOOT
    canvas.axis(x, foot, unit, shown, top=20)
    for place, (name, values, kind) in enumerate(some):
        middle = 40 + 58 * place + 26
        found = Distribution.of(values)
        for number, value in enumerate(values):
            # A fixed scatter in height keeps equal values apart.
            offset = (number * 0.618034 % 1 - 0.5) * 20
            canvas.circle(x(value), middle + offset, 3.5, f"{kind} dot", title=f"{shown(value)} {unit}")
        assert found.median is not None, "there are values"
        canvas.line((x(found.median), middle - 15), (x(found.median), middle + 15), "median")
        words = f"{name}: p50 {shown(round(found.median, 1))}, most {shown(round(found.most or 0, 1))} {unit}"
        canvas.text(LEFT, middle - 20, words, "label")
    return canvas.markup()


def waits(turns: Sequence[CallTurn], label: str) -> Markup | None:
    """A bar a turn, the shortest wait first: end of the question to speech_stopped, to response.created, to sound."""
    rows = sorted(filter(None, map(_parts, turns)), key=lambda parts: parts[-1])
    if not rows:
        return None
    picked = rows if len(rows) <= MOST_ROWS else [rows[i * len(rows) // MOST_ROWS] for i in range(MOST_ROWS)]
    canvas = Canvas(WIDTH, HEIGHT, label)
    x = Scale(0.0, _round_up(picked[-1][-1]), LEFT, WIDTH - RIGHT)
    unit, shown = _readable(x.high, "ms")
    foot, begin, place = HEIGHT - FOOT, 30, float(LEFT)
    canvas.axis(x, foot, unit, shown, top=begin - 6)
    for kind, name in PARTS:
        canvas.rect(place, 6, 10, 10, kind, round=3)
        canvas.text(place + 16, 15, name, "tick")
        place += 36 + 6.2 * len(name)
    step = (foot - begin - 4) / len(picked)
    height = min(step * 0.82, 16.0)
    for row, ends in enumerate(picked):
        y = begin + row * step + (step - height) / 2
        for low, high, (kind, name) in zip((0.0, *ends), ends, PARTS, strict=False):
            if high > low:
                canvas.rect(x(low), y, x(high) - x(low), height, kind, title=f"{name} after {high:.0f} ms")
    return canvas.markup()


def underruns(calls: Sequence[CallLog], label: str) -> Markup | None:
    """A cell a call: free of underruns, their number, or a dash where none could be counted; None without any."""
    found = [(call, num_stalls(call)) for call in calls]
    if all(num is None for _, num in found):
        return None
    columns = min(len(found), max(8, math.ceil(math.sqrt(len(found) * 2.4))))
    size = min(40.0, (WIDTH - 8) / columns)
    rows = math.ceil(len(found) / columns)
    canvas = Canvas(WIDTH, rows * size + 8, label)
    for place, (call, num) in enumerate(found):
        x, y = 4 + place % columns * size, 4 + place // columns * size
        counted = "no underruns could be counted" if num is None else f"{num} underruns"
        failure = call.failure or next((turn.error for turn in call.turns if turn.error), None)
        title = (
            f"caller {call.caller}: {counted} in {len(call.turns)} turns{f', {failure}' if failure else ''}"
        )
        kind = "muted-bar" if num is None else "bad" if num else "good"
        canvas.rect(x + 2, y + 2, size - 4, size - 4, kind, title=title, round=6)
        if num != 0 and size >= 18:
            canvas.text(x + size / 2, y + size / 2 + 4, "-" if num is None else str(num), "count", "middle")
    return canvas.markup()


def _parts(turn: CallTurn) -> tuple[float, float, float] | None:
    """Milliseconds from the end of a turn's question to speech_stopped, response.created and first sound."""
    reply, begin_s = turn.reply, turn.submitted_s
    if reply is None or begin_s is None or not reply.has_sound or reply.created_s < begin_s:
        return None
    stopped_s = begin_s if turn.stopped_s is None else min(max(turn.stopped_s, begin_s), reply.created_s)
    times = (stopped_s, reply.created_s, reply.audio[0][0])
    stopped, created, sound = (1e3 * (time_s - begin_s) for time_s in times)
    return stopped, created, sound


def _count(value: float) -> str:
    return f"{plain(value / 1000)}k" if value >= 1000 else plain(value)


def _readable(high: float, unit: str) -> tuple[str, Callable[[float], str]]:
    """The unit of an axis up to a value, seconds for many milliseconds, and how values are written in it."""
    if unit == "ms" and high >= LONG_MS:
        return "s", lambda value: plain(value / 1e3)
    return unit, plain


def _percentiles(
    canvas: Canvas, values: Distribution, x: Scale, foot: float, shown: Callable[[float], str]
) -> None:
    """Lines with labels, side by side where there is room and else one below the other."""
    last = -math.inf
    row = 0
    for name, value in (("p50", values.median), ("p90", values.p90), ("p99", values.p99)):
        if value is None:
            continue
        row = row + 1 if x(value) - last < 62 else 0
        canvas.line((x(value), TOP - 40), (x(value), foot), "mark")
        is_right = x(value) > canvas.width - 90
        words = f"{name} {shown(float(f'{value:.3g}') if value < 100 else round(value))}"
        canvas.text(
            x(value) + (-5 if is_right else 5),
            TOP - 32 + 15 * row,
            words,
            "mark-label",
            "end" if is_right else "start",
        )
        last = x(value)


def _round_up(value: float) -> float:
    """The next round number, so that an axis ends at a line."""
    if value <= 0:
        return 1.0
    step = ticks(0.0, value * 1.02, 6)
    return step[-1] + (step[1] - step[0]) if step[-1] < value else step[-1]
