"""Forecast: the seconds to the first sound of a question that would come now."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from innervoice.runtime.scheduler.costs import LearnedCosts
from innervoice.runtime.scheduler.table import Phase, ReplyColumns, more_rows

QUESTION_TOKENS = 125  # 10 s of a user's speech at 12.5 tokens a second
FIRST_TOKENS = 40  # transcript and speech that a reply's first chunk of sound takes


@dataclass(frozen=True)
class Forecast:
    """The expectations of one engine.

    first_audio_s: seconds from a usual question that came now to its first sound, 0: not known. num_running:
    replies that are being made. num_waiting: replies that have no row yet.
    """

    first_audio_s: float
    num_running: int
    num_waiting: int


def forecast(columns: ReplyColumns, costs: LearnedCosts) -> Forecast:
    """Expect the first sound of one more reply.

    prompts ahead x token + question x token + first tokens x time between steps + codec call, the last two at the
    batch size with that reply. 0 s, not known, before a step was measured: its prompt alone is a fraction.
    """
    rows = columns.rows
    is_drawing = (rows.phase == Phase.DECODE) | (rows.phase == Phase.PREFILL)
    is_waiting = (rows.phase == Phase.WAITING) & ~rows.is_listening
    is_fed = is_waiting | ((rows.phase == Phase.PREFILL) & ~rows.is_listening)
    is_drawing &= ~rows.is_listening
    waits, runs = int(np.count_nonzero(is_waiting)), int(np.count_nonzero(is_drawing))
    prompts = int(rows.prompt_left[is_fed].sum()) + QUESTION_TOKENS
    batch = runs + waits + 1
    more = more_rows(rows, is_waiting | is_drawing)
    between_s, first_s = costs.between_steps_s(batch, more), 0.0
    if between_s > 0:
        first_s = (
            FIRST_TOKENS * between_s + prompts * costs.prefill_token_s + costs.voice.estimate(min(4, batch))
        )
    voicing = int(np.count_nonzero(rows.phase == Phase.VOICING))
    return Forecast(first_s, runs + voicing, waits)
