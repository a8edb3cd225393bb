"""A compiled schedule and a request as plain numbers, for the cursor of the kernels (`sampling/cursor.py`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from innervoice.schedule.compile import Program
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor_columns import UNLIMITED


def sampling_table(program: Program) -> npt.NDArray[np.float32]:
    """The samplings that states refer to: temperature, top_p, top_k a row [*, 3]; NaN: the request's."""

    def known(value: float | None) -> float:
        return math.nan if value is None else float(value)

    rows = [[known(s.temperature), known(s.top_p), known(s.top_k)] for s in program.samplings]
    return np.array(rows, dtype=np.float32).reshape(-1, 3)


def request_values(program: Program, sampling: Sampling) -> dict[str, Any]:
    """What holds for a whole reply, by the names that `request_columns` of the kernels takes.

    Where its program stands among others (table, forced, samplings) is for the caller to add.
    """
    vocabulary, cap = program.vocabulary, program.schedule.reflection
    low, high = vocabulary.speech or (0, 0)
    return {
        "start": max(program.start, 0),
        "is_guided": program.schedule.guided,
        "floor": program.schedule.floor,
        "reflect": cap if isinstance(cap, int) else UNLIMITED,
        "end_of_turn": vocabulary.end_of_turn,
        "open": vocabulary.open,
        "close": vocabulary.close,
        "done": vocabulary.done,
        "speech_low": low,
        "speech_high": high,
        "vocabulary": vocabulary.size,
        "ignore_eos": sampling.ignore_eos,
        "max_tokens": sampling.max_new_tokens,
        "top_k": sampling.top_k or 0,
        "eos": ()
        if program.schedule.guided
        else vocabulary.eos,  # a guided reply ends by its own end of turn
    }
