"""The report of a run: whole by itself, with a plot for everything that was measured, and the call that shows most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_realtime import Script
from spoken_tones import called, tone

from innervoice.telemetry.metrics import find_underruns
from innervoice.tools.realtime_bench import CallSettings
from innervoice.tools.realtime_bench.labels import number, percent_words
from innervoice.tools.realtime_bench.report import written_report
from innervoice.tools.realtime_bench.report.charts import histogram
from innervoice.tools.realtime_bench.report.playback import playback_spans, reserve_points
from innervoice.tools.realtime_bench.report.svg import Scale, ticks
from innervoice.tools.realtime_bench.report.timeline import most_telling

LATE = ((0.1, 0.5), (0.3, 0.5), (1.4, 0.5), (1.5, 0.5))
Chunks = list[tuple[float, int]]


def page(script: Script, **settings: object) -> str:
    _, log, figures = called(script, **settings)
    made = CallSettings(**{"url": "ws://h/v1/realtime?model=<b>", **settings})  # type: ignore[arg-type]
    return written_report(figures, log, made, [tone()])


def drawings(html: str) -> list[ElementTree.Element]:
    """The plots, each of which is well-formed."""
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL)]


def kinds(html: str) -> set[str]:
    return {shape.get("class", "") for drawing in drawings(html) for shape in drawing.iter()}


class Links(HTMLParser):
    """Collects all that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_all_that_was_measured_and_loads_nothing() -> None:
    html = page(Script(chunks=LATE), num_turns=3, callers=3, barge_in=0.6, seed=2)
    links = Links()
    links.feed(html)
    assert links.loaded == [] and "@import" not in html
    labels = [drawing.get("aria-label") for drawing in drawings(html)]
    assert len(labels) == 7 and labels[0].startswith("Timeline of one call")
    # Question, reply, chunks, reserve, the wait, an underrun, a barge-in and sound that was never heard.
    assert kinds(html) >= {
        "user",
        "reflection",
        "speech",
        "reserve",
        "sound",
        "wait",
        "gap",
        "cut",
        "unheard",
    }
    assert "<h1>scripted</h1>" in html and "800 ms" in html and "Not valid" not in html


def test_the_page_of_a_run_without_interruptions_has_no_plot_of_them() -> None:
    html = page(Script(), num_turns=2, turns="manual")
    assert "Interruption times" not in html and {"gap", "cut", "unheard"} & kinds(html) == set()


def test_the_page_of_failures_says_what_they_were() -> None:
    html = page(Script(fault="401"), num_turns=1)
    assert "HTTP 401 invalid_api_key" in html and "Not valid: 1 of 1 calls failed" in html
    assert drawings(html) == [] and "<b>" not in html.replace("<body>", "")


def test_the_most_telling_call_has_a_barge_in_and_fits_the_axis() -> None:
    _, log, _ = called(Script(chunks=LATE), callers=4, num_turns=12, barge_in=0.2, seed=5)
    turns = most_telling(log.calls)
    assert any(turn.barge is not None for turn in turns) and len({turn.caller for turn in turns}) == 1
    assert turns[-1].begun_s - turns[0].begun_s < 26 and len(turns) >= 3
    assert most_telling([]) == []


@st.composite
def deltas(draw: st.DrawFn) -> Chunks:
    gaps = draw(st.lists(st.integers(0, 2000), min_size=1, max_size=12))
    counts = draw(st.lists(st.integers(1, 1500), min_size=len(gaps), max_size=len(gaps)))
    times = [sum(gaps[: place + 1]) / 1000 for place in range(len(gaps))]
    return list(zip(times, counts, strict=True))


