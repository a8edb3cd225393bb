"""A validated request for one reply, as the core takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from innervoice.schedule import Program
from innervoice.types import EventField, OutputFormat, Sampling


@dataclass(frozen=True)
class Request:
    """A validated request: sampling has no unset field; submitted_s is the caller's clock when it came.

    session_id: the dialogue that it continues, None for a single reply. output_rate: of the audio, None: the decoder's own.
    output_format: what its samples are. priority: higher ones first. is_live: somebody listens while it is spoken, so that its
    pace is the listener's.
    """

    reply_id: str
    prompt_ids: tuple[int, ...]
    program: Program
    sampling: Sampling
    submitted_s: float
    caps: tuple[int, ...] = ()
    deadline_s: float = math.inf
    session_id: str | None = None
    output_rate: int | None = None
    priority: int = 0
    is_live: bool = False
    output_format: OutputFormat = "float32"
    event_fields: tuple[EventField, ...] = ()
