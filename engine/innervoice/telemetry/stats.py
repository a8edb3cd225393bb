"""Counters, gauges and histograms of an engine, for `stats()` and for Prometheus, which read the same table.

The engine's thread writes, any thread reads. No clock is read: the callers pass the time.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from innervoice.telemetry.histogram import Histogram, Spread
from innervoice.telemetry.metrics import find_underruns
from innervoice.types import AudioChunk, Done, Event, TokenEvent

RATE_WINDOW_S = 10
LATENCY_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
)
STEP_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
UNDERRUN_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CHUNK_S = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 30.0)
PER_AUDIO_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 400.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MetricKind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Occupancy:
    """Replies that run and wait, open sessions, pages of the cache, slots of the codec."""

    running: int = 0
    waiting: int = 0
    sessions: int = 0
    pages: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    slots: int = 0
    slots_used: int = 0


@dataclass(frozen=True)
class Stats:
    """A snapshot of an engine; None: not measured.

    Counts are since it was loaded, decode_tok_s is of the last 10 s.

    underrun_s: the largest of each reply that had a second chunk; num_underruns: chunks that came late.
    incidents: preempted, refused, and whatever else was counted.
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


@dataclass(frozen=True)
class Measure:
    """A histogram of `Telemetry`.

    field: of `Stats`, whose unit is 1 / scale of the measured one; name, help: for Prometheus.
    """

    field: str
    scale: float
    name: str
    help: str
    bounds: tuple[float, ...]


MEASURES = (
    Measure("ttfa_ms", 1e3, "ttfa_seconds", "Submission to the first samples", LATENCY_S),
    Measure("first_chunk_s", 1.0, "first_chunk_seconds", "Length of the first chunk of sound", CHUNK_S),
    Measure(
        "underrun_s",
        1.0,
        "underrun_seconds",
        "Largest underrun of a reply of two chunks or more",
        UNDERRUN_S,
    ),
    Measure(
        "reflection_per_audio_s",
        1.0,
        "reflection_per_audio_second",
        "Hidden tokens of a reply per second of its sound",
        PER_AUDIO_S,
    ),
    Measure("step_ms", 1e3, "step_seconds", "A step of the language model", STEP_S),
    Measure("codec_ms", 1e3, "codec_seconds", "A call of the codec", STEP_S),
    Measure("batch_rows", 1.0, "batch_rows", "Rows of a step", ROWS),
)


@dataclass(frozen=True)
class _Figure:
    """A counter or a gauge for Prometheus.

    read: its values in a snapshot by the value of its label, by "" without one.
    """

    name: str
    help: str
    kind: MetricKind
    label: str | None
    read: Callable[[Stats], Mapping[str, float]]


def _single(read: Callable[[Stats], float]) -> Callable[[Stats], Mapping[str, float]]:
    return lambda stats: {"": read(stats)}


FIGURES = (
    _Figure("tokens", "Tokens of replies", "counter", "kind", lambda s: s.tokens),
    _Figure(
        "prompt_tokens",
        "Tokens of prompts, history included",
        "counter",
        "how",
        lambda s: {"cached": s.cached_tokens, "computed": s.prompt_tokens - s.cached_tokens},
    ),
    _Figure("replies", "Replies that ended", "counter", "reason", lambda s: s.replies),
    _Figure(
        "incidents", "Preemptions, refusals and other incidents", "counter", "what", lambda s: s.incidents
    ),
    _Figure("audio_seconds", "Sound that was made", "counter", None, _single(lambda s: s.audio_s)),
    _Figure(
        "underruns",
        "Chunks of sound that came too late",
        "counter",
        None,
        _single(lambda s: s.num_underruns),
    ),
    _Figure(
        "decode_tok_s",
        "Tokens a second, of the last 10 s",
        "gauge",
        None,
        _single(lambda s: s.decode_tok_s),
    ),
    _Figure("running", "Replies that have a row", "gauge", None, _single(lambda s: s.occupancy.running)),
    _Figure("queue", "Replies that wait for a row", "gauge", None, _single(lambda s: s.occupancy.waiting)),
    _Figure("sessions", "Open sessions", "gauge", None, _single(lambda s: s.occupancy.sessions)),
    _Figure(
        "pages",
        "Pages of the cache; cached ones are free and remembered",
        "gauge",
        "state",
        lambda s: {
            "free": s.occupancy.pages_free,
            "cached": s.occupancy.pages_cached,
            "held": s.occupancy.pages - s.occupancy.pages_free,
        },
    ),
    _Figure(
        "slots",
        "Slots of the codec",
        "gauge",
        "state",
        lambda s: {
            "used": s.occupancy.slots_used,
            "free": s.occupancy.slots - s.occupancy.slots_used,
        },
    ),
)


@dataclass(frozen=True)
class Reading:
    """A family as it is now: values or histograms, by the value of its label, by "" where it has none."""

    name: str
    help: str
    kind: MetricKind
    label: str | None
    values: Mapping[str, float | Histogram]


@dataclass
class _OpenReply:
    """The sound and the hidden tokens of a reply that is not over."""

    audio: list[tuple[float, int]] = field(default_factory=list)
    rate: int = 1
    num_hidden: int = 0


