"""Pitch by frame: tones and glides of any pitch, noise, and real sentences whose ends and middles are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.server.turn_detector import SpeechStopped, TurnDetection, TurnDetector, VoicedFrame
from innervoice.server.vad.network import FRAME_LEN, FRAME_MS, RATE, level_db
from innervoice.server.vad.pitch import pitch_hz
from innervoice.server.vad.silero import SileroNetwork, find_weights
from innervoice.types import Samples

SOON_MS = 600.0  # of silence after a complete sentence, at medium eagerness


def voice(hz: float, num_harmonics: int, seed: int, noise: float) -> Samples:
    """A frame [1, 512] of a voice whose harmonics have random phases and fall by 6 dB an octave."""
    draw = np.random.default_rng(seed)
    orders = np.arange(1, num_harmonics + 1)
    time_s = np.arange(FRAME_LEN) / RATE
    phases = draw.uniform(0, 2 * np.pi, num_harmonics)
    waves = np.sin(2 * np.pi * hz * orders[:, None] * time_s + phases[:, None]) / orders[:, None]
    return (0.1 * waves.sum(0) + 0.1 * noise * draw.standard_normal(FRAME_LEN)).astype(np.float32)[None]


@settings(deadline=None)
@given(
    hz=st.floats(80.0, 400.0),
    num_harmonics=st.integers(1, 12),
    seed=st.integers(0, 999),
    noise=st.sampled_from([0.0, 0.1]),
    gain=st.sampled_from([0.01, 1.0]),
)
def test_the_pitch_of_a_voice(hz: float, num_harmonics: int, seed: int, noise: float, gain: float) -> None:
    [found] = pitch_hz(gain * voice(hz, num_harmonics, seed, noise))
    assert abs(12 * np.log2(found / hz)) < 0.6


def test_what_has_no_pitch() -> None:
    draw = np.random.default_rng(1)
    noise = draw.standard_normal((50, FRAME_LEN)).astype(np.float32)
    assert (pitch_hz(noise) > 0).mean() < 0.05
    assert pitch_hz(np.zeros((3, FRAME_LEN), np.float32)).tolist() == [0.0] * 3
    assert pitch_hz(np.ones((1, FRAME_LEN), np.float32)).tolist() == [0.0]


def test_frames_of_a_batch_are_judged_apart() -> None:
    frames = np.concatenate([voice(90.0 + 20 * i, 6, i, 0.1) for i in range(12)])
    together = pitch_hz(frames)
    assert together.tolist() == [pitch_hz(frame[None])[0] for frame in frames]


def wait_ms(network: SileroNetwork, samples: Samples) -> float:
    """The silence after which semantic detection ends the turn in a recording."""
    samples = np.concatenate([samples, np.zeros(5 * RATE, np.float32)])
    frames = samples[: len(samples) // FRAME_LEN * FRAME_LEN].reshape(-1, FRAME_LEN)
    levels, pitches = level_db(frames), pitch_hz(frames)
    detector = TurnDetector(TurnDetection("semantic_vad", eagerness="medium"))
    states, found = [network.begin()], []
    for i, frame in enumerate(frames):
        speech, states = network.push(frame[None], states)
        heard = VoicedFrame(
            FRAME_MS * i, FRAME_MS * (i + 1), float(speech[0]), float(levels[i]), float(pitches[i])
        )
        one = detector.push(heard)
        if isinstance(one, SpeechStopped):
            found.append(one.audio_end_ms - one.speech_end_ms)
    return found[-1]


@pytest.fixture(scope="module")
def silero() -> SileroNetwork:
    weights = find_weights()
    assert weights is not None, "the test requirements bring silero-vad"
    return SileroNetwork.load(weights)


def recording(assets_dir: Path, name: str) -> Samples:
    return soundfile.read(assets_dir / f"{name}.wav", dtype="float32")[0]


@pytest.mark.parametrize("name", ["question", "reading"])
@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_a_sentence_that_was_spoken_to_its_end_is_complete(
    silero: SileroNetwork, assets_dir: Path, name: str, gain: float
) -> None:
    assert wait_ms(silero, gain * recording(assets_dir, name)) < SOON_MS + FRAME_MS


def test_a_sentence_that_fades_in_its_middle_is_not(silero: SileroNetwork, assets_dir: Path) -> None:
    """Cut every half second, the last 200 ms getting softer as a sentence's end does: only the pitch says that
    more is to come.
    """
    whole = recording(assets_dir, "reading")
    fade = np.linspace(1.0, 0.05, RATE // 5, dtype=np.float32)
    waits = []
    for stop in range(2 * RATE, int(6.5 * RATE), RATE // 2):
        part = whole[:stop].copy()
        part[-len(fade) :] *= fade
        waits.append(wait_ms(silero, part))
    assert np.median(waits) > 2 * SOON_MS, waits
