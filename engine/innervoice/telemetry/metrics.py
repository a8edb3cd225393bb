"""The arrivals of a reply at its listener -> the figures by which engines for speech are compared.

Pure functions; nothing of the engine is imported.

A request is a `RequestTimings`: when each piece of sound and each token reached the client, all on one clock.
It is made from any server's log. The names are those of vLLM, vLLM-Omni, sglang-omni and VoxServe; where
their definitions differ, the docstring of the field says which one this is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("reflection", "transcript", "speech", "end")
HIDDEN = "reflection"
GATE_DBFS = -45.0  # root mean square of a frame, against a full-scale sample
GATE_FRAME_S = 0.01
CONTINUITY_MS = (50, 100, 200)
MOST_CARRIED_C100 = 99.0  # percent
P99_NEEDS = 100  # requests
_TICK_S = 1e-6  # less than this is no lateness but the rounding of a clock


@dataclass(frozen=True)
class RequestTimings:
    """Arrivals at the client of one request, in seconds of one clock, each sequence in order.

    submitted_s: when the request was made, or the user's sound ended. rate: of the sound, in Hz. audio:
    (arrival, number of samples) of each chunk; tokens: (arrival, kind) of each token, the kind one of KINDS.
    finished_s: when the end was known; None: it was not. leading_silence_s: as `leading_silence_s` says;
    None: not measured. error: why it failed.
    """

    submitted_s: float
    rate: int = 1
    audio: tuple[tuple[float, int], ...] = ()
    tokens: tuple[tuple[float, str], ...] = ()
    finished_s: float | None = None
    leading_silence_s: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    request_id: str = ""

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"request {self.request_id!r}: the rate is {self.rate} Hz: it must be 1 or more")
        for name, times in (("audio", [t for t, _ in self.audio]), ("tokens", [t for t, _ in self.tokens])):
            if not all(map(math.isfinite, times)) or any(
                b < a for a, b in zip([self.submitted_s, *times], times, strict=False)
            ):
                raise ValueError(
                    f"request {self.request_id!r}: arrivals of {name} must be finite, in order, and after the submission"
                )
        if any(count < 0 for _, count in self.audio):
            raise ValueError(f"request {self.request_id!r}: a chunk has fewer than 0 samples")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RequestTimings:
        """Read what `to_dict` gives, or another server's log in that form; unknown names are left alone.

        ValueError.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "submitted_s" not in known:
            raise ValueError("a request of the log has no submitted_s")
        for name in ("audio", "tokens"):
            if any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in known.get(name, ())):
                raise ValueError(f"{name} of a request must be pairs: (arrival, samples) or (arrival, kind)")
            known[name] = tuple((float(pair[0]), pair[1]) for pair in known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True)
class Underruns:
    """Gaps in the playback of a reply. The player starts with the first chunk, unbuffered.

    Chunk k is due at d(k) = arrival(0) + seconds of the chunks before it, and late by max(0, arrival(k) -
    d(k)). max_s, count, sum_s: of that lateness, over the chunks from the second on (vLLM-Omni,
    sglang-omni). num_stalls: how often a player that waits for what is missing and then goes on runs dry;
    the silence that it plays is max_s in all.
    """

    num_chunks: int
    max_s: float
    count: int
    sum_s: float
    num_stalls: int

    @property
    def is_measured(self) -> bool:
        """Whether there was a second chunk to be late."""
        return self.num_chunks > 1


@dataclass(frozen=True)
class TokenTimes:
    """Times of tokens in ms, as vLLM defines them; of one kind or of all.

    ttft_ms: submission to the first. itl_ms: of each token, the time since the token before it, of whatever
    kind. tpot_ms: their mean; over all tokens that is (last - first) / (n - 1).
    """

    n: int
    ttft_ms: float | None
    tpot_ms: float | None
    itl_ms: tuple[float, ...]


@dataclass(frozen=True)
class RequestMetrics:
    """Figures of one request. None: not measured.

    audio_ttfp_ms: submission to the first samples (VoxServe: TTFA). audible_ttfa_ms: the same and the
    leading silence. first_chunk_s: length of that first chunk. audio_rtf: submission to the last samples /
    audio_s. inter_chunk_s: gaps between arrivals of samples. e2el_ms: submission to the end.
    reflection_per_audio_s: hidden tokens per second of sound; hidden_before_audio: those that came before
    the first samples, or with them.
    """

    request_id: str
    audio_ttfp_ms: float | None
    audible_ttfa_ms: float | None
    first_chunk_s: float | None
    audio_s: float
    audio_rtf: float | None
    underruns: Underruns
    inter_chunk_s: tuple[float, ...]
    tokens: TokenTimes
    by_kind: dict[str, TokenTimes]
    e2el_ms: float | None
    reflection_per_audio_s: float | None
    hidden_before_audio: int
    finish_reason: str | None = None
    error: str | None = None


