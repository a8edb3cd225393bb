"""What an engine counts while it runs: plain counters, gauges and histograms, read by `stats()` and by the Prometheus
collector.

The engine's thread writes, any thread reads. No clock is read: times are told.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from innervoice.telemetry.metrics import find_underruns
from innervoice.types import AudioChunk, Done, Event, TokenEvent

RATE_WINDOW_S = 10
LATENCY_S = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    10.0,
    30.0,
)
STEP_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
UNDERRUN_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CHUNK_S = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 30.0)
PER_AUDIO_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 400.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MetricKind = Literal["counter", "gauge", "histogram"]


class Histogram:
    """How often a value fell at or below each bound; the last bucket takes what is above them all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def n(self) -> int:
        """Values so far."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add a value; one that is no number is left out."""
        if math.isfinite(value):
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def quantile(self, share: float) -> float | None:
        """The value below which that share lies, as even within its bucket; the highest bound for what is above all."""
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
        """As it is now."""
        made = Histogram(self.bounds)
        made.counts, made.sum = list(self.counts), self.sum
        return made


@dataclass(frozen=True)
class Reading:
    """One family as it is now: a value, or a histogram, by the value of its label; by "" where it has none."""

    name: str
    help: str
    kind: MetricKind
    label: str | None
    values: Mapping[str, float | Histogram]


@dataclass(frozen=True)
class Occupancy:
    """Who holds what: replies that run and wait, open sessions, pages of the cache, slots of the voice."""

    running: int = 0
    waiting: int = 0
    sessions: int = 0
    pages: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    slots: int = 0
    slots_used: int = 0


@dataclass(frozen=True)
class Spread:
    """Of n values; quantiles are read off a histogram."""

    n: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, histogram: Histogram, scale: float = 1.0) -> Spread:
        """In units of 1 / scale."""
        n = histogram.n
        quantiles = [
            None if (q := histogram.quantile(share)) is None else scale * q for share in (0.5, 0.9, 0.99)
        ]
        return cls(n, scale * histogram.sum / n if n else None, *quantiles)


@dataclass(frozen=True)
class Stats:
    """A snapshot of an engine; None: not measured. Counts are since it was loaded, decode_tok_s is of the last 10 s.

    underrun_s: the largest of each reply that had a second chunk; num_underruns: chunks that came late. incidents: preempted,
    refused, and whatever else was counted.
    """

    name: str
    occupancy: Occupancy
    step_ms: Spread
    codec_ms: Spread
    batch_rows: Spread
    ttfa_ms: Spread
    first_chunk_s: Spread
    underrun_s: Spread
    num_underruns: int
    reflection_per_audio_s: Spread
    decode_tok_s: float
    audio_s: float
    tokens: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    replies: dict[str, int]
    incidents: dict[str, int]
    mbu: float | None = None
    ready_s: float | None = None
    jit_after_warmup: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """One line a figure."""
        return "\n".join(f"{name:28} {_shown(value)}" for name, value in _flat(self.to_dict()))


@dataclass
class _Open:
    """A reply that is not over."""

    audio: list[tuple[float, int]] = field(default_factory=list)
    rate: int = 1
    num_hidden: int = 0


