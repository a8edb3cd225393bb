"""How long a step takes, learned while it runs: per bucket of batch sizes, with the spread on top. Durations are told it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_RATE = 0.1  # weight of a new duration
_NUM_BUCKETS = 12  # 1, 2, 4, ... 2048 rows or chunks


class BucketTimes:
    """Seconds of a call by how many items it carries. Between measured sizes it interpolates; beyond them it extends the slope.

    `estimate` is the mean and the mean deviation above it, both moving averages, as TCP estimates a round trip (Jacobson 1988).
    """

    def __init__(self, seed: Mapping[int, float] | None = None) -> None:
        self._size = np.zeros(_NUM_BUCKETS)
        self._mean, self._spread, self._count = np.zeros(_NUM_BUCKETS), np.zeros(_NUM_BUCKETS), np.zeros(_NUM_BUCKETS, np.int64)
        self._known: tuple[NDArray[np.float64], NDArray[np.float64]] = (np.zeros(0), np.zeros(0))
        for size, seconds in (seed or {}).items():
            self.observe(size, seconds)

    @property
    def points(self) -> dict[int, float]:
        """Measured sizes and their estimates, for the trace and for a profile file."""
        return {round(float(size)): float(seconds) for size, seconds in zip(*self._known, strict=True)}

    def observe(self, size: int, seconds: float) -> None:
        """A call with so many items took so long. A clock that jumped back is not believed."""
        if size < 1 or not 0 <= seconds < 1e6:
            return
        bucket = min(int(size).bit_length() - 1, _NUM_BUCKETS - 1)
        if self._count[bucket] == 0:
            self._size[bucket], self._mean[bucket] = size, seconds
        else:
            rate = max(_RATE, 1 / (1 + self._count[bucket]))
            error = seconds - self._mean[bucket]
            self._mean[bucket] += rate * error
            self._spread[bucket] += rate * (abs(error) - self._spread[bucket])
            self._size[bucket] += rate * (size - self._size[bucket])
        self._count[bucket] += 1
        seen = self._count > 0
        # A larger call is never expected to take less.
        self._known = self._size[seen], np.maximum.accumulate((self._mean + self._spread)[seen])

    def estimate(self, size: float) -> float:
        """Seconds for so many items; 0 before anything was measured."""
        sizes, seconds = self._known
        if size <= 0 or not len(sizes):
            return 0.0
        if size <= sizes[-1]:
            return float(np.interp(size, sizes, seconds))
        if len(sizes) == 1:
            return float(seconds[0] * (1 + 0.5 * (size / sizes[0] - 1)))
        slope = (seconds[-1] - seconds[-2]) / max(sizes[-1] - sizes[-2], 1e-9)
        return float(seconds[-1] + slope * (size - sizes[-1]))

    def most_within(self, seconds: float, most: int) -> int:
        """The largest size up to `most` that is estimated to take no longer."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.estimate(middle) <= seconds else (low, middle - 1)
        return low


class LearnedCosts:
    """Step time by rows, prefill time by token, codec time by chunks; each starts from a calibration run or a profile."""

    def __init__(
        self, decode: Mapping[int, float] | None = None, voice: Mapping[int, float] | None = None, prefill_token_s: float = 0.0
    ) -> None:
        self.decode, self.voice = BucketTimes(decode), BucketTimes(voice)
        self.prefill_token_s = prefill_token_s
        self._prefill_known = prefill_token_s > 0
        self._busy_s, self._decode_s = 1e-9, 1e-9  # of late: in all, and in steps that only draw

    @property
    def stretch(self) -> float:
        """How much longer a step is in coming than it takes: the codec and prompts share the device. From 1 to 4."""
        return min(max(self._busy_s / self._decode_s, 1.0), 4.0)

    def first_audio_s(self, context: NDArray[np.int64], spoken: NDArray[np.int64]) -> NDArray[np.float64]:
        """What first sound takes a reply that is alone: its prompt of so many tokens fed, so many tokens drawn, a chunk made."""
        alone: NDArray[np.float64] = context * self.prefill_token_s + spoken * self.decode.estimate(1) + self.voice.estimate(1)
        return alone

    def observe_step(self, rows: int, prefill_tokens: int, seconds: float) -> None:
        """A step drew for so many rows and fed so many prompt tokens besides."""
        self._spend(seconds, min(self.decode.estimate(rows), seconds) if prefill_tokens else seconds)
        if prefill_tokens == 0:
            self.decode.observe(rows, seconds)
            return
        a_token = (seconds - self.decode.estimate(rows)) / prefill_tokens
        if not 0 <= a_token < 1e3:
            return
        rate = _RATE if self._prefill_known else 1.0
        self.prefill_token_s += rate * (a_token - self.prefill_token_s)
        self._prefill_known = True

    def observe_voice(self, chunks: int, seconds: float) -> None:
        """A codec call made so many chunks."""
        self._spend(seconds, 0.0)
        self.voice.observe(chunks, seconds)

    def _spend(self, seconds: float, decoding_s: float) -> None:
        """Forgets over the last second or so of work."""
        if not 0 <= seconds < 1e3:
            return
        kept = 0.5**seconds
        self._busy_s, self._decode_s = self._busy_s * kept + seconds, self._decode_s * kept + decoding_s