def find_underruns(audio: Sequence[tuple[float, int]], rate: int) -> Underruns:
    """Lateness of [(arrival, samples)]; chunks without samples are left out."""
    chunks = [(t, count) for t, count in audio if count > 0]
    lateness = _lateness(chunks, rate)
    late = lateness[lateness > _TICK_S]
    # A player that waited is late by what it waited: it runs dry again where the
    # lateness exceeds all before it.
    highest = np.maximum.accumulate(np.concatenate([np.zeros(1), np.maximum(lateness, 0.0)]))
    stalls = int(np.count_nonzero(np.diff(highest) > _TICK_S))
    return Underruns(len(chunks), float(late.max(initial=0.0)), len(late), float(late.sum()), stalls)


def leading_silence_s(samples: NDArray[np.float32], rate: int, gate_dbfs: float = GATE_DBFS) -> float:
    """Seconds before the first frame of 10 ms whose root mean square reaches the gate;
    the whole length if none does.

    samples [n], full scale 1; the last frame may be shorter.
    """
    frame = max(1, round(GATE_FRAME_S * rate))
    starts = np.arange(0, len(samples), frame)
    if not len(starts):
        return 0.0
    energy = np.add.reduceat(np.square(samples, dtype=np.float64), starts) / np.diff(
        np.append(starts, len(samples))
    )
    loud = np.flatnonzero(energy >= 10 ** (gate_dbfs / 10))
    return float(starts[loud[0]] if len(loud) else len(samples)) / rate


def measure(log: RequestTimings) -> RequestMetrics:
    """The figures of one request."""
    audio = [(t, count) for t, count in log.audio if count > 0]
    arrivals = [t for t, _ in audio]
    audio_s = sum(count for _, count in audio) / log.rate
    first_s = 1e3 * (arrivals[0] - log.submitted_s) if arrivals else None
    silence_s = log.leading_silence_s
    num_hidden = sum(kind == HIDDEN for _, kind in log.tokens)
    return RequestMetrics(
        request_id=log.request_id,
        audio_ttfp_ms=first_s,
        audible_ttfa_ms=None if first_s is None or silence_s is None else first_s + 1e3 * silence_s,
        first_chunk_s=audio[0][1] / log.rate if audio else None,
        audio_s=audio_s,
        audio_rtf=(arrivals[-1] - log.submitted_s) / audio_s if audio else None,
        underruns=find_underruns(log.audio, log.rate),
        inter_chunk_s=tuple(b - a for a, b in pairwise(arrivals)),
        tokens=_token_times(log, None),
        by_kind={kind: _token_times(log, kind) for kind in KINDS if any(kind == k for _, k in log.tokens)},
        e2el_ms=None if log.finished_s is None else 1e3 * (log.finished_s - log.submitted_s),
        reflection_per_audio_s=num_hidden / audio_s if audio else None,
        hidden_before_audio=sum(kind == HIDDEN and (not audio or t <= arrivals[0]) for t, kind in log.tokens),
        finish_reason=log.finish_reason,
        error=log.error,
    )


@dataclass(frozen=True)
class Distribution:
    """Mean, median and percentiles (interpolated linearly) of n values. p99 of fewer than 100 values is None."""

    n: int
    mean: float | None = None
    median: float | None = None
    p10: float | None = None
    p90: float | None = None
    p99: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution:
        """The distribution of the values that were measured."""
        known = np.asarray([value for value in values if value is not None], np.float64)
        if not len(known):
            return cls(0)
        p10, median, p90, p99 = np.percentile(known, [10, 50, 90, 99]).tolist()
        return cls(
            len(known),
            float(known.mean()),
            median,
            p10,
            p90,
            p99 if len(known) >= P99_NEEDS else None,
            float(known.max()),
        )


