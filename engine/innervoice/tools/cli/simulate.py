"""innervoice simulate: how many listeners a machine carries, by the engine's own scheduler under a virtual
clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from innervoice.fields import MOST_INT64, Count, Limits, NotNegative, read_fields
from innervoice.runtime.scheduler import POLICIES, SchedulerSettings
from innervoice.tools.environment import as_text
from innervoice.tools.simulator import (
    H200_BF16,
    H200_FP8,
    PLACEMENTS,
    Cluster,
    SimulatedDevice,
    SimulatedRun,
    Spoken,
    Workload,
    constant,
    from_file,
    is_carried,
    most_carried,
    read_profile,
    simulate,
)

MACHINES = {"h200-bf16": H200_BF16, "h200-fp8": H200_FP8}
_MOST = 2048


@dataclass(frozen=True)
class _Numbers:
    """Numbers of the command line. Raises ValueError."""

    streams: Annotated[int | None, Limits(1, 4096 * _MOST)]
    voice_call_ms: NotNegative
    hidden: Count
    replicas: Annotated[int, Limits(1, 4096)]
    seconds: Annotated[float, Limits(above=0, most=1e6)]
    seed: Annotated[int, Limits(0, MOST_INT64)]

    def __post_init__(self) -> None:
        read_fields(self)


def simulate_command(
    arrivals: Annotated[
        Path | None,
        typer.Option(help='Who asks when: a JSON object a line, {"arrival_s", "prompt_tokens", "reply_s"}.'),
    ] = None,
    streams: Annotated[
        int | None, typer.Option(help="So many listeners all the time; default: as many as are carried.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Machines, each with a replica of the server.")] = 1,
    routing: Annotated[
        str, typer.Option(help=f"With replicas, where sessions go: {', '.join(PLACEMENTS)}.")
    ] = "first-audio",
    profile: Annotated[Path | None, typer.Option(help="Step times that were measured, as JSON.")] = None,
    machine: Annotated[
        str, typer.Option(help=f"Limits of a machine instead: {', '.join(MACHINES)}.")
    ] = "h200-bf16",
    voice_call_ms: Annotated[
        float, typer.Option(help="With a machine: what each codec call takes besides.")
    ] = 0.0,
    policy: Annotated[str, typer.Option(help=f"{', '.join(POLICIES)}.")] = "slack",
    reflection: Annotated[
        float | None, typer.Option(help="Hidden tokens per second of sound; default: all that fit.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="The schedule's budget of a reflection.")] = Spoken.hidden,
    seconds: Annotated[float, typer.Option(help="Virtual seconds.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of the listeners.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
) -> None:
    """Find how many listeners a machine carries, or what given listeners hear."""
    if machine not in MACHINES:
        raise ValueError(f"machine is {machine!r}: use {', '.join(MACHINES)}, or give a --profile")
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}: use {', '.join(POLICIES)}")
    if arrivals is not None and streams is not None:
        raise ValueError(f"both --arrivals and --streams {streams} were given: say one way who listens")
    if routing not in PLACEMENTS:
        raise ValueError(f"routing is {routing!r}: use {', '.join(PLACEMENTS)}")
    if arrivals is not None and replicas > 1:
        raise ValueError(
            f"--arrivals is for one machine, and --replicas is {replicas}: leave one of them out"
        )
    _Numbers(streams, voice_call_ms, hidden, replicas, seconds, seed)
    if replicas == 1 and streams is not None and streams > _MOST:
        raise ValueError(f"streams is {streams}: one machine is simulated with at most {_MOST}")
    limits = replace(MACHINES[machine], voice_call_s=voice_call_ms / 1e3)
    device: SimulatedDevice = limits if profile is None else read_profile(profile)
    settings = SchedulerSettings(
        policy=policy, max_rows=_MOST, reflection_rate=reflection, fixed_hidden=hidden
    )

    def run(workload: Workload, end_s: float = seconds) -> SimulatedRun:
        return simulate(device, settings, workload, end_s, spoken=Spoken(hidden=hidden))

    def run_cluster(sessions: int, number: int) -> SimulatedRun:
        return Cluster(
            device,
            settings,
            PLACEMENTS[routing](Random(number)),
            replicas=replicas,
            sessions=sessions,
            seed=number,
            spoken=Spoken(hidden=hidden),
        ).until(seconds, stops_late=streams is None)

    summary: dict[str, Any]
    if replicas > 1:
        made, summary = _cluster_of(run_cluster, streams, replicas, seed, reflection or 0.0)
        summary |= {"replicas": replicas, "routing": routing}
    elif arrivals is not None:
        made = run(from_file(arrivals))
        summary = {"arrivals": len(made.replies)}
    elif streams is not None:
        made, summary = run(constant(streams, seed=seed)), {"streams": streams}
    else:
        most, runs = most_carried(lambda num: _three(run, num, seed), 1, _MOST, rate=reflection or 0.0)
        if not runs:
            raise ValueError("not one listener is carried: the machine is too slow")
        made, summary = runs[0], {"streams_carried": most}
    summary |= {"policy": policy, **_figures_of(made, reflection or 0.0)}
    print(json.dumps(summary) if as_json else as_text(summary))


def _cluster_of(
    run: Callable[[int, int], SimulatedRun], streams: int | None, replicas: int, seed: int, rate: float
) -> tuple[SimulatedRun, dict[str, Any]]:
    """A run of a cluster with so many sessions, None: with as many as are carried, to a replica's worth."""
    if streams is not None:
        return run(streams, seed), {"streams": streams}
    most, runs = most_carried(
        lambda num: [run(num, seed)], replicas, _MOST * replicas, step=max(1, replicas // 4), rate=rate
    )
    if not runs:
        raise ValueError("not one listener a replica is carried: the machine is too slow")
    return runs[0], {"streams_carried": most}


def _three(run: Any, num: int, seed: int) -> Iterator[SimulatedRun]:
    """The same number of listeners with three seeds."""
    return (run(constant(num, seed=seed + i)) for i in range(3))


def _figures_of(run: SimulatedRun, rate: float) -> dict[str, Any]:
    figures = run.figures()
    first = figures.audio_ttfp_ms
    return {
        "is_carried": is_carried(run, rate),
        "underruns": run.num_underruns,
        "audio_underrun_s": figures.audio_underrun_s.most,
        "c100": figures.c100,
        "audio_ttfp_ms_median": first.median,
        "audio_ttfp_ms_p99": first.p99,
        "first_chunk_s": figures.first_chunk_s.median,
        "reflection_per_audio_s": run.hidden_per_audio_s,
        "busy": run.busy,
        "seconds": run.duration_s,
    }
