"""Callers of a scripted server under a virtual clock: every figure is known beforehand, in either dialect."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from benches import bench
from scripted_realtime import Script, scripted_server
from spoken_tones import called, tone
from virtual_clock import VirtualLoop, run_virtually

from innervoice.telemetry.metrics import RequestTimings, summarize
from innervoice.tools.realtime_bench import (
    CallSettings,
    Recording,
    bundled_recordings,
    figures_of,
    hold_calls,
    read_recordings,
    records_of,
)
from innervoice.tools.realtime_bench.dialect import dialect_of, session_update
from innervoice.tools.realtime_bench.recordings import FRAME_S
from innervoice.tools.realtime_bench.records import command
from innervoice.tools.realtime_bench.settings import realtime_url

LATE = ((0.1, 0.5), (0.3, 0.5), (1.4, 0.5))  # the third is due 1.1 s after response.created, and 300 ms late
LONG = tuple((0.1 * place, 0.2) for place in range(1, 41))


@pytest.mark.parametrize("dialect", ["ga", "beta"])
@pytest.mark.parametrize(("turns", "wait_s"), [("manual", 0.0), ("server", 0.5)])
def test_figures_are_those_of_the_script(dialect: str, turns: str, wait_s: float) -> None:
    server, log, figures = called(Script(dialect, LATE, quiet_s=0.05), turns=turns, callers=3, num_turns=2)
    replies = figures.replies
    assert (replies.num_requests, replies.num_failed, figures.num_calls, figures.invalid) == (6, 0, 3, None)
    # The answer begins 0.2 s after the turn's end, its sound 0.1 s later, with 50 ms of silence.
    for values, expected in (
        (figures.response_ms, wait_s + 0.2),
        (replies.audio_ttfp_ms, wait_s + 0.3),
        (replies.audible_ttfa_ms, wait_s + 0.35),
        (replies.e2el_ms, wait_s + 1.6),
    ):
        assert values.n == 6 and values.p10 == pytest.approx(1e3 * expected, abs=1e-3)
        assert values.most == pytest.approx(1e3 * expected, abs=1e-3)
    if turns == "server":
        assert figures.turn_end_ms.median == pytest.approx(500, abs=1e-3)
    assert replies.first_chunk_s.most == 0.5 and replies.audio_s.median == pytest.approx(1.5)
    assert replies.audio_underrun_s.median == pytest.approx(
        0.3
    ) and replies.inter_chunk_s.most == pytest.approx(1.1)
    assert (replies.num_underruns, replies.num_stalls, replies.num_stalled_requests) == (6, 6, 6)
    assert (replies.c100, replies.c200, replies.streaming_viability) == (0.0, 0.0, 50.0)
    assert figures.stream_underruns.median == 2 and figures.underrun_free == 0.0
    assert figures.lag_ms.most == 0.0 and figures.errors == {}
    assert {call.dialect for call in log.calls} == {dialect} and {call.model for call in log.calls} == {
        "scripted"
    }
    updates = [events[0] for events in server.received]
    assert {event["type"] for event in updates} == {"session.update"}


@pytest.mark.parametrize("turns", ["server", "manual"])
def test_an_interruption_takes_as_long_as_the_script_says(turns: str) -> None:
    script = Script(chunks=LONG, notice_s=0.12, runs_on_s=0.25)
    server, log, figures = called(script, turns=turns, num_turns=4, barge_in=1.0, callers=2)
    cuts = figures.interruptions
    assert cuts.num == 6 and cuts.num_ignored == 0, "all but the last of each call"
    # A caller of manual turns stops the reply by itself, the moment it speaks.
    noticed_ms = 120 if turns == "server" else 0
    for values in (cuts.noticed_ms, cuts.silent_ms):
        assert values.p10 == pytest.approx(noticed_ms, abs=1e-3)
        assert values.most == pytest.approx(noticed_ms, abs=1e-3)
    # Deltas run on for 250 ms, one each 100 ms: two or three of 0.2 s, the last within the last 100 ms.
    assert (
        noticed_ms + 150 - 10 <= cuts.last_delta_ms.p10 and cuts.last_delta_ms.most <= noticed_ms + 250 + 10
    )
    assert cuts.sound_after_s.p10 >= 0.4 - 1e-6 and cuts.sound_after_s.most <= 0.6 + 1e-6
    assert figures.replies.num_stalls == 0 and figures.replies.num_failed == 0
    # The client says how much of each reply was played, which is what its clock says.
    sent = [event for events in server.received for event in events]
    heard = [event["audio_end_ms"] for event in sent if event["type"] == "conversation.item.truncate"]
    cut = [turn for turn in log.turns if turn.barge is not None]
    first_s = [turn.reply.audio[0][0] for turn in cut]
    stopped_s = [turn.reply.stopped_s for turn in cut]
    expected = [1e3 * (stop - first) for first, stop in zip(first_s, stopped_s, strict=True)]
    assert sorted(heard) == pytest.approx(sorted(expected), abs=1.0)
    assert all(turn.timings.finish_reason == "interrupted" for turn in cut)
    assert sum(event["type"] == "response.cancel" for event in sent) == (6 if turns == "manual" else 0)


def test_a_prompt_server_sends_nothing_after_it_noticed() -> None:
    _, _, figures = called(Script(chunks=LONG, notice_s=0.12), num_turns=3, barge_in=1.0)
    cuts = figures.interruptions
    assert cuts.num == 2 and cuts.sound_after_s.most == 0 and cuts.last_delta_ms.most <= 120


def test_a_reply_that_was_sent_whole_is_silent_when_the_player_is_cleared() -> None:
    """The server has sent all of a reply; speech_started still ends what the caller hears."""
    _, _, figures = called(Script(chunks=((0.1, 4.0),), notice_s=0.2), num_turns=3, barge_in=1.0)
    cuts = figures.interruptions
    assert (cuts.num, cuts.last_delta_ms.most) == (2, 0.0) and cuts.silent_ms.most == pytest.approx(
        200, abs=1e-3
    )


def test_a_server_that_does_not_hear_an_interruption_is_found_out() -> None:
    script = Script(chunks=((0.1, 1.0), (0.2, 1.0), (0.3, 1.0)), fault="ignores barge-in")
    _, _, figures = called(script, num_turns=3, barge_in=1.0)
    assert figures.interruptions.num == figures.interruptions.num_ignored == 2
    assert figures.interruptions.silent_ms.most > 500 and figures.interruptions.noticed_ms.n == 0


def test_a_later_question_does_not_count_as_noticing_an_interruption() -> None:
    """The server misses every third question; when it hears the one after, that is another turn."""
    script = Script(chunks=((0.1, 1.0), (0.2, 1.0)), fault="ignores some")
    _, _, figures = called(script, callers=3, num_turns=9, barge_in=0.5, seed=6)
    cuts = figures.interruptions
    assert 0 < cuts.num_ignored < cuts.num and cuts.noticed_ms.most == pytest.approx(100, abs=1e-3)


def test_warm_ups_are_over_before_and_not_counted() -> None:
    server, log, figures = called(Script(), num_warmups=3, callers=2, num_turns=1)
    assert len(server.received) == 5 and figures.num_calls == 2 and figures.replies.num_requests == 2
    assert {call.caller for call in log.calls} == {0, 1}


def test_callers_call_again_until_the_time_is_over() -> None:
    _, log, figures = called(Script(), callers=2, num_turns=2, seconds=12.0, arrivals=1.0, seed=4)
    assert figures.num_calls > 4 and log.wall_s >= 12
    begun = [turn.begun_s - min(call.begun_s for call in log.calls) for turn in log.turns]
    assert max(begun) < 12.1 and max(len(call.turns) for call in log.calls) == 2
    assert [call.number for call in log.calls if call.caller == 0] == list(
        range(sum(c.caller == 0 for c in log.calls))
    )
    # Without a number of turns a call lasts as long as the run.
    _, log, figures = called(Script(), callers=2, seconds=12.0)
    assert figures.num_calls == 2 and min(len(call.turns) for call in log.calls) >= 4


def test_the_same_seed_gives_the_same_run() -> None:
    def shape(seed: int) -> list[tuple[int, float, bool]]:
        _, log, _ = called(Script(chunks=LONG), callers=3, num_turns=4, barge_in=0.5, arrivals=2.0, seed=seed)
        return [(turn.caller, round(turn.begun_s, 6), turn.barge is not None) for turn in log.turns]

    first = shape(1)
    assert first == shape(1) and first != shape(2)
    assert {is_cut for _, _, is_cut in first} == {True, False}


def test_frames_are_sent_on_the_clock_also_between_questions() -> None:
    server, log, _ = called(Script(), num_turns=2)
    spoken = server.num_frames * FRAME_S
    assert spoken == pytest.approx(log.wall_s, abs=0.1)
    server, _, _ = called(Script(), num_turns=2, turns="manual")
    assert server.num_frames == 2 * len(tone().frames)


def run_beside(disturb: Any, script: Script, **settings: Any) -> Any:
    """Callers in an event loop in which something else runs as well."""

    async def work() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            async with scripted_server(script, Path(folder)) as (_, connect):
                stop = asyncio.Event()
                other = asyncio.create_task(disturb(stop))
                made = CallSettings(url="ws://scripted", **settings)
                log = await hold_calls(made, [tone()], connect=connect, stop=stop)
                other.cancel()
                return log

    return run_virtually(work())


@pytest.mark.parametrize(
    ("held_s", "every_s", "is_late"), [(0.03, 0.2, True), (0.3, 3.0, True), (0.004, 0.1, False)]
)
def test_a_late_generator_makes_its_record_invalid(held_s: float, every_s: float, is_late: bool) -> None:
    async def hold_up(stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        while True:
            await asyncio.sleep(every_s)
            loop.now_s += held_s

    figures = figures_of(run_beside(hold_up, Script(), num_turns=6))
    assert figures.lag_ms.most == pytest.approx(1e3 * held_s, abs=21)
    assert bool(figures.invalid) == is_late
    if is_late:
        assert figures.invalid is not None and figures.invalid.startswith("the callers were late: p99 ")


def test_a_stopped_run_keeps_what_it_has() -> None:
    async def stop_soon(stop: asyncio.Event) -> None:
        await asyncio.sleep(4.2)
        stop.set()

    log = run_beside(stop_soon, Script(), callers=2, num_turns=1000)
    figures = figures_of(log)
    assert log.is_cut and 0 < figures.replies.num_requests < 10 and figures.replies.num_failed == 0
    assert figures.invalid == "the run was interrupted"


FAULTS: dict[str, tuple[Script, dict[str, Any], str]] = {
    "refused": (Script(fault="401"), {}, "HTTP 401 invalid_api_key"),
    "full before": (Script(fault="429"), {}, "HTTP 429 session_limit_reached"),
    "full after": (Script(fault="full"), {}, "error session_limit_reached"),
    "mute": (Script(fault="mute"), {}, "timeout: no session.created"),
    "settings": (Script(fault="refuses settings"), {}, "error invalid_value"),
    "deaf": (Script(fault="deaf"), {}, "timeout: no answer to a question"),
    "no answer": (Script(fault="no answer"), {"turns": "manual"}, "timeout: no first sound"),
    "refuses replies": (Script(fault="refuses replies"), {"turns": "manual"}, "error no_reply_today"),
    "dies": (Script(fault="dies"), {}, "closed without a word"),
    "stalls": (Script(fault="stalls"), {}, "timeout: reply stalled"),
    "fails": (Script(fault="fails"), {}, "response failed server_error"),
    "speechless": (Script(fault="speechless"), {}, "reply without sound: completed"),
    "garbles": (Script(fault="garbles"), {}, "bad message"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_is_counted_by_type_and_the_others_go_on(name: str) -> None:
    """Of four callers the second and the fourth meet a fault; the others hear all their replies."""
    script, settings, kind = FAULTS[name]
    some = Script(**vars(script) | {"on_calls": (1, 3)})
    _, log, figures = called(some, **{"callers": 4, "num_turns": 2, "timeout_s": 5.0} | settings)
    num = sum(figures.errors.values())
    assert set(figures.errors) == {kind} and num >= 2 and figures.num_failed_calls == 2
    good = [turn for turn in log.turns if turn.error is None]
    assert len(good) >= 4 and len({turn.caller for turn in good}) >= 2
    assert figures.invalid == "2 of 4 calls failed"
    assert figures.replies.num_failed == sum(turn.error is not None for turn in log.turns)


def test_a_caller_whose_call_failed_calls_again_while_there_is_time() -> None:
    _, log, figures = called(Script(fault="dies", on_calls=(0, 2)), num_turns=1, seconds=8.0)
    assert figures.errors == {"closed without a word": 2} and figures.num_calls > 3
    failed = [place for place, call in enumerate(log.calls) if call.turns[-1].error]
    again = [log.calls[place + 1].begun_s - log.calls[place].ended_s for place in failed]
    assert all(pause_s >= 1.0 for pause_s in again)


def test_a_question_that_is_cut_in_two_by_its_pause_is_answered_once() -> None:
    """The server takes a pause for the end; what it begins to say then is stopped by the rest of the question."""
    pause = np.zeros(round(0.8 * 24000), np.float32)
    part = np.full(24000, 0.5, np.float32)
    halting = Recording.of("halting", np.concatenate([part, pause, part]), 24000)

    async def work(answer_s: float) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            async with scripted_server(Script(answer_s=answer_s), Path(folder)) as (_, connect):
                return await hold_calls(
                    CallSettings("ws://scripted", num_turns=2), [halting], connect=connect
                )

    figures = figures_of(run_virtually(work(0.1)))
    assert figures.errors == {} and figures.replies.audio_ttfp_ms.median == pytest.approx(700, abs=1e-3)
    assert figures.replies.num_requests == 2


def test_auto_finds_the_dialect() -> None:
    assert dialect_of({"type": "realtime", "audio": {}}) == "ga" and dialect_of({}) == "ga"
    assert dialect_of({"modalities": ["text"], "input_audio_format": "pcm16"}) == "beta"
    server, log, figures = called(Script("beta", fault="wants beta"), num_turns=1)
    assert ["openai-beta" in headers for headers in server.headers] == [False, True]
    assert figures.errors == {} and log.calls[0].dialect == "beta"
    server, _, _ = called(Script("beta"), num_turns=1, dialect="beta", api_key="k")
    assert (
        server.headers[0]["openai-beta"] == "realtime=v1" and server.headers[0]["authorization"] == "Bearer k"
    )


def test_session_fields_are_joined() -> None:
    more = {"instructions": "x", "audio": {"output": {"voice": "v"}}}
    sent = session_update("ga", CallSettings("ws://h", silence_ms=300, session=more))["session"]
    assert sent["audio"]["output"] == {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "v"}
    assert (
        sent["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300 and sent["instructions"] == "x"
    )
    assert session_update("beta", CallSettings("ws://h", turns="manual"))["session"]["turn_detection"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ws://h:1", "ws://h:1/v1/realtime"),
        ("http://h/", "ws://h/v1/realtime"),
        ("https://h/x/realtime?a=b", "wss://h/x/realtime?a=b&model=m"),
        ("wss://h/y?model=old", "wss://h/y?model=m"),
    ],
)
def test_addresses_are_completed(given: str, expected: str) -> None:
    assert realtime_url(given, "m" if "model=m" in expected else None) == expected


@pytest.mark.parametrize(
    "given", ["h:1", "ftp://h", "ws://", "ws://h:99999", "ws://u@h", "ws://h/#a", "ws://[h"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="url is "):
        realtime_url(given)


@pytest.mark.parametrize("name", ["dog.flac", "birthday.flac", "miles.flac"])
def test_recordings_begin_and_end_with_speech(name: str) -> None:
    [one] = [recording for recording in bundled_recordings() if recording.name == name]
    assert one.loud <= 1 and len(one.peaks) == len(one.frames)
    assert one.duration_s == pytest.approx(
        {"dog.flac": 2.04, "birthday.flac": 1.84, "miles.flac": 2.42}[name], abs=0.02
    )
    assert max(one.peaks) > 0.2 and all(json.loads(frame)["type"].endswith(".append") for frame in one.frames)


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_the_silence_around_a_recording_is_cut(rate: int) -> None:
    for before_s, sound_s, after_s in itertools.product((0.0, 0.5), (0.1, 0.33), (0.0, 0.7)):
        parts: Sequence[np.ndarray] = [
            np.zeros(round(before_s * rate)),
            np.full(round(sound_s * rate), 0.5),
            np.zeros(round(after_s * rate)),
        ]
        made = Recording.of("x", np.concatenate(parts).astype(np.float32), rate)
        lead_s = min(before_s, 0.02)
        assert made.loud == round(lead_s / FRAME_S)
        assert made.duration_s == pytest.approx(sound_s + lead_s, abs=0.045)


def test_a_folder_of_recordings_is_read(tmp_path: Path) -> None:
    for name, level in (("b.wav", 0.5), ("a.flac", 0.2)):
        soundfile.write(tmp_path / name, np.full(8000, level, np.float32), 16000)
    (tmp_path / "notes.txt").write_text("x")
    assert [one.name for one in read_recordings(tmp_path)] == ["a.flac", "b.wav"]
    soundfile.write(tmp_path / "c.wav", np.zeros(8000, np.float32), 16000)
    with pytest.raises(ValueError, match=r"c\.wav is never louder than -45 dBFS"):
        read_recordings(tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        read_recordings(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no recording"):
        read_recordings(tmp_path / "empty")


def test_records_are_of_the_benchmarks_form(tmp_path: Path) -> None:
    record, plots = bench("record"), bench("plot_stream")
    settings = CallSettings("ws://h", callers=2, num_turns=3, barge_in=1.0)
    _, log, figures = called(Script(chunks=LATE), callers=2, num_turns=3, barge_in=1.0)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(records_of(figures, log, settings)))
    made = record.read(path)
    assert len({one.key for one in made}) == len(made)
    by_name = {one.name: one for one in made}
    gaps, first = by_name["realtime: gaps"], by_name["realtime: audio_ttfp_ms"]
    assert gaps.ours == figures.replies.num_stalls and gaps.details["errors"] == {} and gaps.invalid is None
    assert gaps.details["underrun_s"] == pytest.approx(figures.replies.audio_underrun_s.most)
    assert first.unit == "ms" and first.details["first_chunk_s"] == 0.5 and "c100" in first.details
    assert (
        by_name["realtime: stream_underruns"].unit == "gaps" and by_name["realtime: sound"].better == "higher"
    )
    assert all(hasattr(plots, name) for name in ("draw_streams", "draw_timeline"))
    assert gaps.details["timeline"]["audio"] and gaps.details["sessions"] == 2


def test_a_line_a_turn_gives_the_same_figures_again() -> None:
    _, log, figures = called(Script(chunks=LATE), callers=2, num_turns=2)
    lines = [json.loads(json.dumps(turn.to_dict())) for turn in log.turns]
    again = summarize([RequestTimings.from_dict(line) for line in lines])
    assert again == figures.replies and {line["question"] for line in lines} == {"tone"}


def test_the_command_of_a_record_has_no_key() -> None:
    words = ["bench", "realtime", "--url", "ws://h/v1", "--api-key", "secret", "--json", "/home/x/r.json"]
    assert command(words) == "innervoice bench realtime --url ws://h/v1 --api-key ... --json .../r.json"
    assert "secret" not in command(["--api-key=sec\nret secret"]) and "secret" not in repr(
        CallSettings("ws://h", api_key="secret")
    )


def test_the_figures_of_nothing_are_empty() -> None:
    _, _, figures = called(Script(fault="401"), num_turns=1)
    assert (
        figures.replies.num_requests == 0 and figures.underrun_free is None and math.isfinite(figures.wall_s)
    )
