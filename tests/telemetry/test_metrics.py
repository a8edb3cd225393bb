"""The figures against plain definitions: a player that steps through the sound, hand-made logs, random arrivals."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.telemetry.metrics import (
    Distribution,
    RequestTimings,
    find_underruns,
    leading_silence_s,
    mbu,
    measure,
    percent,
    streams_carried,
    summarize,
)

RATE = 1000
# Whole milliseconds, so that a player that steps in milliseconds is exact.
chunks = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500)), max_size=12).map(
    lambda made: tuple((t / 1000, n) for t, n in sorted(made))
)
kinds = st.sampled_from(["reflection", "transcript", "speech", "end"])
tokens = st.lists(st.tuples(st.integers(0, 3000), kinds), max_size=20).map(
    lambda made: tuple((t / 1000, kind) for t, kind in sorted(made))
)


def log(*audio: tuple[float, int], **more: object) -> RequestTimings:
    return RequestTimings(submitted_s=0.0, rate=RATE, audio=audio, **more)


def played(audio: tuple[tuple[float, int], ...]) -> tuple[int, int]:
    """(times it ran dry, ms of silence) of a player that steps in milliseconds and waits for what is missing."""
    audio = tuple((t, n) for t, n in audio if n)
    if not audio:
        return 0, 0
    now, left, buffered, dry, silent = round(1000 * audio[0][0]), list(audio), 0, 0, 0
    was_dry = False
    while left or buffered:
        while left and round(1000 * left[0][0]) <= now:
            buffered += left.pop(0)[1]
        if buffered:
            buffered, was_dry = buffered - 1, False
        elif left:
            dry, silent, was_dry = dry + (not was_dry), silent + 1, True
        now += 1
    return dry, silent


@settings(deadline=None)
@given(chunks)
def test_stalls_are_those_of_a_player(audio: tuple[tuple[float, int], ...]) -> None:
    found = find_underruns(audio, RATE)
    dry, silent = played(audio)
    assert found.num_stalls == dry
    assert found.max_s == pytest.approx(silent / 1000, abs=1e-9)


@settings(deadline=None)
@given(chunks)
def test_lateness_by_its_definition(audio: tuple[tuple[float, int], ...]) -> None:
    found = find_underruns(audio, RATE)
    real = [(round(1000 * t), n) for t, n in audio if n]
    late = [max(0, real[k][0] - real[0][0] - sum(n for _, n in real[:k])) for k in range(1, len(real))]
    assert found.max_s == pytest.approx(max(late, default=0) / 1000, abs=1e-9)
    assert found.sum_s == pytest.approx(sum(late) / 1000, abs=1e-9)
    assert found.count == sum(ms > 0 for ms in late) >= found.num_stalls
    assert found.is_measured == (len(real) > 1)


@settings(deadline=None)
@given(chunks, st.floats(0, 10))
def test_a_later_start_of_the_clock_changes_nothing(
    audio: tuple[tuple[float, int], ...], shift: float
) -> None:
    here, there = find_underruns(audio, RATE), find_underruns([(t + shift, n) for t, n in audio], RATE)
    assert (here.count, here.num_stalls) == (there.count, there.num_stalls)
    assert here.max_s == pytest.approx(there.max_s, abs=1e-9)


def test_a_chunk_at_its_deadline_is_in_time() -> None:
    # 0.1 + 0.2 is more than 0.3 in binary.
    found = find_underruns([(0.1, 200), (0.1 + 0.2, 100), (0.4, 100)], RATE)
    assert (found.count, found.num_stalls, found.max_s) == (0, 0, 0.0)


def test_a_late_chunk_makes_those_behind_it_late() -> None:
    # Due at 0.1, 0.2, 0.3; the player waits 0.3 s once, and all behind it come as fast as they play.
    found = find_underruns([(0.0, 100), (0.4, 100), (0.5, 100), (0.6, 100)], RATE)
    assert (found.count, found.num_stalls) == (3, 1)
    assert found.max_s == pytest.approx(0.3) and found.sum_s == pytest.approx(0.9)


def test_figures_of_a_request() -> None:
    one = measure(
        RequestTimings(
            submitted_s=10.0,
            rate=RATE,
            audio=((10.5, 0), (11.0, 500), (11.25, 1000), (13.0, 500)),
            tokens=(
                (10.2, "reflection"),
                (10.3, "transcript"),
                (10.6, "speech"),
                (11.0, "reflection"),
                (11.5, "end"),
            ),
            finished_s=13.5,
            leading_silence_s=0.25,
            finish_reason="stop",
        )
    )
    assert (one.audio_ttfp_ms, one.audible_ttfa_ms, one.first_chunk_s) == (1000.0, 1250.0, 0.5)
    assert (one.audio_s, one.audio_rtf, one.e2el_ms) == (2.0, 1.5, 3500.0)
    assert one.inter_chunk_s == (0.25, 1.75)
    assert one.underruns.max_s == pytest.approx(0.5) and one.underruns.num_chunks == 3
    assert (one.reflection_per_audio_s, one.hidden_before_audio) == (1.0, 2)
    assert one.tokens.n == 5 and one.tokens.ttft_ms == pytest.approx(200)
    assert one.tokens.itl_ms == pytest.approx((100, 300, 400, 500)) and one.tokens.tpot_ms == pytest.approx(
        1300 / 4
    )
    assert one.by_kind["reflection"].ttft_ms == pytest.approx(200) and one.by_kind[
        "reflection"
    ].itl_ms == pytest.approx((400,))
    assert one.by_kind["speech"].itl_ms == pytest.approx((300,)) and "transcript" in one.by_kind


def test_nothing_is_measured_of_nothing() -> None:
    one = measure(RequestTimings(submitted_s=0.0))
    assert (one.audio_ttfp_ms, one.audible_ttfa_ms, one.first_chunk_s, one.audio_rtf, one.e2el_ms) == (
        None,
    ) * 5
    assert (one.reflection_per_audio_s, one.tokens.ttft_ms, one.tokens.tpot_ms) == (None,) * 3
    run = summarize([])
    assert (run.c50, run.c100, run.c200, run.streaming_viability, run.audio_throughput) == (None,) * 5
    assert run.audio_ttfp_ms == Distribution(0)


@settings(deadline=None)
@given(st.lists(st.tuples(chunks, tokens), max_size=6))
def test_a_run_is_its_requests(
    made: list[tuple[tuple[tuple[float, int], ...], tuple[tuple[float, str], ...]]],
) -> None:
    logs = [log(*audio, tokens=words) for audio, words in made]
    run, each = summarize(logs), [measure(one) for one in logs]
    due = sum(one.underruns.num_chunks - 1 for one in each if one.underruns.is_measured)
    assert run.num_underruns == sum(one.underruns.count for one in each)
    assert (run.streaming_viability is None) == (due == 0)
    if due:
        assert run.streaming_viability == pytest.approx(100 * (1 - run.num_underruns / due))
        assert run.c50 is not None and run.c50 <= run.c100 <= run.c200  # type: ignore[operator]
    assert sum(d["itl_ms"].n for d in run.by_kind.values()) == run.itl_ms.n
    for one in each:
        if one.tokens.n > 1:
            times = [t for t, _ in next(log for log, m in zip(logs, each, strict=True) if m is one).tokens]
            assert one.tokens.tpot_ms == pytest.approx(1e3 * (times[-1] - times[0]) / (len(times) - 1))
    json.dumps(run.to_dict(), allow_nan=False)
    assert pickle.loads(pickle.dumps(run)) == run


@settings(deadline=None)
@given(chunks, tokens)
def test_a_log_survives_json_and_pickle(
    audio: tuple[tuple[float, int], ...], words: tuple[tuple[float, str], ...]
) -> None:
    one = log(*audio, tokens=words, request_id="r", finished_s=4.0)
    assert RequestTimings.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert RequestTimings.from_dict({**one.to_dict(), "server": "another"}) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_c100_counts_what_was_measured() -> None:
    late = [log((0.0, 100), (0.1 + s, 100)) for s in (0.0, 0.05, 0.06, 0.1, 0.11, 0.2, 0.21, 0.3)]
    run = summarize([*late, log((0.0, 100)), log()])
    assert (run.c50, run.c100, run.c200) == (25.0, 50.0, 75.0)
    assert run.num_requests == 10 and run.audio_underrun_s.n == 8


def test_p99_needs_a_hundred() -> None:
    assert Distribution.of(range(99)).p99 is None
    assert Distribution.of(range(101)).p99 == 99.0
    assert Distribution.of([None, 1.0, None]) == Distribution(1, 1.0, 1.0, 1.0, 1.0, None, 1.0)


def test_throughput_is_over_the_whole_run() -> None:
    first = log((1.0, 2000), tokens=((0.5, "speech"),), finished_s=1.5)
    second = replace(first, submitted_s=0.4, finished_s=4.0)
    run = summarize([first, second])
    assert run.wall_s == 4.0 and run.audio_throughput == 1.0 and run.decode_tok_s == 0.5


def test_streams_carried() -> None:
    good, gap = log((0.0, 100), (0.1, 100)), log((0.0, 100), (0.15, 100))
    bad, failed = log((0.0, 100), (0.9, 100)), replace(log((0.0, 100), (0.1, 100)), error="no memory")
    runs = {
        1: summarize([good]),
        2: summarize([good, good]),
        4: summarize([good, gap]),
        8: summarize([bad]),
        16: summarize([failed]),
    }
    carried = streams_carried(runs)
    assert (carried.c100_at_least_99, carried.without_underrun) == (4, 2)
    assert streams_carried({3: summarize([log()])}) == streams_carried({})


def test_leading_silence_is_found_to_a_frame() -> None:
    quiet, loud = np.full(3000, 0.001, np.float32), np.full(2000, 0.1, np.float32)
    assert leading_silence_s(np.concatenate([quiet, loud]), 10_000) == pytest.approx(0.3)
    assert leading_silence_s(np.concatenate([quiet, loud]), 10_000, gate_dbfs=-70) == 0.0
    assert leading_silence_s(quiet, 10_000) == pytest.approx(0.3)
    assert leading_silence_s(np.zeros(0, np.float32), 10_000) == 0.0


@settings(deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 1.0))
def test_silence_ends_within_a_frame_of_the_first_sound(silent: int, level: float) -> None:
    tone = np.full(1000, level, np.float32)
    found = leading_silence_s(np.concatenate([np.zeros(silent, np.float32), tone]), 10_000)
    assert abs(found - silent / 10_000) <= 0.01 + 1e-9


def test_bandwidth_and_percent() -> None:
    assert mbu(1e9, 0.5, 4e9) == 0.5
    with pytest.raises(ValueError, match="above 0"):
        mbu(1e9, 0.0, 4e9)
    assert percent([]) is None and percent([True, False]) == 50.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"audio": ((2.0, 1), (1.0, 1))}, "in order"),
        ({"audio": ((-1.0, 1),)}, "after the submission"),
        ({"tokens": ((math.nan, "speech"),)}, "finite"),
        ({"audio": ((1.0, -1),)}, "fewer than 0"),
    ],
)
def test_a_wrong_log_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestTimings(**{"submitted_s": 0.0, **change})


@pytest.mark.parametrize(
    "values", [{}, {"submitted_s": 0, "audio": [[1.0]]}, {"submitted_s": 0, "tokens": [3]}]
)
def test_a_wrong_line_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"submitted_s|pairs"):
        RequestTimings.from_dict(values)
