"""Listeners under a virtual clock: the scheduler's policies side by side on the limits of an H200 that runs GLM-4-Voice-9B.

The same listeners for each policy. `fcfs` takes rows in order of arrival, all of them in every step, prompts in pieces beside
them; `fixed` does the same with 100 hidden tokens a chunk. Carried is the largest constant population, in steps of 10, with
no underrun in 10 virtual minutes for 3 seeds, 99 of 100 first sounds within 2 s, and 20 hidden tokens per second of sound
delivered; for `fcfs` and `fixed` by a cap a segment, for `slack` by reflection_rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.record import Record

from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.tools.simulator import (
    H200_BF16,
    H200_FP8,
    Roofline,
    SimulatedRun,
    Spoken,
    constant,
    most_carried,
    poisson,
    simulate,
)

RATE = 20.0  # hidden tokens per second of sound, the same for every policy
SEGMENT_CAP = 43  # hidden tokens a reflection that come to that
SLACK_RATE = 20.5  # what slack aims at: a little more, since a reply that ends early leaves some unspent
SLACK_BUDGET = 450  # of the schedule, where slack decides how much of it
LIMITS = {"bf16": (H200_BF16, 461), "fp8": (H200_FP8, 738)}
SESSIONS = (1, 16, 64, 128, 192, 256, 320, 384, 448, 512, 640, 800, 1000)
MAX_ROWS = 2048


def one_run(
    device: Roofline,
    policy: str,
    sessions: int,
    *,
    seed: int,
    seconds: float,
    rate: float | None = None,
    **more: Any,
) -> SimulatedRun:
    """A constant population. rate: hidden tokens per second of sound; None: 100 a chunk, or all that slack pays for."""
    hidden = SLACK_BUDGET if policy == "slack" else 100 if rate is None else SEGMENT_CAP
    settings = SchedulerSettings(
        policy=policy,
        max_rows=MAX_ROWS,
        reflection_rate=None if rate is None else SLACK_RATE,
        fixed_hidden=hidden,
    )
    listeners = constant(sessions, seed=seed)
    return simulate(
        device, settings, listeners, seconds, spoken=Spoken(hidden=hidden, **more), stop=_stop(rate)
    )


def _stop(rate: float | None) -> Any:
    """A search needs no more than the first gap; a run that is looked at goes on to its end."""
    return (lambda run: True) if rate is not None else None


def sweep(dtype: str, voice_call_s: float, sessions: tuple[int, ...], seconds: float) -> Iterator[Record]:
    """What listeners hear as they grow more: gaps, first sound, reflection."""
    device = replace(LIMITS[dtype][0], voice_call_s=voice_call_s)
    policies: tuple[str, ...] = ("slack", "fixed", "fcfs")
    for policy in policies:
        for num in sessions:
            if policy == "fcfs":  # at the rate that the carried streams are counted at
                settings = SchedulerSettings(policy=policy, max_rows=MAX_ROWS)
                run = simulate(
                    device, settings, constant(num, seed=0), seconds, spoken=Spoken(hidden=SEGMENT_CAP)
                )
            else:
                run = one_run(device, policy, num, seed=0, seconds=seconds)
            yield from _figures(run, num, policy, dtype, voice_call_s, seconds)


def _figures(
    run: SimulatedRun, num: int, policy: str, dtype: str, voice_call_s: float, seconds: float
) -> Iterator[Record]:
    figures = run.figures()
    call = f", codec call {1e3 * voice_call_s:g} ms" if voice_call_s else ""
    common: dict[str, Any] = {
        "shape": f"{num} sessions, {policy}, {seconds:g} virtual s{call}",
        "device": "limits of an H200",
        "dtype": dtype,
        "n": figures.num_requests,
    }
    own = {"sessions": num, "policy": policy, "part": "simulated" + call}
    heard = own | {
        "underrun_s": figures.audio_underrun_s.most,
        "num_stalls": figures.num_stalls,
        "c100": figures.c100,
        "busy": run.busy,
        "reflection_per_audio_s": run.hidden_per_audio_s,
    }
    yield Record(name="simulated: gaps", unit="gaps", ours=run.num_underruns, details=heard, **common)
    first, chunk = (
        figures.audio_ttfp_ms,
        {"first_chunk_s": figures.first_chunk_s.median, "c100": figures.c100},
    )
    spread = {"median": first.median, "p10": first.p10, "p90": first.p90}
    yield Record(
        name="simulated: first audio",
        unit="ms",
        ours=first.median,
        details=own | chunk | {"p99": first.p99},
        **common,
        **spread,
    )
    yield Record(
        name="simulated: reflection",
        unit="tok/s",
        ours=run.hidden_per_audio_s,
        better="higher",
        details=own,
        **common,
    )


def carried(dtype: str, voice_call_s: float, *, seconds: float, seeds: int, step: int) -> Iterator[Record]:
    """G11 and G12."""
    device, limit = LIMITS[dtype]
    device, found = replace(device, voice_call_s=voice_call_s), dict[str, tuple[int, list[SimulatedRun]]]()
    for policy in ("fcfs", "slack"):

        def runs(num: int, policy: Any = policy) -> Iterator[SimulatedRun]:
            return (
                one_run(device, policy, num, seed=seed, seconds=seconds, rate=RATE) for seed in range(seeds)
            )

        found[policy] = most_carried(runs, 100, limit + 100, step=step, rate=RATE)
    ours, theirs = found["slack"][0], found["fcfs"][0]
    rates = {name: [run.hidden_per_audio_s for run in runs] for name, (_, runs) in found.items()}
    firsts = {name: [run.first_audio(0.99) for run in runs] for name, (_, runs) in found.items()}
    details = {
        "reflection_per_audio_s": rates,
        "first_audio_p99_s": firsts,
        "first_chunk_s": 0.8,
        "seeds": seeds,
    }
    call = f", codec call {1e3 * voice_call_s:g} ms" if voice_call_s else ""
    common: dict[str, Any] = {
        "shape": f"R=20, {seconds:g} virtual s, {seeds} seeds, steps of {step}{call}",
        "unit": "streams",
        "device": "limits of an H200",
        "dtype": dtype,
        "better": "higher",
        "n": seeds,
        "details": details,
    }
    ratio = ours / theirs if theirs else None
    goal = {"goal": "G11"} if not voice_call_s and dtype == "bf16" else {}
    yield Record(
        name="streams carried", ours=ours, peer=theirs, peer_name="fcfs", ratio=ratio, **goal, **common
    )
    goal = {"goal": "G12"} if not voice_call_s and dtype == "bf16" else {}
    yield Record(
        name="streams carried", ours=ours, peer=limit, peer_name="limit", ratio=ours / limit, **goal, **common
    )


def low_load(dtype: str, seconds: float, sessions: int = 8) -> Iterator[Record]:
    """G13: hidden tokens per second of sound with few listeners; gaps of both are in the details."""
    device = LIMITS[dtype][0]
    ours, theirs = (
        one_run(device, policy, sessions, seed=0, seconds=seconds) for policy in ("slack", "fixed")
    )
    gaps = {"slack": ours.num_underruns, "fixed": theirs.num_underruns}
    yield Record(
        name="reflection at low load",
        goal="G13",
        shape=f"{sessions} sessions, {seconds:g} virtual s, budget {SLACK_BUDGET}",
        unit="tok/s",
        device="limits of an H200",
        dtype=dtype,
        ours=ours.hidden_per_audio_s,
        peer=theirs.hidden_per_audio_s,
        peer_name="fixed 100 a chunk",
        ratio=ours.hidden_per_audio_s / theirs.hidden_per_audio_s,
        better="higher",
        n=len(ours.replies),
        details={"underruns": gaps},
        invalid=None if gaps["slack"] == gaps["fixed"] == 0 else f"gaps were heard: {gaps}",
    )


def first_audio(dtype: str, seconds: float) -> Iterator[Record]:
    """First sound at half the limit's listeners, arriving at random, with all the reflection that slack pays for."""
    device, limit = LIMITS[dtype]
    floor_s = device.first_audio_s(500, 13 + Spoken.first_chunk, Spoken.first_chunk / 12.5)
    settings = SchedulerSettings(max_rows=MAX_ROWS)
    load = poisson(limit / 2, seed=0, duration_s=seconds)
    run = simulate(device, settings, load, seconds, spoken=Spoken(hidden=SLACK_BUDGET))
    figures = run.figures()
    first = figures.audio_ttfp_ms
    assert first.p99 is not None, "too few replies for a p99"
    yield Record(
        name="simulated: first audio p99",
        shape=f"{limit // 2} listeners on average, {seconds:g} virtual s",
        unit="ms",
        device="limits of an H200",
        dtype=dtype,
        ours=first.p99,
        peer=1e3 * floor_s,
        peer_name="floor, prompt of 500 tokens",
        ratio=1e3 * floor_s / first.p99,
        n=first.n,
        median=first.median,
        p10=first.p10,
        p90=first.p90,
        details={
            "first_chunk_s": figures.first_chunk_s.median,
            "c100": figures.c100,
            "underruns": run.num_underruns,
            "reflection_per_audio_s": run.hidden_per_audio_s,
            "over_floor": first.p99 / (1e3 * floor_s),
        },
    )


def records(*, quick: bool = False, part: str = "all") -> Iterator[Record]:
    """All of it; quick: few and short. part: sweep, carried, carried13 (codec calls of 13 ms), low, first, or all of them."""
    if part in ("all", "low"):
        yield from low_load("bf16", 60.0 if quick else 300.0)
    if part in ("all", "first"):
        yield from first_audio("bf16", 40.0 if quick else 120.0)
    if part in ("all", "carried"):
        yield from carried(
            "bf16", 0.0, seconds=20.0 if quick else 600.0, seeds=1 if quick else 3, step=100 if quick else 10
        )
    if part in ("all", "carried13"):
        yield from carried(
            "bf16",
            0.013,
            seconds=20.0 if quick else 600.0,
            seeds=1 if quick else 3,
            step=100 if quick else 10,
        )
    if part in ("all", "sweep"):
        yield from sweep("bf16", 0.0, (16, 256) if quick else SESSIONS, 20.0 if quick else 60.0)
