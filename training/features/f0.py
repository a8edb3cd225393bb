"""Fundamental frequency: normalised autocorrelation, and the cheapest path through its peaks (Viterbi).

The idea is that of Boersma, "Accurate short-term analysis of the fundamental frequency", 1993.
"""

from __future__ import annotations

import numpy as np

from training.features.mel import HOP, SAMPLE_RATE

MIN_HZ = 60.0
MAX_HZ = 400.0
WINDOW = 1024
TRANSFORM = 4096
NUM_CANDIDATES = 8
UNVOICED_STRENGTH = 0.45  # of 1: a peak below this loses against "unvoiced"
SILENCE_DB = -50.0
OCTAVE_COST = 0.04  # for each octave below the highest pitch: prefers the shorter lag
JUMP_COST = 1.5  # for each octave between two frames
SWITCH_COST = 0.15  # between voiced and unvoiced


def f0_track(audio: np.ndarray) -> np.ndarray:
    """Return the pitch in Hz of each whole frame of 256 samples, 0 where there is none. [n] -> [n // 256]"""
    shortest = int(SAMPLE_RATE / MAX_HZ)
    longest = int(SAMPLE_RATE / MIN_HZ)
    correlation, level_db = _correlate(audio.astype(np.float32), longest)
    strength, hz = _candidates(correlation[:, shortest : longest + 1], shortest, longest)
    unvoiced = UNVOICED_STRENGTH + np.where(level_db < SILENCE_DB, 0.6, 0.0)
    cost = np.concatenate([1 - strength, (1 - unvoiced)[:, None]], 1)
    octave = np.log2(np.concatenate([hz, np.ones((len(hz), 1))], 1))
    states = _cheapest_path(cost, octave)
    voiced = states < NUM_CANDIDATES
    found = hz[np.arange(len(hz)), np.minimum(states, NUM_CANDIDATES - 1)]
    return np.where(voiced, found, 0.0).astype(np.float32)


def _correlate(audio: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of each frame's window with itself at every lag, from -1 to 1, and its
    level in dB.
    """
    num_frames = len(audio) // HOP
    padded = np.pad(audio, (WINDOW, 2 * WINDOW))
    start = np.arange(num_frames) * HOP + HOP // 2 - WINDOW // 2 - longest // 2 + WINDOW
    window = padded[start[:, None] + np.arange(WINDOW)]
    wide = padded[start[:, None] + np.arange(WINDOW + longest)]
    product = np.conj(np.fft.rfft(window, TRANSFORM)) * np.fft.rfft(wide, TRANSFORM)
    raw = np.fft.irfft(product, TRANSFORM)[:, : longest + 1]
    power = np.concatenate([np.zeros((num_frames, 1)), np.cumsum(wide.astype(np.float64) ** 2, 1)], 1)
    own = power[:, WINDOW]
    shifted = power[:, WINDOW : WINDOW + longest + 1] - power[:, : longest + 1]
    level_db = 10 * np.log10(own / WINDOW + 1e-10)
    return raw / np.sqrt(np.maximum(own[:, None] * shifted, 1e-9)), level_db


def _candidates(correlation: np.ndarray, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return strength and frequency of the strongest peaks of each frame. [F, lags] -> [F, candidates]
    twice
    """
    middle = correlation[:, 1:-1]
    is_peak = (middle > correlation[:, :-2]) & (middle >= correlation[:, 2:])
    lags = np.arange(shortest + 1, longest)
    peaks = np.where(is_peak, middle, -1) - OCTAVE_COST * np.log2(lags / shortest)
    best = np.argpartition(-peaks, NUM_CANDIDATES, 1)[:, :NUM_CANDIDATES]
    return np.take_along_axis(peaks, best, 1), SAMPLE_RATE / lags[best]


def _cheapest_path(cost: np.ndarray, octave: np.ndarray) -> np.ndarray:
    """Return the state of each frame on the cheapest path; the last state is "unvoiced". [F, states] ->
    [F]
    """
    num_frames, num_states = cost.shape
    total = cost[0].copy()
    came_from = np.zeros((num_frames, num_states), np.int64)
    for frame in range(1, num_frames):
        step = JUMP_COST * np.abs(octave[frame][:, None] - octave[frame - 1][None])
        step[-1, :] = SWITCH_COST
        step[:, -1] = SWITCH_COST
        step[-1, -1] = 0.0
        paths = total[None] + step
        came_from[frame] = paths.argmin(1)
        total = paths.min(1) + cost[frame]
    states = np.zeros(num_frames, np.int64)
    state = int(total.argmin())
    for frame in range(num_frames - 1, -1, -1):
        states[frame] = state
        state = int(came_from[frame, state])
    return states
