"""The report as HTML: figures, plots and settings in the template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources

import jinja2

import innervoice
from innervoice.tools.realtime_bench.crowd import CrowdLog
from innervoice.tools.realtime_bench.figures import RealtimeFigures, columns, populations
from innervoice.tools.realtime_bench.labels import ROWS, cells, counted, number, percent_words
from innervoice.tools.realtime_bench.recordings import Recording
from innervoice.tools.realtime_bench.records import command
from innervoice.tools.realtime_bench.report.charts import LONG_MS, histogram, strips, underruns, waits
from innervoice.tools.realtime_bench.report.timeline import drawn_timeline, most_telling
from innervoice.tools.realtime_bench.settings import CallSettings

ReportTile = tuple[str, str, str, str]


def written_report(
    figures: RealtimeFigures, log: CrowdLog, settings: CallSettings, recordings: Sequence[Recording]
) -> str:
    """The whole page, which needs no other file."""
    template = resources.files("innervoice.tools.realtime_bench.report").joinpath("report.html")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    model = next((call.model for call in log.calls if call.model), settings.model or "")
    turns = most_telling(log.calls)
    found = columns(figures)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        server=settings.url.partition("?")[0],
        model=model,
        shape=settings.shape,
        num=f"{counted(figures.replies.num_requests, 'turn')} in {counted(figures.num_calls, 'call')}",
        figures=figures,
        tiles=list(_tiles(figures)),
        timeline=drawn_timeline(turns, log.calls, {one.name: one for one in recordings}),
        caller=turns[0].caller if turns else None,
        charts=_charts(log),
        rows=[(label, cells(name, found[name])) for name, label in ROWS.items() if found[name].n],
        populations=populations(figures),
        errors=[*figures.errors.items()],
        error_events=[*figures.error_events.items()],
        details=_details(log),
        settings=json.dumps(dict(settings.session)) if settings.session else "",
        command=command(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=innervoice.__version__,
    )


def _tiles(figures: RealtimeFigures) -> Iterator[ReportTile]:
    """The figures that are read first: (name, value, what it stands on, good, bad or nothing)."""
    replies, cuts = figures.replies, figures.interruptions
    first = replies.audio_ttfp_ms
    chunk = f", a chunk of {number(replies.first_chunk_s.median)} s" if first.n else ""
    yield "First sound, p50", _with(first.median, "ms"), f"p90 {_with(first.p90, 'ms')}{chunk}", ""
    free = figures.underrun_free
    verdict = "" if free is None else "good" if free == 100 else "bad"
    stalls = f"{replies.num_stalls} underruns in {replies.num_requests} replies"
    yield "Calls without an underrun", percent_words(free), stalls, verdict
    kept = f"c50 {percent_words(replies.c50)}, chunks in time {percent_words(replies.streaming_viability)}"
    yield "Continuity, c100", percent_words(replies.c100), kept, ""
    if cuts.num:
        ignored = f", {cuts.num_ignored} not noticed" if cuts.num_ignored else ""
        words = f"p90 {_with(cuts.silent_ms.p90, 'ms')}, {cuts.num} barge-ins{ignored}"
        yield "Silent after a barge-in, p50", _with(cuts.silent_ms.median, "ms"), words, ""
    failed = sum(figures.errors.values())
    yield (
        "Failures",
        str(failed),
        f"of {replies.num_requests} turns in {figures.num_calls} calls",
        "bad" if failed else "good",
    )


def _charts(log: CrowdLog) -> list[tuple[str, str, object]]:
    """The plots that have something to show: (title, note, SVG)."""
    turns = log.turns
    timings = [turn.timings for turn in turns]
    first_ms = [1e3 * (one.audio[0][0] - one.submitted_s) for one in timings if one.audio]
    gaps_ms = [
        1e3 * (later - sooner)
        for one in timings
        for (sooner, _), (later, _) in zip(one.audio, one.audio[1:], strict=False)
    ]
    cuts = [cut for turn in turns if (cut := turn.interruption) is not None]
    lags_ms = [1e3 * lag_s for call in log.calls for lag_s in call.lags_s]
    barge_ins = (
        ("speech_started", [cut.noticed_ms for cut in cuts if cut.noticed_ms is not None], "user"),
        ("last delta", [cut.last_delta_ms for cut in cuts], "reflection"),
        ("silent", [cut.silent_ms for cut in cuts], "sound"),
    )
    made = (
        (
            "First sound",
            "from the end of the question",
            histogram(first_ms, "ms", "Histogram of first sound", "sound"),
        ),
        (
            "Where the wait goes",
            "from the end of the question; a bar a turn",
            waits(turns, "Parts of the wait, turn by turn"),
        ),
        (
            "Underruns, call by call",
            "a cell a call: the times its player ran dry; a dash: no reply of two chunks",
            underruns(log.calls, "Underruns by call"),
        ),
        (
            "Gaps between chunks",
            "arrival to arrival",
            histogram(gaps_ms, "ms", "Histogram of gaps", "speech"),
        ),
        ("Barge-in", "from the caller's first loud frame", strips(barge_ins, "ms", "Interruption times")),
        (
            "Lateness of the callers",
            "every frame of 20 ms that was sent",
            histogram(lags_ms, "ms", "Histogram of the callers' lateness", "muted-bar"),
        ),
    )
    return [one for one in made if one[2] is not None]


def _details(log: CrowdLog) -> list[str]:
    """What servers said about failures, each once."""
    return list(dict.fromkeys(one for call in log.calls for one in call.details))[:8]


def _with(value: float | None, unit: str) -> str:
    if value is not None and unit == "ms" and value >= LONG_MS:
        return f"{number(value / 1e3)} s"
    return "-" if value is None else f"{number(value)} {unit}"
