"""The two dialects of the Realtime protocol, general availability and beta: names and shapes that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from innervoice.tools.realtime_bench.recordings import RATE
from innervoice.tools.realtime_bench.settings import CallSettings

ServerDialect = Literal["ga", "beta"]

AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta"})
BETA_HEADER = ("OpenAI-Beta", "realtime=v1")
_FLAT = ("modalities", "input_audio_format", "output_audio_format")


def dialect_of(session: Mapping[str, Any]) -> ServerDialect:
    """The dialect of a server, by the session that it greets with: the beta's has flat fields."""
    return "beta" if any(name in session for name in _FLAT) and "audio" not in session else "ga"


def session_update(dialect: ServerDialect, settings: CallSettings) -> dict[str, Any]:
    """The first message of a call: PCM16 both ways, and how turns end."""
    turns: dict[str, Any] | None = None
    if settings.turns == "server":
        turns = {"type": "server_vad", "create_response": True, "interrupt_response": True}
        if settings.silence_ms is not None:
            turns["silence_duration_ms"] = settings.silence_ms
    pcm = {"type": "audio/pcm", "rate": RATE}
    ga = {
        "type": "realtime",
        "output_modalities": ["audio"],
        "audio": {"input": {"format": pcm, "turn_detection": turns}, "output": {"format": pcm}},
    }
    beta = {
        "modalities": ["text", "audio"],
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
        "turn_detection": turns,
    }
    session = merged(ga if dialect == "ga" else beta, settings.session)
    return {"type": "session.update", "session": session}


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both, those of nested objects too; where both have one, the second's."""
    made = dict(base)
    for name, value in more.items():
        own = made.get(name)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        made[name] = merged(own, value) if both else value  # type: ignore[arg-type]
    return made


def output_rate(session: Mapping[str, Any]) -> int:
    """Hz of the server's sound: that of its session, or else the protocol's."""
    place: Any = session
    for name in ("audio", "output", "format"):
        place = place.get(name) if isinstance(place, Mapping) else None
    rate = place.get("rate") if isinstance(place, Mapping) else None
    return rate if isinstance(rate, int) and rate > 0 else RATE
