"""Histogram: how often a value was seen, by size; and Spread, its mean and quantiles."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


class Histogram:
    """Counts of values at or below each bound; the last bucket takes the values above them all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def n(self) -> int:
        """Number of values so far."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add a value; one that is not finite is left out."""
        if math.isfinite(value):
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def quantile(self, share: float) -> float | None:
        """The value below which that share lies, as if a bucket's values were even; the highest bound for
        values above all.
        """
        left = share * self.n
        if not self.n:
            return None
        low = min(0.0, self.bounds[0])
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and left <= count:
                return low + (bound - low) * left / count
            left, low = left - count, bound
        return self.bounds[-1]

    def copy(self) -> Histogram:
        """A histogram with the same counts, which later values do not change."""
        made = Histogram(self.bounds)
        made.counts = list(self.counts)
        made.sum = self.sum
        return made


@dataclass(frozen=True)
class Spread:
    """Mean and quantiles of n values; quantiles are read off a histogram."""

    n: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, histogram: Histogram, scale: float = 1.0) -> Spread:
        """The spread of a histogram, in units of 1 / scale."""
        n = histogram.n
        quantiles = [
            None if (q := histogram.quantile(share)) is None else scale * q for share in (0.5, 0.9, 0.99)
        ]
        return cls(n, scale * histogram.sum / n if n else None, *quantiles)
