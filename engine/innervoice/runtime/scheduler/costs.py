"""Durations of steps, prompts and codec calls, learned while they run, by batch size, with their spread on
top.

The caller measures each duration and passes it in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import accumulate
from math import ceil

import numpy as np
from numpy.typing import NDArray

_RATE = 0.1  # weight of a new duration
_BELIEVED = 2.0  # a duration counts up to so many times what was expected
_NUM_BUCKETS = 12  # 1, 2, 4, ... 2048 rows or chunks


class BucketTimes:
    """Seconds of a call by how many items it carries.

    Between measured sizes it interpolates; beyond them it extends the slope.

    `estimate` is the mean and the mean deviation above it, both moving averages, as TCP estimates
    a round trip (Jacobson 1988). A stall, such as a step that waited for the processor, would raise both for
    dozens of calls, so a duration counts up to twice the estimate (winsorized): one alone moves it little,
    and a machine that has become slower is believed after a few. A first duration of more than twice the second one
    was a cold start and is forgotten.
    """

    def __init__(self, seed: Mapping[int, float] | None = None) -> None:
        self._size, self._mean, self._spread = ([0.0] * _NUM_BUCKETS for _ in range(3))
        self._count = [0] * _NUM_BUCKETS
        self._seen: list[int] = []
        self._sizes: list[float] = []  # of the buckets that were seen, and what is expected of them
        self._seconds: list[float] = []
        for size, seconds in (seed or {}).items():
            self.observe(size, seconds)

    @property
    def points(self) -> dict[int, float]:
        """Measured sizes and their estimates, for the trace and for a profile file."""
        return {round(size): seconds for size, seconds in zip(self._sizes, self._seconds, strict=True)}

    def observe(self, size: int, seconds: float) -> None:
        """A call with so many items took so long. A clock that jumped back is not believed."""
        if size < 1 or not 0 <= seconds < 1e6:
            return
        bucket = min(int(size).bit_length() - 1, _NUM_BUCKETS - 1)
        is_cold = self._count[bucket] == 1 and _BELIEVED * seconds < self._mean[bucket]
        if self._count[bucket] == 0 or is_cold:
            self._size[bucket], self._mean[bucket] = float(size), float(seconds)
        else:
            rate = max(_RATE, 1 / (1 + self._count[bucket]))
            expected = self._mean[bucket] + self._spread[bucket]
            error = min(seconds, _BELIEVED * expected) - self._mean[bucket]
            self._mean[bucket] += rate * error
            self._spread[bucket] += rate * (abs(error) - self._spread[bucket])
            self._size[bucket] += rate * (size - self._size[bucket])
        if self._count[bucket] == 0:
            self._seen = sorted([*self._seen, bucket])
        self._count[bucket] += 1
        self._sizes = [self._size[i] for i in self._seen]
        # A larger call is never expected to take less.
        self._seconds = list(accumulate([self._mean[i] + self._spread[i] for i in self._seen], max))

    def estimate(self, size: float) -> float:
        """Seconds for so many items; 0 before anything was measured."""
        sizes, seconds = self._sizes, self._seconds
        if size <= 0 or not sizes:
            return 0.0
        if size <= sizes[0]:
            return seconds[0]
        right = bisect_left(sizes, size)
        return seconds[right - 1] + self._slope(right) * (size - sizes[right - 1])

    def most_within(self, seconds: float, most: int) -> int:
        """The largest size up to `most` that is estimated to take no longer."""
        if not self._sizes or self.estimate(most) <= seconds:
            return most
        right = bisect_right(self._seconds, seconds)
        if right == 0:
            return 0
        size = self._sizes[right - 1] + (seconds - self._seconds[right - 1]) / max(self._slope(right), 1e-12)
        found = min(most, int(size) + 1)
        while found > 0 and self.estimate(found) > seconds:  # once or twice, for the rounding
            found -= 1
        return found

    def least_at(self, rate: float, most: int) -> int:
        """The smallest size up to `most` at which so many items a second are done; `most` when none is."""
        sizes, seconds = self._sizes, self._seconds
        right = next((i for i in range(len(sizes)) if sizes[i] >= rate * seconds[i]), len(sizes))
        if right == 0:
            return min(most, max(1, ceil(rate * seconds[0] - 1e-9))) if sizes else 1
        slope = self._slope(right)
        if rate * slope >= 1:
            return most
        size = rate * (seconds[right - 1] - slope * sizes[right - 1]) / (1 - rate * slope)
        return min(most, max(1, ceil(size - 1e-9)))

    def _slope(self, right: int) -> float:
        """Of the line that ends at the point `right`, or that begins at the last one."""
        sizes, seconds = self._sizes, self._seconds
        if len(sizes) == 1:
            return 0.5 * seconds[0] / sizes[0]
        right = min(right, len(sizes) - 1)
        return (seconds[right] - seconds[right - 1]) / max(sizes[right] - sizes[right - 1], 1e-9)


class LearnedCosts:
    """Step time by rows, prefill time by token, codec time by chunks; each starts from a
    calibration run or a profile.
    """

    def __init__(
        self,
        decode: Mapping[int, float] | None = None,
        voice: Mapping[int, float] | None = None,
        prefill_token_s: float = 0.0,
    ) -> None:
        self.decode, self.voice = BucketTimes(decode), BucketTimes(voice)
        self.prefill_token_s = prefill_token_s
        self._prefill_known = prefill_token_s > 0
        self._busy_s, self._decode_s = 1e-9, 1e-9  # of late: in all, and in steps that only draw

    @property
    def stretch(self) -> float:
        """The time from step to step over the time of a step, which codec and prompts stretch.

        From 1 to 4.
        """
        return min(max(self._busy_s / self._decode_s, 1.0), 4.0)

    def between_steps_s(self, replies: int, more_rows: int = 0) -> float:
        """Seconds from one step of so many replies to the next. more_rows: that they take beside one each.

        Codec calls stretch the pace of a reply by those of the others alone, a share of (replies - 1) / replies: its own
        come when its tokens are there, and whoever plans counts them by themselves.
        """
        step_s = self.decode.estimate(replies + more_rows)
        return step_s * (1 + (self.stretch - 1) * (replies - 1) / max(replies, 1))

    def first_audio_s(
        self, prompt: NDArray[np.int64], drawn: NDArray[np.int64], more_rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Seconds to the first sound of a reply that is alone: its prompt of so many tokens fed, so
        many tokens drawn, of so many rows beside one, a chunk made.
        """
        step_s: float | NDArray[np.float64] = self.decode.estimate(1)
        if more_rows.any():
            step_s = np.array([self.decode.estimate(1 + more) for more in more_rows.tolist()])
        alone: NDArray[np.float64] = prompt * self.prefill_token_s + drawn * step_s + self.voice.estimate(1)
        return alone

    def observe_step(self, rows: int, prefill_tokens: int, seconds: float) -> None:
        """A step drew for so many rows and fed so many prompt tokens besides."""
        self._spend(seconds, min(self.decode.estimate(rows), seconds) if prefill_tokens else seconds)
        if prefill_tokens == 0:
            self.decode.observe(rows, seconds)
            return
        a_token = max(0.0, seconds - self.decode.estimate(rows)) / prefill_tokens
        if not a_token < 1e3:
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
