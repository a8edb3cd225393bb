"""EnergyNetwork: speech as sound well above the background, for installations without Silero's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from innervoice.server.vad.network import FRAME_MS, level_db
from innervoice.types import Samples

FLOOR_DB = -50.0  # below: no speech, however quiet the room
MARGIN_DB = 9.0  # above the background: as likely speech as not
SLOPE_DB = 2.0
RISE_DB_S = 3.0  # how fast the background is taken to grow


class EnergyState(NamedTuple):
    """The level of the background, in decibels."""

    background_db: float


class EnergyNetwork:
    """Follows the softest level of each listener. Steady noise is no speech after a while; music is."""

    def begin(self) -> EnergyState:
        """Make the state of a listener before its first sound."""
        return EnergyState(FLOOR_DB)

    def push(self, frames: Samples, states: Sequence[EnergyState]) -> tuple[Samples, list[EnergyState]]:
        """Judge frames [B, 512] -> probabilities [B], and the next states."""
        levels = level_db(frames)
        background = np.array([state.background_db for state in states], dtype=np.float32)
        above = levels - np.maximum(background, FLOOR_DB) - MARGIN_DB
        speech = 1 / (1 + np.exp(np.clip(-above / SLOPE_DB, -50, 50)))
        rise_db = RISE_DB_S * FRAME_MS / 1e3
        follows = np.where(levels < background, levels, np.minimum(levels, background + rise_db))
        return speech.astype(np.float32), [EnergyState(float(level)) for level in follows]
