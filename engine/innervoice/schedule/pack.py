"""A compiled schedule, a request and a cursor's position as plain numbers, for the kernels'
cursor (`sampling/cursor.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from innervoice.schedule.compile import Program
from innervoice.schedule.cursor_state import CursorState
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, TokenKind


def sampling_table(program: Program) -> npt.NDArray[np.float32]:
    """The samplings that states refer to: temperature, top_p, top_k a row [*, 3]; NaN: the request's.

    A top_k of the whole vocabulary is as good as any above, and exact in float32.
    """
    size = program.vocabulary.size

    def known(value: float | None) -> float:
        return math.nan if value is None else float(value)

    rows = [
        [known(s.temperature), known(s.top_p), known(s.top_k if s.top_k is None else min(s.top_k, size))]
        for s in program.samplings
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 3)


def request_values(program: Program, sampling: Sampling) -> dict[str, Any]:
    """The values that hold for a whole reply, by the names that `request_columns` of the kernels takes.

    Where its program stands among others (table, forced, samplings, sets) is for the caller to add. Raises
    ValueError for a pattern, whose ids the host finds.
    """
    if not program.fits_device:
        raise ValueError(
            "a pattern binds a segment, and what it offers is found by the host: leave the reply to it"
        )
    vocabulary, cap = program.vocabulary, program.schedule.reflection
    low, high = vocabulary.speech or (0, 0)
    return {
        "start": max(program.start, 0),
        "is_guided": program.schedule.guided,
        "floor": program.schedule.floor,
        "reflect": cap if isinstance(cap, int) else UNLIMITED,
        "open": vocabulary.open,
        "close": vocabulary.close,
        "done": vocabulary.done,
        "speech_low": low,
        "speech_high": high,
        "vocabulary": vocabulary.size,
        "ignore_eos": sampling.ignore_eos,
        "max_tokens": sampling.max_new_tokens,
        "top_k": sampling.top_k or 0,
        "tool_open": program.tool_open,
        "tool_close": vocabulary.tool_close,
        "tool_row": program.tool_row,
        "eos": program.ends,
    }


_HOST_ALONE = ("caps", "granted", "closed", "spelled")


def state_values(state: CursorState) -> dict[str, int]:
    """A cursor's position, by the names that `state_columns` of the kernels takes."""
    values = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _HOST_ALONE}
    return {name: -1 if value is None else int(value) for name, value in values.items()}


def cursor_state(values: Mapping[str, int], caps: Sequence[int], *, is_guided: bool) -> CursorState:
    """The position that `state_values` of the kernels read from the device, with the caps that it has.

    What reflections were granted the device does not keep: each counts as unlimited.
    """
    if not is_guided:
        return CursorState(
            is_done=bool(values["is_done"]),
            segment=values["segment"],
            in_reflection=bool(values["in_reflection"]),
            last=None if values["last"] < 0 else TokenKind(values["last"]),
        )
    return CursorState(
        row=values["row"],
        count=values["count"],
        limit=values["limit"],
        text_done=bool(values["text_done"]),
        reflection_done=bool(values["reflection_done"]),
        is_done=bool(values["is_done"]),
        num_reflections=values["num_reflections"],
        segment=values["segment"],
        offers_done=bool(values["offers_done"]),
        fresh=bool(values["fresh"]),
        caps=tuple(caps),
        granted=(UNLIMITED,) * values["num_reflections"],
    )
