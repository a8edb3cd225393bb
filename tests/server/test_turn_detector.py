"""Turn detection: where turns begin and end for given probabilities, and what holds for any."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innervoice.server.turn_detector import (
    START_MS,
    WAITS_MS,
    SpeechStarted,
    SpeechStopped,
    TurnDetection,
    TurnDetector,
    VoicedFrame,
    doubt_of,
)

FRAME_MS = 32.0
Found = list[tuple[int, SpeechStarted | SpeechStopped]]


def frame(index: int, probability: float, level_db: float = -20.0) -> VoicedFrame:
    return VoicedFrame(FRAME_MS * index, FRAME_MS * (index + 1), probability, level_db)


def run(
    probabilities: Sequence[float],
    settings: TurnDetection | None = None,
    *,
    audible: bool = False,
    levels: Sequence[float] | None = None,
) -> Found:
    """What is found, with the index of the frame at which it is."""
    detector = TurnDetector(settings or TurnDetection())
    found: Found = []
    for i, probability in enumerate(probabilities):
        level = -20.0 if levels is None else levels[i]
        one = detector.push(frame(i, probability, level), assistant_audible=audible)
        if one is not None:
            found.append((i, one))
    return found


def test_a_turn_of_server_vad() -> None:
    found = run([0.0] * 20 + [0.9] * 30 + [0.0] * 30)
    assert found == [
        (21, SpeechStarted(20 * FRAME_MS - 300)),
        (65, SpeechStopped(66 * FRAME_MS, 50 * FRAME_MS)),
    ]


def test_padding_reaches_neither_before_the_sound_nor_into_the_turn_before() -> None:
    found = run([0.9] * 10 + [0.0] * 4 + [0.9] * 10, TurnDetection(silence_duration_ms=100))
    starts = [one for _, one in found if isinstance(one, SpeechStarted)]
    (stop,) = [one for _, one in found if isinstance(one, SpeechStopped)]
    assert [one.audio_start_ms for one in starts] == [0.0, stop.audio_end_ms]


@pytest.mark.parametrize(
    ("probabilities", "begins"),
    [
        ([0.9, 0.0, 0.9, 0.0, 0.9], False),  # clicks
        ([0.9, 0.4, 0.9], True),  # 0.4 lies between the thresholds
        ([0.4] * 20, False),
        ([0.5, 0.5], True),
        ([0.49, 0.49, 0.49], False),
    ],
)
def test_what_begins_a_turn(probabilities: list[float], begins: bool) -> None:
    assert bool(run([0.0, *probabilities])) == begins


def test_more_is_asked_while_a_reply_is_heard() -> None:
    assert run([0.6] * 40, audible=True) == []
    assert [i for i, _ in run([0.9] * 40, audible=True)] == [5]
    assert run([0.9] * 5 + [0.0] * 20, audible=True) == []
    assert [i for i, _ in run([0.99] * 40, TurnDetection(threshold=0.97), audible=True)] == [5]


def test_speech_does_not_end_between_the_thresholds() -> None:
    assert len(run([0.9] * 5 + [0.36] * 60)) == 1
    assert len(run([0.9] * 5 + [0.34] * 60)) == 2


@pytest.mark.parametrize("threshold", [0.0, 0.05, 1.0])
def test_thresholds_at_the_ends_of_their_range(threshold: float) -> None:
    found = run([1.0] * 5 + [0.0] * 30, TurnDetection(threshold=threshold))
    assert isinstance(found[0][1], SpeechStarted)
    assert len(found) == (1 if threshold == 0 else 2)


@pytest.mark.parametrize("eagerness", WAITS_MS)
def test_semantic_vad_waits_for_more_after_a_sentence_that_seems_open(eagerness: str) -> None:
    settings = TurnDetection(kind="semantic_vad", eagerness=eagerness)  # type: ignore[arg-type]
    soon_ms, late_ms = WAITS_MS[eagerness]  # type: ignore[index]
    speech = 40
    falls = [-20.0] * (speech - 6) + [-30.0] * 6 + [-80.0] * 400
    level = [-20.0] * speech + [-80.0] * 400

    def wait_ms(num: int, levels: list[float]) -> float:
        found = run([0.9] * num + [0.0] * 400, settings, levels=levels)
        stop = found[1][1]
        assert isinstance(stop, SpeechStopped)
        return stop.audio_end_ms - stop.speech_end_ms

    assert soon_ms <= wait_ms(speech, falls) < soon_ms + FRAME_MS
    assert late_ms <= wait_ms(speech, level) < late_ms + FRAME_MS
    assert late_ms <= wait_ms(10, level[speech - 10 :]) < late_ms + FRAME_MS  # a word


@pytest.mark.parametrize(
    ("level_fall_db", "pitches", "doubt"),
    [
        (10.0, [], 0.0),  # a whisper: by its level alone
        (0.0, [], 1.0),
        (10.0, [120.0] * 26 + [90.0] * 4, 0.0),
        (10.0, [120.0] * 30, 1.0),  # softer, but the voice stays up
        (0.0, [120.0] * 26 + [90.0] * 4, 1.0),
        (10.0, [120.0] * 26 + [170.0] * 4, 0.0),  # a question
        (10.0, [120.0] * 26 + [130.0] * 4, 0.65),  # a small rise promises more
        (10.0, [120.0] * 26 + [113.3] * 4, 0.5),
        (1.5, [120.0] * 26 + [90.0] * 4, 0.5),
    ],
)
def test_what_a_complete_turn_sounds_like(level_fall_db: float, pitches: list[float], doubt: float) -> None:
    speech = [
        VoicedFrame(FRAME_MS * i, FRAME_MS * (i + 1), 0.9, -20.0 - level_fall_db * (i >= 33), hz)
        for i, hz in enumerate([*pitches, *[0.0] * (40 - len(pitches))])
    ]
    assert doubt_of(speech, 40 * FRAME_MS) == pytest.approx(doubt, abs=0.02)
    assert doubt_of(speech[-10:], 10 * FRAME_MS) == 1.0  # a word


def test_a_weak_frame_says_nothing_of_the_pitch() -> None:
    speech = [VoicedFrame(FRAME_MS * i, FRAME_MS * (i + 1), 0.9, -20.0, 120.0 - i) for i in range(34)]
    echo = [VoicedFrame(FRAME_MS * i, FRAME_MS * (i + 1), 0.9, -50.0, 400.0) for i in range(34, 40)]
    assert doubt_of([*speech, *echo], 40 * FRAME_MS) == 0.0


def test_a_turn_that_the_client_ends_is_forgotten() -> None:
    detector = TurnDetector(TurnDetection())
    for i in range(5):
        detector.push(frame(i, 0.9))
    assert detector.is_speaking
    detector.end_turn(5 * FRAME_MS)
    assert not detector.is_speaking
    found = [one for i in range(5, 9) if (one := detector.push(frame(i, 0.9)))]
    assert found == [SpeechStarted(5 * FRAME_MS)]


def test_settings_change_within_a_turn() -> None:
    detector = TurnDetector(TurnDetection(silence_duration_ms=5000))
    for i in range(5):
        detector.push(frame(i, 0.9))
    assert not any(detector.push(frame(i, 0.0)) for i in range(5, 20))
    detector.configure(TurnDetection(silence_duration_ms=200))
    assert detector.push(frame(20, 0.0)) == SpeechStopped(21 * FRAME_MS, 5 * FRAME_MS)


SETTINGS = st.builds(
    TurnDetection,
    kind=st.sampled_from(["server_vad", "semantic_vad"]),
    threshold=st.floats(0.0, 1.0),
    prefix_padding_ms=st.floats(0, 2000),
    silence_duration_ms=st.floats(0, 2000),
    eagerness=st.sampled_from(list(WAITS_MS)),
)
FRAMES = st.lists(st.tuples(st.floats(0, 1), st.floats(-90, 0), st.booleans()), max_size=300)


@given(settings=SETTINGS, frames=FRAMES, ended=st.sets(st.integers(0, 299), max_size=5))
def test_turns_follow_one_another(
    settings: TurnDetection, frames: list[tuple[float, float, bool]], ended: set[int]
) -> None:
    detector = TurnDetector(settings)
    bounds: list[float] = []
    is_open = False
    for i, (probability, level, audible) in enumerate(frames):
        one = detector.push(frame(i, probability, level), assistant_audible=audible)
        if isinstance(one, SpeechStarted):
            assert not is_open
            assert 0 <= one.audio_start_ms <= FRAME_MS * (i + 1) - START_MS
            bounds.append(one.audio_start_ms)
        if isinstance(one, SpeechStopped):
            assert is_open
            assert bounds[-1] <= one.speech_end_ms < one.audio_end_ms == FRAME_MS * (i + 1)
            if settings.kind == "server_vad":
                assert one.audio_end_ms - one.speech_end_ms >= settings.silence_duration_ms
            bounds.append(one.audio_end_ms)
        is_open = detector.is_speaking
        if i in ended:
            detector.end_turn(FRAME_MS * (i + 1))
            bounds.append(FRAME_MS * (i + 1))
            is_open = False
    assert all(before <= after for before, after in pairwise(bounds))
