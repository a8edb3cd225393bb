"""CallResult and LoadResult: the replies that callers got, and how well they could be heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from innervoice.runtime.record import Line
from innervoice.telemetry.metrics import RequestTimings, RunMetrics, summarize
from innervoice.types import Usage


@dataclass(frozen=True)
class CallResult:
    """One reply as its caller got it.

    num_starved, starved_s: of the player in real time; lines: the reply's event log.
    """

    timings: RequestTimings
    question: str
    caller: int
    num_starved: int = 0
    starved_s: float = 0.0
    usage: Usage | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()

    def to_dict(self) -> Line:
        """One line of the results, which `RequestTimings.from_dict` reads too."""
        own = {
            "question": self.question,
            "caller": self.caller,
            "num_starved": self.num_starved,
            "starved_s": self.starved_s,
        }
        return self.timings.to_dict() | own | {"usage": None if self.usage is None else asdict(self.usage)}


@dataclass(frozen=True)
class LoadResult:
    """All replies of a load, in the order of submission.

    lags_s: delays of a beat of 5 ms in the callers' event loop.
    """

    calls: list[CallResult]
    lags_s: list[float]

    @property
    def metrics(self) -> RunMetrics:
        """The figures: see `metrics.py`."""
        return summarize([call.timings for call in self.calls])

    @property
    def num_starved(self) -> int:
        """The number of times that a player ran dry, in all."""
        return sum(call.num_starved for call in self.calls)

    @property
    def lag_p99_ms(self) -> float | None:
        """The 99th percentile of the event loop's lags; None for fewer than 100 beats."""
        return 1e3 * float(np.percentile(self.lags_s, 99)) if len(self.lags_s) >= 100 else None
