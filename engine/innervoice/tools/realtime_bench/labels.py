"""Figures as they are shown to people: their names, numbers and percents."""

from __future__ import annotations

from innervoice.telemetry.metrics import Distribution

ROWS = {
    "audio_ttfp_ms": "first sound after the question, ms",
    "audible_ttfa_ms": "the same with its leading silence, ms",
    "first_chunk_s": "length of the first chunk, s",
    "turn_end_ms": "speech_stopped after the question, ms",
    "response_ms": "response.created after the question, ms",
    "inter_chunk_s": "gap between chunks, ms",
    "audio_underrun_s": "largest underrun of a reply, s",
    "stream_underruns": "underruns of a call",
    "audio_s": "sound of a reply, s",
    "audio_rtf": "question to last chunk / sound",
    "interruption_noticed_ms": "barge-in to speech_started, ms",
    "interruption_sound_after_s": "sound that came after that, s",
    "interruption_last_delta_ms": "barge-in to the last delta, ms",
    "interruption_silent_ms": "barge-in to silence, ms",
    "lag_ms": "lateness of the callers' frames, ms",
}


def number(value: float | None) -> str:
    """Three digits, but none beyond thousandths; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 or not value else f"{value:.3f}"


def cells(name: str, values: Distribution) -> list[str]:
    """The count, p50, p90, p99 and the most of a row of `ROWS`, in the unit of its label."""
    factor = 1e3 if name.endswith("_s") and ROWS[name].endswith(", ms") else 1.0
    shares = (values.median, values.p90, values.p99, values.most)
    return [str(values.n), *(number(None if one is None else factor * one) for one in shares)]


def percent_words(value: float | None) -> str:
    """A percentage, or a dash; only all is 100%."""
    return "-" if value is None else "100%" if value == 100 else f"{min(value, 99.9):.3g}%"


def counted(num: int, word: str) -> str:
    """A number of things that a word names."""
    return f"{num} {word}" if num == 1 else f"{num} {word}s"
