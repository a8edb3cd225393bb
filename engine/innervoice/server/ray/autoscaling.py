"""The number of replicas, as Ray Serve asks for it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ray.serve.config import AutoscalingContext

from innervoice.server.cluster.report import ReplicaReport
from innervoice.server.cluster.scaling import ScalingTarget, replicas_needed


class ByLoad:
    """The replicas that the running replies, the sessions and the expected first sound need.

    target: fields of `ScalingTarget`. Raises ValueError, which names the field.
    """

    def __init__(self, **target: float) -> None:
        self._target = ScalingTarget(**target)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Answer with the number, within the limits of the configuration, and no state."""
        needed = replicas_needed(reports_of(context.aggregated_metrics or {}), self._target)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(needed or context.target_num_replicas, least), most), {}


def reports_of(figures: dict[str, dict[Any, float]]) -> list[ReplicaReport]:
    """Rebuild the reports of the replicas from their figures, by name and replica."""
    names = [one.name for one in fields(ReplicaReport)]
    replicas = set.intersection(*(set(figures.get(name, {})) for name in names))
    made = []
    for replica in replicas:
        values = {name: figures[name][replica] for name in names}
        made.append(
            ReplicaReport(
                number=int(values["number"]),
                first_audio_s=values["first_audio_s"],
                num_sessions=round(values["num_sessions"]),
                max_sessions=round(values["max_sessions"]),
                num_running=round(values["num_running"]),
                is_draining=values["is_draining"] > 0.5,
            )
        )
    return made