@dataclass(frozen=True)
class RunMetrics:
    """Figures of many requests: distributions over the requests (itl_ms and inter_chunk_s: over all gaps).

    c50, c100, c200: percent of the requests whose largest underrun is at most so many ms; those of fewer than
    two chunks are not counted, None when none is left. streaming_viability: percent of all chunks from the
    second on that came in time (VoxServe). audio_throughput: seconds of sound a second, from the first
    submission to the last thing that came; decode_tok_s: tokens likewise. gate_dbfs: of audible_ttfa_ms.
    """

    num_requests: int
    num_failed: int
    wall_s: float
    audio_ttfp_ms: Distribution
    audible_ttfa_ms: Distribution
    first_chunk_s: Distribution
    audio_s: Distribution
    audio_rtf: Distribution
    audio_underrun_s: Distribution
    num_underruns: int
    num_stalled_requests: int
    num_stalls: int
    c50: float | None
    c100: float | None
    c200: float | None
    streaming_viability: float | None
    inter_chunk_s: Distribution
    ttft_ms: Distribution
    tpot_ms: Distribution
    itl_ms: Distribution
    e2el_ms: Distribution
    by_kind: dict[str, dict[str, Distribution]]
    reflection_per_audio_s: Distribution
    hidden_before_audio: Distribution
    audio_throughput: float | None
    decode_tok_s: float | None
    gate_dbfs: float = GATE_DBFS

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def summarize(logs: Sequence[RequestTimings], gate_dbfs: float = GATE_DBFS) -> RunMetrics:
    """The figures of a run. Requests that failed count with what came of them."""
    made = [measure(log) for log in logs]
    played = [one.underruns for one in made if one.underruns.is_measured]
    wall_s = _wall_s(logs)
    num_tokens = sum(one.tokens.n for one in made)
    shares = [percent(u.max_s <= most / 1e3 + _TICK_S for u in played) for most in CONTINUITY_MS]
    num_late, num_due = sum(u.count for u in played), sum(u.num_chunks - 1 for u in played)
    return RunMetrics(
        num_requests=len(made),
        num_failed=sum(one.error is not None for one in made),
        wall_s=wall_s,
        audio_ttfp_ms=Distribution.of(one.audio_ttfp_ms for one in made),
        audible_ttfa_ms=Distribution.of(one.audible_ttfa_ms for one in made),
        first_chunk_s=Distribution.of(one.first_chunk_s for one in made),
        audio_s=Distribution.of(one.audio_s or None for one in made),  # not of replies without sound
        audio_rtf=Distribution.of(one.audio_rtf for one in made),
        audio_underrun_s=Distribution.of(u.max_s for u in played),
        num_underruns=num_late,
        num_stalled_requests=sum(u.num_stalls > 0 for u in played),
        num_stalls=sum(u.num_stalls for u in played),
        c50=shares[0],
        c100=shares[1],
        c200=shares[2],
        streaming_viability=100 * (1 - num_late / num_due) if num_due else None,
        inter_chunk_s=Distribution.of(gap for one in made for gap in one.inter_chunk_s),
        **_token_distributions([one.tokens for one in made]),
        e2el_ms=Distribution.of(one.e2el_ms for one in made),
        by_kind={
            k: _token_distributions([one.by_kind[k] for one in made if k in one.by_kind]) for k in KINDS
        },
        reflection_per_audio_s=Distribution.of(one.reflection_per_audio_s for one in made),
        hidden_before_audio=Distribution.of(float(one.hidden_before_audio) for one in made),
        audio_throughput=sum(one.audio_s for one in made) / wall_s if wall_s > 0 else None,
        decode_tok_s=num_tokens / wall_s if wall_s > 0 and num_tokens else None,
        gate_dbfs=gate_dbfs,
    )


@dataclass(frozen=True)
class StreamsCarried:
    """The most concurrent streams, of those that were tried. None: no number of them."""

    c100_at_least_99: int | None
    without_underrun: int | None


def streams_carried(runs: Mapping[int, RunMetrics]) -> StreamsCarried:
    """From one run a number of concurrent streams.

    A run in which nothing was measured, or a request failed, carries nothing.
    """
    sound = {n: run for n, run in runs.items() if run.c100 is not None and run.num_failed == 0}
    continuous = [n for n, run in sound.items() if (run.c100 or 0.0) >= MOST_CARRIED_C100]
    unbroken = [n for n, run in sound.items() if run.num_underruns == 0]
    return StreamsCarried(max(continuous, default=None), max(unbroken, default=None))


def mbu(num_bytes: float, seconds: float, copy_bytes_per_s: float) -> float:
    """Share of the copy bandwidth that was used: bytes that must move / time /
    bandwidth of a copy in the same run.
    """
    if seconds <= 0 or copy_bytes_per_s <= 0:
        raise ValueError(f"mbu of {seconds} s at {copy_bytes_per_s} B/s: both must be above 0")
    return num_bytes / seconds / copy_bytes_per_s


def percent(hits: Iterable[bool]) -> float | None:
    """Percent that is true; None of nothing."""
    known = list(hits)
    return 100 * sum(known) / len(known) if known else None


def _lateness(chunks: Sequence[tuple[float, int]], rate: int) -> NDArray[np.float64]:
    """arrival - deadline of the chunks from the second on; below 0: in time."""
    arrivals = np.asarray([t for t, _ in chunks], np.float64)
    played_s = np.cumsum([count for _, count in chunks][:-1]) / rate
    return arrivals[1:] - (arrivals[0] + played_s) if len(chunks) > 1 else np.zeros(0)


def _token_times(log: RequestTimings, kind: str | None) -> TokenTimes:
    times = [t for t, _ in log.tokens]
    of_kind = [i for i, (_, k) in enumerate(log.tokens) if kind in (None, k)]
    gaps = tuple(1e3 * (times[i] - times[i - 1]) for i in of_kind if i > 0)
    ttft_ms = 1e3 * (times[of_kind[0]] - log.submitted_s) if of_kind else None
    return TokenTimes(len(of_kind), ttft_ms, sum(gaps) / len(gaps) if gaps else None, gaps)


def _token_distributions(made: Sequence[TokenTimes]) -> dict[str, Distribution]:
    return {
        "ttft_ms": Distribution.of(one.ttft_ms for one in made),
        "tpot_ms": Distribution.of(one.tpot_ms for one in made),
        "itl_ms": Distribution.of(gap for one in made for gap in one.itl_ms),
    }


def _wall_s(logs: Sequence[RequestTimings]) -> float:
    ends = [log.finished_s for log in logs if log.finished_s is not None]
    ends += [pairs[-1][0] for log in logs for pairs in (log.audio, log.tokens) if pairs]
    return max(ends) - min(log.submitted_s for log in logs) if ends else 0.0
