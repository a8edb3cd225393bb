"""The record of a run, in the form that the project's benchmarks write: a list of objects, a figure each."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import innervoice
from innervoice.runtime.record import Line
from innervoice.telemetry.metrics import Distribution
from innervoice.tools.realtime_bench.crowd import CrowdLog
from innervoice.tools.realtime_bench.figures import RealtimeFigures, columns
from innervoice.tools.realtime_bench.settings import CallSettings
from innervoice.tools.realtime_bench.turn import CallTurn

PART = "realtime"
PACKAGES = ("websockets", "numpy")
_SECRET = "--api-key"
_UNITS = {"_ms": "ms", "_s": "s", "_underruns": "gaps", "_rtf": "s/s"}


def records_of(figures: RealtimeFigures, log: CrowdLog, settings: CallSettings) -> list[Line]:
    """All figures of a run, in the fields of `bench.record.Record`; the first has the whole run in its details."""
    replies = figures.replies
    details = {
        "sessions": settings.callers,
        "policy": settings.turns,
        "part": PART,
        "num_requests": replies.num_requests,
    }
    heard: Line = {
        name: getattr(replies, name)
        for name in (
            "c50",
            "c100",
            "c200",
            "streaming_viability",
            "num_stalls",
            "num_stalled_requests",
            "num_failed",
        )
    }
    heard |= {"underrun_s": replies.audio_underrun_s.most, "underrun_free": figures.underrun_free}
    heard |= {"errors": figures.errors, "figures": figures.to_dict(), "timeline": _timeline(log.turns)}
    shape, device = settings.shape, _server(log, settings)
    common = {"shape": shape, "device": device, "invalid": figures.invalid, "warmup": settings.num_warmups}
    made = [
        _record(
            "gaps",
            "gaps",
            float(replies.num_stalls),
            n=replies.num_requests,
            details=details | heard,
            **common,
        )
    ]
    # No figure of first audio without its chunk's length and c100.
    chunk = {"first_chunk_s": replies.first_chunk_s.median, "c100": replies.c100}
    for name, values in columns(figures).items():
        more = details | (chunk if name == "audio_ttfp_ms" else {})
        made.append(_spread(name, values, details=more, **common))
    throughput = replies.audio_throughput
    made.append(
        _record(
            "sound", "s/s", throughput, better="higher", n=replies.num_requests, details=details, **common
        )
    )
    return made


def command(words: Sequence[str] | None = None) -> str:
    """The command line of this process without the key; of an absolute path the last part, behind dots."""
    shown: list[str] = []
    for word in sys.argv[1:] if words is None else words:
        is_value = bool(shown) and shown[-1] == _SECRET
        hidden = "..." if is_value else re.sub(f"^{_SECRET}=.*", f"{_SECRET}=...", word, flags=re.DOTALL)
        shown.append(hidden if "://" in hidden else re.sub(r"(^|=)/.*/", r"\1.../", hidden))
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = "" if spec is None else str(spec.name)
    return shlex.join([*(("python", "-m", name) if name.startswith("bench.") else ("innervoice",)), *shown])


def _spread(name: str, values: Distribution, **more: Any) -> Line:
    unit = next(unit for ending, unit in _UNITS.items() if name.endswith(ending))
    spread = {"n": values.n, "median": values.median, "p10": values.p10, "p90": values.p90}
    details = more.pop("details") | {"p99": values.p99, "most": values.most, "mean": values.mean}
    return _record(name, unit, values.median, details=details, **spread, **more)


def _record(name: str, unit: str, ours: float | None, **more: Any) -> Line:
    return {
        "name": f"{PART}: {name}",
        "unit": unit,
        "ours": ours,
        "threads": os.cpu_count() or 1,
        "commit": "unknown",
        "dirty": None,
        "versions": {"python": platform.python_version(), "innervoice": innervoice.__version__}
        | dict(_versions()),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    } | more


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _server(log: CrowdLog, settings: CallSettings) -> str:
    """The server as records name it: its address and model."""
    model = next((call.model for call in log.calls if call.model), "")
    return settings.url.partition("?")[0] + (f" {model}" if model else "")


def _timeline(turns: Sequence[CallTurn]) -> Line:
    """The reply with the most deltas, in seconds since the end of its question."""
    replies = [turn.timings for turn in turns if turn.timings.audio]
    if not replies:
        return {"audio": [], "tokens": []}
    longest = max(replies, key=lambda one: len(one.audio))
    audio = [[round(t - longest.submitted_s, 4), count / longest.rate] for t, count in longest.audio]
    return {"audio": audio, "tokens": []}
