"""Figures of a run of listeners -> records, of one form whether the listeners were real or simulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.record import Record

from innervoice.telemetry.metrics import Distribution, RequestTimings, RunMetrics

TIMELINE_TOKENS = 4000


def run_records(
    figures: RunMetrics, *, part: str, policy: str, sessions: int, device: str, seconds: float, **more: Any
) -> Iterator[Record]:
    """Gaps, first audio, reflection and throughput of so many sessions under a policy. part: what the listeners were.

    more: fields of every record, such as dtype; `details` of the first one are joined with what the plots read: sessions,
    policy, num_stalls, c100, underrun_s, and, where somebody gave it, timeline (see `timeline`).
    """
    shape = more.pop("shape", f"{sessions} sessions, {policy}, {seconds:g} s")
    own = {"sessions": sessions, "policy": policy, "part": part, "num_requests": figures.num_requests}
    heard = {
        "c50": figures.c50,
        "c100": figures.c100,
        "c200": figures.c200,
        "streaming_viability": figures.streaming_viability,
        "underrun_s": figures.audio_underrun_s.most,
        "num_stalls": figures.num_stalls,
        "num_stalled_requests": figures.num_stalled_requests,
        "num_failed": figures.num_failed,
        "reflection_per_audio_s": figures.reflection_per_audio_s.mean,
        "audio_throughput": figures.audio_throughput,
        "decode_tok_s": figures.decode_tok_s,
    }
    details = own | heard | dict(more.pop("details", {}))
    common: dict[str, Any] = {"shape": shape, "device": device} | more
    invalid = (
        f"{figures.num_failed} of {figures.num_requests} requests failed" if figures.num_failed else None
    )
    common["n"] = figures.num_requests
    yield Record(
        name=f"{part}: gaps", unit="gaps", ours=figures.num_stalls, details=details, invalid=invalid, **common
    )
    # No figure of first audio without its chunk's length and c100.
    chunk = {"first_chunk_s": figures.first_chunk_s.median, "c100": figures.c100}
    yield _spread(f"{part}: first audio", "ms", figures.audio_ttfp_ms, details=own | chunk, **common)
    yield _spread(
        f"{part}: reflection", "tok/s", figures.reflection_per_audio_s, better="higher", details=own, **common
    )
    yield Record(
        name=f"{part}: sound",
        unit="s/s",
        ours=figures.audio_throughput,
        better="higher",
        details=own,
        **common,
    )


def timeline(log: RequestTimings) -> Mapping[str, Any]:
    """One reply for the plot of a session, in seconds since its submission."""
    audio = [[round(t - log.submitted_s, 4), count / log.rate] for t, count in log.audio]
    tokens = [[round(t - log.submitted_s, 4), kind] for t, kind in log.tokens[:TIMELINE_TOKENS]]
    return {"audio": audio, "tokens": tokens}


def _spread(name: str, unit: str, values: Distribution, **more: Any) -> Record:
    spread = {"n": values.n, "median": values.median, "p10": values.p10, "p90": values.p90}
    return Record(name=name, unit=unit, ours=values.median, **more | spread)
