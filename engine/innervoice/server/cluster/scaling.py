"""The number of replicas that the load needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from innervoice.fields import Limits, Positive, read_fields
from innervoice.server.cluster.report import ReplicaReport


@dataclass(frozen=True)
class ScalingTarget:
    """The load that a replica should have.

    running: replies that are made at a time on each. first_audio_s: expected first sound above which replicas are
    added, however few replies run. fill: share of the sessions that may be in use.

    Raises ValueError, which names the field.
    """

    running: Positive = 32.0
    first_audio_s: Positive = 1.0
    fill: Annotated[float, Limits(above=0, most=1)] = 0.9

    def __post_init__(self) -> None:
        read_fields(self)


def replicas_needed(reports: Sequence[ReplicaReport], target: ScalingTarget) -> int:
    """The replicas that would bring the load to the target: by replies, by sessions, and by the first sound.

    ceil(replies / running), ceil(sessions / (fill x most)), and one more than there are while the median of the
    expected first sounds is late. One that makes no reply is not late: others would begin no earlier. Draining
    replicas count as load, and not as replicas. 0: there is no report.
    """
    if not reports:
        return 0
    serving = [one for one in reports if not one.is_draining]
    by_replies = math.ceil(sum(one.num_running for one in reports) / target.running)
    most = max(one.max_sessions for one in reports)
    by_sessions = math.ceil(sum(one.num_sessions for one in reports) / (target.fill * most))
    waits = sorted(one.first_audio_s if one.num_running else 0.0 for one in serving)
    is_late = bool(waits) and waits[len(waits) // 2] > target.first_audio_s
    by_first_audio = len(serving) + 1 if is_late else 0
    return max(1, by_replies, by_sessions, by_first_audio)
