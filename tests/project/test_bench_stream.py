"""Records and plots of listeners; the benchmark itself, quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benches import bench

from innervoice.telemetry.metrics import RequestTimings, summarize

records, plot, record = bench("stream_records"), bench("plot_stream"), bench("record")
LATE = RequestTimings(1.0, 1000, ((1.5, 100), (1.9, 100)), ((1.2, "reflection"), (1.3, "speech")), 2.0)
GOOD = RequestTimings(1.0, 1000, ((1.5, 100), (1.6, 100)), ((1.2, "speech"),), 2.0)


class Axes:
    """Notes what is drawn."""

    def __init__(self) -> None:
        self.drawn: dict[str, list[tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: self.drawn.setdefault(name, []).append((args, more))


def made(sessions: int, *logs: RequestTimings, **more: Any) -> list[Any]:
    run = summarize(logs)
    return list(
        records.run_records(
            run, part="x", policy="slack", sessions=sessions, device="cpu", seconds=60, **more
        )
    )


def test_a_run_becomes_records() -> None:
    gaps, first, reflection, sound = made(
        2, LATE, GOOD, dtype="float32", details={"timeline": records.timeline(LATE)}
    )
    assert (gaps.name, gaps.ours, gaps.unit, gaps.n, gaps.invalid) == ("x: gaps", 1, "gaps", 2, None)
    assert (
        gaps.details["c100"] == 50.0
        and gaps.details["underrun_s"] == pytest.approx(0.3)
        and gaps.dtype == "float32"
    )
    assert (
        first.ours == pytest.approx(500)
        and first.details["first_chunk_s"] == 0.1
        and first.details["c100"] == 50.0
    )
    assert reflection.ours == pytest.approx(2.5) and sound.ours == pytest.approx(0.4)
    assert len({one.key for one in (gaps, first, reflection, sound)}) == 4
    failed = made(1, RequestTimings(0.0, error="no memory"))
    assert failed[0].invalid == "1 of 1 requests failed" and failed[1].ours is None


def test_streams_are_drawn_by_policy() -> None:
    axes = Axes()
    assert plot.draw_streams([*made(4, LATE), *made(2, GOOD)], axes)
    [(points, style)] = axes.drawn["plot"]
    assert points == ((2, 4), [pytest.approx(0), pytest.approx(300)]) and style["label"] == "slack, x, cpu"
    assert not plot.draw_streams(made(1, RequestTimings(0.0)), Axes()) and not plot.draw_streams([], Axes())


def test_a_timeline_shows_the_silence() -> None:
    axes = Axes()
    assert plot.draw_timeline(made(1, LATE, details={"timeline": records.timeline(LATE)}), axes)
    [((begin, end), _)] = axes.drawn["axvspan"]
    assert (begin, end) == (pytest.approx(0.6), pytest.approx(0.9))
    came, heard = (args for args, _ in axes.drawn["plot"])
    assert came[1][-1] == heard[1][-1] == pytest.approx(0.2) and heard[0][-1] == pytest.approx(1.0)
    assert not plot.draw_timeline(made(1, LATE), Axes())


@pytest.mark.long
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Its records, and that a session made again alone has the same tokens; how it sounds depends on the machine."""
    bench("stream").main(["--quick", "--device", "cpu", "--json", str(tmp_path / "records.json")])
    lines = {line["name"]: line for line in json.loads((tmp_path / "records.json").read_text())}
    assert (
        lines["real time: turns that differ alone"]["ours"] == 0
        and lines["real time: turns that differ alone"]["n"] >= 1
    )
    assert (
        lines["real time: gaps"]["details"]["num_failed"] == 0
        and lines["real time: gaps"]["details"]["timeline"]["audio"]
    )
    assert lines["real time: first audio"]["details"]["first_chunk_s"] > 0
    assert all(line["goal"] is None and line["command"] for line in lines.values())
