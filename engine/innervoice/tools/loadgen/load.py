"""Load: how many requests arrive, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Annotated

from innervoice.fields import MOST_INT64, Limits, read_fields

_MOST = 10**6


@dataclass(frozen=True)
class Load:
    """Requests at random times (Poisson, request_rate a second; inf: all at once), at most max_concurrency of
    them at a time.

    The first num_warmups are left out of the results, and over before the others begin. seed: of the arrivals
    and of replies that have none.
    """

    num_prompts: Annotated[int, Limits(1, _MOST)]
    request_rate: Annotated[float, Limits(above=0, is_finite=False)] = math.inf
    max_concurrency: Annotated[int | None, Limits(1, _MOST)] = None
    num_warmups: Annotated[int, Limits(0, _MOST)] = 0
    seed: Annotated[int, Limits(0, MOST_INT64)] = 0

    def __post_init__(self) -> None:
        read_fields(self)

    def arrivals(self) -> list[float]:
        """Seconds after the beginning; the gaps are exponential."""
        if self.request_rate == math.inf:
            return [0.0] * self.num_prompts
        random = Random(self.seed)
        now = 0.0
        times: list[float] = []
        for _ in range(self.num_prompts):
            now += random.expovariate(self.request_rate)
            times.append(now)
        return times
