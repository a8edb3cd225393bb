"""ServerMetrics: figures of the server for Prometheus, beside those of its engine."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

_PREFIX = "innervoice_server_"
_DELAYS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_SHORT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.032, 0.05, 0.1, 0.2, 0.5, 1.0)
_GAPS_S = (-1.0, -0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """Counters and histograms in a registry of their own, which holds the engine's as well.

    No label comes from a client: names of events, errors and ends are the server's own. Any thread.
    """

    def __init__(self, engine: Collector | None = None) -> None:
        self._registry = CollectorRegistry()
        self._totals = CollectorRegistry()  # apart: beside `sessions` no `sessions_total` may be registered
        if engine is not None:
            self._registry.register(engine)
        self._sessions = self._gauge("sessions", "Connections that are open.", "dialect")
        self._ended = Counter(
            _PREFIX + "sessions", "Connections that ended, by reason.", ["end"], registry=self._totals
        )
        self._refused = self._counter("refused_total", "Requests refused before they began.", "reason")
        self._events = self._counter("events_total", "Events of the protocol.", "direction", "type")
        self._errors = self._counter("errors_total", "Errors sent to clients.", "code")
        self._turns = self._counter("turns_total", "Turns of users.", "detection")
        self._barge_ins = self._counter("barge_in_total", "Replies that were cut short.", "by")
        self._received_s = self._counter("received_audio_seconds", "Sound received.")
        self._sent_s = self._counter("sent_audio_seconds", "Sound sent.")
        self._sent_bytes = self._counter("sent_bytes", "Bytes of messages sent.")
        self._truncate_gap = self._histogram(
            "truncate_gap_seconds", "Sound heard by the server's estimate, less the client's report.", _GAPS_S
        )
        self._commit_to_audio = self._histogram(
            "commit_to_audio_seconds", "From the end of speech to the first sound on the socket.", _DELAYS_S
        )
        self._speech_end_lag = self._histogram(
            "speech_end_lag_seconds", "From the last speech to its detection as the end of a turn.", _DELAYS_S
        )
        self._send_stall = self._histogram(
            "send_stall_seconds", "Waits for a client to take a message.", _SHORT_S
        )
        self._vad = self._histogram("vad_seconds", "One call of the voice activity network.", _SHORT_S)
        self._queue = self._histogram("queue_seconds", "From the engine's event to the socket.", _SHORT_S)

    def to_text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry) + generate_latest(self._totals)

    def session_started(self, dialect: str) -> None:
        """Count a connection as open."""
        self._sessions.labels(dialect).inc()

    def session_ended(self, dialect: str, end: str) -> None:
        """Count a connection as ended, for a reason of the server's own list."""
        self._sessions.labels(dialect).dec()
        self._ended.labels(end).inc()

    def refused(self, reason: str) -> None:
        """Count a request that was refused before it began, by the code of its error."""
        self._refused.labels(reason).inc()

    def event(self, direction: str, type: str) -> None:
        """Count an event that came "in" or went "out"."""
        self._events.labels(direction, type).inc()

    def error(self, code: str) -> None:
        """Count an error that was sent."""
        self._errors.labels(code).inc()

    def turn(self, detection: str) -> None:
        """Count a user's turn, by the way that its end was found."""
        self._turns.labels(detection).inc()

    def barge_in(self, by: str) -> None:
        """Count a reply that was cut short."""
        self._barge_ins.labels(by).inc()

    def truncate_gap(self, seconds: float) -> None:
        """Note the server's estimate of the sound heard, less the client's report."""
        self._truncate_gap.observe(seconds)

    def commit_to_audio(self, seconds: float) -> None:
        """Note the time from the end of speech to the first sound on the socket."""
        self._commit_to_audio.observe(seconds)

    def speech_end_lag(self, seconds: float) -> None:
        """Note the time from the last speech to its detection as a turn's end."""
        self._speech_end_lag.observe(seconds)

    def send_stall(self, seconds: float) -> None:
        """Note how long a client took to accept a message."""
        self._send_stall.observe(seconds)

    def vad(self, seconds: float) -> None:
        """Note the length of a call of the voice activity network."""
        self._vad.observe(seconds)

    def queue(self, seconds: float) -> None:
        """Note the time between an event of the engine and its message."""
        self._queue.observe(seconds)

    def received_audio(self, seconds: float) -> None:
        """Count sound that came."""
        self._received_s.inc(seconds)

    def sent_audio(self, seconds: float) -> None:
        """Count sound that went."""
        self._sent_s.inc(seconds)

    def sent_bytes(self, num_bytes: int) -> None:
        """Count the bytes of a message."""
        self._sent_bytes.inc(num_bytes)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, help, labels, registry=self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(_PREFIX + name, help, buckets=buckets, registry=self._registry)
