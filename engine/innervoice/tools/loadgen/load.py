"""Load: how many requests arrive, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Load:
    """Requests at random times (Poisson, request_rate a second; inf: all at once), at most max_concurrency of
    them at a time.

    The first num_warmups are left out of the results, and over before the others begin. seed: of the arrivals
    and of replies that have none.
    """

    num_prompts: int
    request_rate: float = math.inf
    max_concurrency: int | None = None
    num_warmups: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.num_warmups < 0:
            raise ValueError(
                f"{self.num_prompts} prompts and {self.num_warmups} warm-ups: there must be 1 or more, and 0 or more"
            )
        if not self.request_rate > 0:
            raise ValueError(f"the request rate is {self.request_rate} a second: it must be above 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency is {self.max_concurrency}: it must be 1 or more")

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