class Telemetry:
    """Everything that one engine counts. name: the engine's label in Prometheus."""

    def __init__(self, name: str = "engine") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._measured = {one.field: Histogram(one.bounds) for one in MEASURES}
        self._tokens: dict[str, int] = {}
        self._replies: dict[str, int] = {}
        self._incidents: dict[str, int] = {}
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._num_underruns = 0
        self._audio_s = 0.0
        self._noted: dict[str, Any] = {}  # fields of Stats that others measure
        self._occupancy = Occupancy()
        self._open: dict[str, _OpenReply] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._now = -math.inf
        self._began_s = math.inf

    def events(self, events: Iterable[Event], now: float) -> None:
        """Count events that are handed over now, of any replies, those of each in order."""
        with self._lock:
            num_tokens = 0
            for event in events:
                if isinstance(event, TokenEvent):
                    num_tokens += len(event.ids)
                    self._tokens[event.kind] = self._tokens.get(event.kind, 0) + len(event.ids)
                    if event.kind == "reflection":
                        self._open.setdefault(event.reply_id, _OpenReply()).num_hidden += len(event.ids)
                elif isinstance(event, AudioChunk):
                    self._add_audio(event)
                elif isinstance(event, Done):
                    self._end(event)
            self._tick(now, num_tokens)

    def step(self, seconds: float, rows: int) -> None:
        """Count a step of the language model that drew for so many rows."""
        with self._lock:
            self._measured["step_ms"].observe(seconds)
            self._measured["batch_rows"].observe(rows)

    def codec(self, seconds: float) -> None:
        """Count a call of the codec."""
        with self._lock:
            self._measured["codec_ms"].observe(seconds)

    def occupy(self, occupancy: Occupancy) -> None:
        """Set the occupancy from now on."""
        self._occupancy = occupancy

    def count(self, name: str, number: int = 1) -> None:
        """Count incidents: preempted, refused, abandoned, late_ack, ..."""
        with self._lock:
            self._incidents[name] = self._incidents.get(name, 0) + number

    def note(
        self, *, mbu: float | None = None, ready_s: float | None = None, jit_after_warmup: int | None = None
    ) -> None:
        """Set figures of `Stats` that others measure; None: leave it."""
        given = {"mbu": mbu, "ready_s": ready_s, "jit_after_warmup": jit_after_warmup}
        with self._lock:
            self._noted |= {name: value for name, value in given.items() if value is not None}

    def stats(self, now: float | None = None) -> Stats:
        """A snapshot; now: on the clock of `events`, without it the time of the last of them."""
        with self._lock:
            return self._stats(now)

    def readings(self, now: float | None = None) -> list[Reading]:
        """Every family, for an exporter; names without the prefix."""
        with self._lock:
            stats = self._stats(now)
            histograms = {name: histogram.copy() for name, histogram in self._measured.items()}
        return [
            Reading(one.name, one.help, "histogram", None, {"": histograms[one.field]}) for one in MEASURES
        ] + [
            Reading(
                one.name,
                one.help,
                one.kind,
                one.label,
                {key: float(value) for key, value in one.read(stats).items()},
            )
            for one in FIGURES
        ]

    def _stats(self, now: float | None) -> Stats:
        """A snapshot. The lock is held."""
        spreads: dict[str, Any] = {
            one.field: Spread.of(self._measured[one.field], one.scale) for one in MEASURES
        }
        return Stats(
            name=self.name,
            occupancy=self._occupancy,
            num_underruns=self._num_underruns,
            decode_tok_s=self._decode_tok_s(now),
            audio_s=self._audio_s,
            tokens=dict(self._tokens),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            replies=dict(self._replies),
            incidents=dict(self._incidents),
            **spreads,
            **self._noted,
        )

    def _add_audio(self, chunk: AudioChunk) -> None:
        reply = self._open.setdefault(chunk.reply_id, _OpenReply())
        if not reply.audio:
            self._measured["ttfa_ms"].observe(chunk.t)
            self._measured["first_chunk_s"].observe(len(chunk.pcm) / chunk.rate)
        reply.audio.append((chunk.t, len(chunk.pcm)))
        reply.rate = chunk.rate
        self._audio_s += len(chunk.pcm) / chunk.rate

    def _end(self, done: Done) -> None:
        reply = self._open.pop(done.reply_id, _OpenReply())
        self._replies[done.finish_reason] = self._replies.get(done.finish_reason, 0) + 1
        self._prompt_tokens += done.usage.prompt_tokens
        self._cached_tokens += done.usage.cached_tokens
        underruns = find_underruns(reply.audio, reply.rate)
        if underruns.is_measured:
            self._measured["underrun_s"].observe(underruns.max_s)
            self._num_underruns += underruns.count
        num_samples = sum(count for _, count in reply.audio)
        if num_samples:
            self._measured["reflection_per_audio_s"].observe(reply.num_hidden * reply.rate / num_samples)

    def _tick(self, now: float, num_tokens: int) -> None:
        self._now = max(self._now, now)
        self._began_s = min(self._began_s, now)
        if num_tokens:
            self._recent.append((now, num_tokens))
        while self._recent and self._recent[0][0] < self._now - RATE_WINDOW_S:
            self._recent.popleft()

    def _decode_tok_s(self, now: float | None) -> float:
        now = self._now if now is None else now
        known_s = min(RATE_WINDOW_S, now - self._began_s)
        if known_s <= 0:
            return 0.0
        return sum(num for t, num in self._recent if t >= now - RATE_WINDOW_S) / known_s


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
