"""The constants that a scheduling policy plans with, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Preempt = Literal["recompute", "swap"]  # how keys and values of a preempted reply come back


@dataclass(frozen=True, kw_only=True)
class PlanConstants:
    """Limits of every policy, and constants of single ones.

    max_rows: rows of all replies that may hold pages, one for each context. max_batch: rows of a step. prefill_chunk: prompt
    tokens of one step at most. page_size: tokens of a page of the cache. fixed_hidden: cap of every
    reflection segment under `fixed`.

    Of `slack` alone. frontier_s: generation pauses once a reply is so many seconds ahead of playback.
    margin_s and margin_share: sound that must be left when a chunk arrives, fixed and as a share of the
    chunk's cost. horizon_s: a reply with less slack is urgent. plateau: how much longer a step may take than
    with its urgent replies alone, for the sake of others. batching_share: how much of a codec call's cost
    waiting for more chunks must save to be worth it. max_load: a reply waits while the spoken tokens of all,
    with it, would take more than this share of the time. first_audio_stretch: the first sound is due after so
    many times the time it takes alone. reserve_s: sound that reflection leaves unspent, so that replies can
    be left alone for a moment when another waits for its first sound. reflection_rate: hidden tokens per
    second of sound to aim at, None: as many as slack pays for. starve_s: no reply that could go on waits
    longer.
    """

    max_rows: int = 256
    max_batch: int = 1024
    prefill_chunk: int = 256
    fixed_hidden: int = 100
    frontier_s: float = 8.0
    margin_s: float = 0.06
    margin_share: float = 0.25
    horizon_s: float = 0.12
    plateau: float = 0.03
    batching_share: float = 0.3
    max_load: float = 0.95
    first_audio_stretch: float = 1.1
    reserve_s: float = 0.5
    reflection_rate: float | None = None
    starve_s: float = 1.0
    page_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_batch", "prefill_chunk", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("frontier_s", "max_load", "starve_s", "first_audio_stretch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in (
            "fixed_hidden",
            "margin_s",
            "margin_share",
            "horizon_s",
            "plateau",
            "batching_share",
            "reserve_s",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if self.reflection_rate is not None and not self.reflection_rate >= 0:
            raise ValueError(f"reflection_rate is {self.reflection_rate}: it must be 0 or more, or None")
