"""What a microphone and a room do to a user's voice: gain, echo and noise, drawn by a seed."""

from __future__ import annotations

import numpy as np

RATE = 16000
SPEED_OF_DECAY = 6.9  # e-folds until -60 dB
NO_ROOM = 0.5  # share of recordings without echo
NO_NOISE = 0.3


def augmented(audio: np.ndarray, seed: int) -> np.ndarray:
    """Return a recording at 16 kHz as another microphone in another room would have it; the length stays."""
    rng = np.random.default_rng(seed)
    if rng.random() > NO_ROOM:
        audio = in_room(audio, rng.uniform(0.12, 0.45), rng.uniform(0.1, 0.5), rng)
    if rng.random() > NO_NOISE:
        audio = audio + noise(len(audio), rng.uniform(0, 1.2), rng) * (
            np.sqrt(np.mean(audio**2)) * 10 ** (-rng.uniform(12, 40) / 20)
        )
    peak = 10 ** (-rng.uniform(1, 26) / 20)
    return (audio * (peak / max(1e-6, float(np.abs(audio).max())))).astype(np.float32)


def in_room(audio: np.ndarray, decay_s: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Add the echo of a room: white noise that decays by 60 dB in the given time, after 5 ms."""
    length = int(decay_s * RATE)
    tail = rng.standard_normal(length) * np.exp(-SPEED_OF_DECAY * np.arange(length) / length)
    tail[: int(0.005 * RATE)] = 0.0
    tail *= strength / np.sqrt(np.sum(tail**2))
    size = 1 << (len(audio) + length).bit_length()
    echo = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)[: len(audio)]
    return audio + echo


def noise(length: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of mean square 1 whose spectrum falls with frequency: 0 is white, 1 is pink."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(1, np.arange(len(spectrum))) ** (-slope / 2)
    found = np.fft.irfft(spectrum, length)
    return found / max(1e-9, float(np.sqrt(np.mean(found**2))))
