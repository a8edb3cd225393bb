"""The pitch of voiced speech, frame by frame, from the normalised square difference function (McLeod and Wyvill, 2005)."""

from __future__ import annotations

import numpy as np

from innervoice.server.vad.network import RATE
from innervoice.types import Samples

LOWEST_HZ, HIGHEST_HZ = 60.0, 420.0
LEAST_CLARITY = 0.6  # of the best period of a voiced frame: 1 is a pure tone
NEARLY_BEST = 0.85  # the shortest period that fits nearly as well as the best one is the fundamental


def pitch_hz(frames: Samples) -> Samples:
    """Estimate the pitch of frames [B, n] of 16 kHz -> Hz [B], 0 where a frame has none between 60 and 420 Hz."""
    x = frames.astype(np.float64) - frames.mean(axis=1, keepdims=True)
    num = x.shape[1]
    shortest, longest = int(RATE / HIGHEST_HZ), int(RATE / LOWEST_HZ)
    lags = slice(shortest - 1, longest + 2)

    # 2 r(t) / m(t), r being the autocorrelation and m the energy of the two stretches that it compares.
    products = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * num, axis=1)) ** 2, axis=1)[:, lags]
    energy = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x**2, axis=1)], axis=1)
    places = np.arange(num)[lags]
    compared = energy[:, num - places] + energy[:, -1:] - energy[:, places]
    fit = 2 * products / np.maximum(compared, 1e-12)

    # The first peak that is nearly the highest, and its top by the parabola through its neighbours.
    is_peak = (fit[:, 1:-1] >= fit[:, :-2]) & (fit[:, 1:-1] > fit[:, 2:])
    best = np.where(is_peak, fit[:, 1:-1], -1.0).max(axis=1)
    first = (is_peak & (fit[:, 1:-1] >= NEARLY_BEST * best[:, None])).argmax(axis=1)
    row = np.arange(len(x))
    left, top, right = fit[row, first], fit[row, first + 1], fit[row, first + 2]
    bend = left - 2 * top + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1.0), 0.0)
    found: Samples = np.where(best >= LEAST_CLARITY, RATE / (shortest + first + shift), 0.0).astype(
        np.float32
    )
    return found
