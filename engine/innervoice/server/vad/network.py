"""SpeechNetwork: the seam behind which a network for voice activity stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from innervoice.types import Samples

RATE = 16000  # Hz
FRAME_LEN = 512
FRAME_MS = 1e3 * FRAME_LEN / RATE


class SpeechNetwork(Protocol):
    """Judges frames of several listeners in one call; what it remembers of each is an argument and a result."""

    def begin(self) -> Any:
        """Make the state of a listener before its first sound."""
        ...

    def push(self, frames: Samples, states: Sequence[Any]) -> tuple[Samples, list[Any]]:
        """Judge frames [B, 512] of 16 kHz with the states of their listeners.

        Returns the probability of speech [B], and the states for the next frames.
        """
        ...


def level_db(frames: Samples) -> Samples:
    """RMS of frames [B, 512] in decibels [B]; 0 is full scale, -200 silence."""
    mean_square = np.mean(np.square(frames, dtype=np.float64), axis=1)
    levels: Samples = (10 * np.log10(np.maximum(mean_square, 1e-20))).astype(np.float32)
    return levels