@given(deltas(), st.none() | st.integers(0, 20_000))
def test_playback_loses_and_invents_nothing(audio: Chunks, stop_ms: int | None) -> None:
    stopped_s = None if stop_ms is None else stop_ms / 1000
    spans = playback_spans(audio, 1000, stopped_s)
    total_s = sum(count for _, count in audio) / 1000
    for earlier, later in pairwise(spans.heard):
        assert later.begin_s >= earlier.end_s - 1e-9
        assert later.place_s == pytest.approx(earlier.place_s + earlier.end_s - earlier.begin_s)
    heard_s = sum(span.end_s - span.begin_s for span in spans.heard)
    if stopped_s is None:
        found = find_underruns(audio, 1000)
        assert heard_s == pytest.approx(total_s) and spans.unheard is None
        assert len(spans.gaps) == found.num_stalls
        assert sum(end - begin for begin, end in spans.gaps) == pytest.approx(found.max_s)
    else:
        assert all(span.end_s <= stopped_s + 1e-9 for span in spans.heard) and heard_s <= total_s + 1e-9
    points = reserve_points(audio, 1000, stopped_s)
    assert all(left_s >= -1e-9 for _, left_s in points)
    assert [time_s for time_s, _ in points] == sorted(time_s for time_s, _ in points)
    assert not points or points[-1][1] == pytest.approx(0.0)


def test_a_player_that_is_dry_when_it_is_cleared_was_dry_until_then() -> None:
    audio = [(1.0, 500), (3.0, 500)]
    assert playback_spans(audio, 1000, 2.0).gaps == [(1.5, 2.0)]
    assert playback_spans(audio, 1000, 2.0, 1.2).gaps == [], "the reply was over"
    assert playback_spans(audio, 1000, 3.2, 4.0).gaps == [(1.5, 3.0)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 7.3), (3.0, 1234.0), (0.0, 0.004), (-2.0, 2.0)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    made = ticks(low, high, 6)
    assert 2 <= len(made) <= 7 and min(made) >= low - 1e-9 and max(made) <= high + 1e-9
    steps = {round(b - a, 9) for a, b in pairwise(made)}
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


def bars(values: Sequence[float]) -> list[int]:
    made = histogram(values, "ms", "x", "sound")
    assert made is not None
    titles = [title.text or "" for title in ElementTree.fromstring(made).iter("title")]
    return [int(text.rsplit(": ", 1)[1]) for text in titles]


@pytest.mark.parametrize(
    "values", [[0.0], [5.0] * 7, [0.0, 1.0, 1000.0], [0.1 * place for place in range(500)]]
)
def test_every_value_is_in_one_bar(values: list[float]) -> None:
    assert sum(bars(values)) == len(values)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.0002, "0.000"),
        (0.0123, "0.0123"),
        (7.456, "7.46"),
        (99.6, "99.6"),
        (1234.5, "1234"),
    ],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_only_all_is_a_hundred_percent() -> None:
    assert [percent_words(value) for value in (None, 0.0, 99.99, 100.0)] == ["-", "0%", "99.9%", "100%"]


def test_a_long_axis_is_in_seconds_and_its_bars_too() -> None:
    words = {
        text.text
        for text in ElementTree.fromstring(str(histogram([900.0, 26_660.0], "ms", "waits", "sound"))).iter(
            "text"
        )
    }
    assert {"s", "30", "p50 13.78"} <= words and not words & {"ms", "30000"}
    assert ">ms<" in str(histogram([900.0, 2660.0], "ms", "waits", "sound"))


def test_counts_are_of_calls_and_turns_that_are_named() -> None:
    """A call that was refused has a cell of its own, and its turns count as planned."""
    html = page(Script(fault="401", on_calls=(1,)), callers=3, num_turns=2, turns="manual")
    [cells] = [one for one in drawings(html) if one.get("aria-label") == "Underruns by call"]
    titles = [title.text or "" for title in cells.iter("title")]
    assert len(titles) == 3 and sum("HTTP 401" in title for title in titles) == 1
    assert [text.text for text in cells.iter("text")] == ["-"]
    assert (
        "n: 4 of 6 planned turns came to an end and 4 had sound; underruns are counted in 2 of 3 calls"
        in html
    )


def test_a_scale_of_one_value_has_a_place() -> None:
    assert Scale(2.0, 2.0, 10.0, 20.0)(2.0) == 10.0 and ticks(1.0, 1.0, 5) == [1.0]
    assert histogram([], "ms", "x", "sound") is None