class Telemetry:
    """Everything that one engine counts. name tells engines apart in one registry."""

    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._ttfa_s, self._first_chunk_s = Histogram(LATENCY_S), Histogram(CHUNK_S)
        self._underrun_s, self._per_audio_s = Histogram(UNDERRUN_S), Histogram(PER_AUDIO_S)
        self._step_s, self._codec_s, self._rows = Histogram(STEP_S), Histogram(STEP_S), Histogram(ROWS)
        self._tokens: dict[str, int] = {}
        self._replies: dict[str, int] = {}
        self._incidents: dict[str, int] = {}
        self._prompt_tokens = self._cached_tokens = self._num_underruns = self._jit_after_warmup = 0
        self._audio_s = 0.0
        self._mbu: float | None = None
        self._ready_s: float | None = None
        self._occupancy = Occupancy()
        self._open: dict[str, _Open] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._now, self._began_s = -math.inf, math.inf

    def events(self, events: Iterable[Event], now: float) -> None:
        """Events that are handed over now, of any replies, those of each in order."""
        with self._lock:
            num_tokens = 0
            for event in events:
                if isinstance(event, TokenEvent):
                    num_tokens += len(event.ids)
                    self._tokens[event.kind] = self._tokens.get(event.kind, 0) + len(event.ids)
                    if event.kind == "reflection":
                        self._open.setdefault(event.reply_id, _Open()).num_hidden += len(event.ids)
                elif isinstance(event, AudioChunk):
                    self._hear(event)
                elif isinstance(event, Done):
                    self._end(event)
            self._tick(now, num_tokens)

    def step(self, seconds: float, rows: int) -> None:
        """The language model took a step that drew for so many rows."""
        with self._lock:
            self._step_s.observe(seconds)
            self._rows.observe(rows)

    def codec(self, seconds: float) -> None:
        """The codec was called."""
        with self._lock:
            self._codec_s.observe(seconds)

    def occupy(self, occupancy: Occupancy) -> None:
        """Who holds what from now on."""
        self._occupancy = occupancy

    def count(self, what: str, number: int = 1) -> None:
        """Something happened that is worth a number: preempted, refused, abandoned, late_ack, ..."""
        with self._lock:
            self._incidents[what] = self._incidents.get(what, 0) + number

    def note(
        self, *, mbu: float | None = None, ready_s: float | None = None, jit_after_warmup: int | None = None
    ) -> None:
        """Figures that others measure: see `Stats`."""
        with self._lock:
            self._mbu = self._mbu if mbu is None else mbu
            self._ready_s = self._ready_s if ready_s is None else ready_s
            self._jit_after_warmup = self._jit_after_warmup if jit_after_warmup is None else jit_after_warmup

    def stats(self, now: float | None = None) -> Stats:
        """A snapshot; now: on the clock of `events`, without it the time of the last of them."""
        with self._lock:
            return Stats(
                name=self.name,
                occupancy=self._occupancy,
                step_ms=Spread.of(self._step_s, 1e3),
                codec_ms=Spread.of(self._codec_s, 1e3),
                batch_rows=Spread.of(self._rows),
                ttfa_ms=Spread.of(self._ttfa_s, 1e3),
                first_chunk_s=Spread.of(self._first_chunk_s),
                underrun_s=Spread.of(self._underrun_s),
                num_underruns=self._num_underruns,
                reflection_per_audio_s=Spread.of(self._per_audio_s),
                decode_tok_s=self._decode_tok_s(now),
                audio_s=self._audio_s,
                tokens=dict(self._tokens),
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                replies=dict(self._replies),
                incidents=dict(self._incidents),
                mbu=self._mbu,
                ready_s=self._ready_s,
                jit_after_warmup=self._jit_after_warmup,
            )

    def readings(self, now: float | None = None) -> list[Reading]:
        """Every family, for an exporter; names without the prefix."""
        stats = self.stats(now)
        with self._lock:
            histograms = {
                name: (told, histogram.copy()) for name, (told, histogram) in self._histograms().items()
            }
        made = [
            Reading(name, told, "histogram", None, {"": histogram})
            for name, (told, histogram) in histograms.items()
        ]
        held = stats.occupancy
        pages = {"free": held.pages_free, "cached": held.pages_cached, "held": held.pages - held.pages_free}
        slots = {"used": held.slots_used, "free": held.slots - held.slots_used}
        prompt = {"cached": stats.cached_tokens, "computed": stats.prompt_tokens - stats.cached_tokens}
        made += [
            _family("tokens", "Tokens of replies", "counter", "kind", stats.tokens),
            _family("prompt_tokens", "Tokens of prompts, history included", "counter", "how", prompt),
            _family("replies", "Replies that ended", "counter", "reason", stats.replies),
            _family("incidents", "What happened besides", "counter", "what", stats.incidents),
            _family("audio_seconds", "Sound that was made", "counter", None, {"": stats.audio_s}),
            _family(
                "underruns", "Chunks of sound that came too late", "counter", None, {"": stats.num_underruns}
            ),
            _family(
                "decode_tok_s", "Tokens a second, of the last 10 s", "gauge", None, {"": stats.decode_tok_s}
            ),
            _family("running", "Replies that have a row", "gauge", None, {"": held.running}),
            _family("queue", "Replies that wait for a row", "gauge", None, {"": held.waiting}),
            _family("sessions", "Open dialogues", "gauge", None, {"": held.sessions}),
            _family(
                "pages", "Pages of the cache; cached ones are free and remembered", "gauge", "state", pages
            ),
            _family("slots", "Slots of the voice", "gauge", "state", slots),
        ]
        return made

    def _histograms(self) -> dict[str, tuple[str, Histogram]]:
        return {
            "ttfa_seconds": ("Submission to the first samples", self._ttfa_s),
            "first_chunk_seconds": ("Length of the first chunk of sound", self._first_chunk_s),
            "underrun_seconds": ("Largest underrun of a reply of two chunks or more", self._underrun_s),
            "reflection_per_audio_second": (
                "Hidden tokens of a reply per second of its sound",
                self._per_audio_s,
            ),
            "step_seconds": ("A step of the language model", self._step_s),
            "codec_seconds": ("A call of the codec", self._codec_s),
            "batch_rows": ("Rows of a step", self._rows),
        }

    def _hear(self, chunk: AudioChunk) -> None:
        reply = self._open.setdefault(chunk.reply_id, _Open())
        if not reply.audio:
            self._ttfa_s.observe(chunk.t)
            self._first_chunk_s.observe(len(chunk.pcm) / chunk.rate)
        reply.audio.append((chunk.t, len(chunk.pcm)))
        reply.rate = chunk.rate
        self._audio_s += len(chunk.pcm) / chunk.rate

    def _end(self, done: Done) -> None:
        reply = self._open.pop(done.reply_id, _Open())
        self._replies[done.finish_reason] = self._replies.get(done.finish_reason, 0) + 1
        self._prompt_tokens += done.usage.prompt_tokens
        self._cached_tokens += done.usage.cached_tokens
        underruns = find_underruns(reply.audio, reply.rate)
        if underruns.is_measured:
            self._underrun_s.observe(underruns.max_s)
            self._num_underruns += underruns.count
        num_samples = sum(count for _, count in reply.audio)
        if num_samples:
            self._per_audio_s.observe(reply.num_hidden * reply.rate / num_samples)

    def _tick(self, now: float, num_tokens: int) -> None:
        self._now, self._began_s = max(self._now, now), min(self._began_s, now)
        if num_tokens:
            self._recent.append((now, num_tokens))
        while self._recent and self._recent[0][0] < self._now - RATE_WINDOW_S:
            self._recent.popleft()

    def _decode_tok_s(self, now: float | None) -> float:
        now = self._now if now is None else now
        known_s = min(RATE_WINDOW_S, now - self._began_s)
        return (
            sum(num for t, num in self._recent if t >= now - RATE_WINDOW_S) / known_s if known_s > 0 else 0.0
        )


def _family(
    name: str, told: str, kind: MetricKind, label: str | None, values: Mapping[str, float]
) -> Reading:
    return Reading(name, told, kind, label, {key: float(value) for key, value in values.items()})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
