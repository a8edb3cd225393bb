"""Plots of records, by name: `@plot("gaps")` over a function (records, axes) -> whether it drew; bench/report.py draws them.

A module bench/plot_NAME.py that registers some is found by bench/report.py; nothing else need name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.record import GOALS, Record

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

Plot = Callable[[Sequence[Record], Any], bool]  # draws into axes; False: there is nothing to draw
PLOTS: dict[str, Plot] = {}


def plot(name: str) -> Callable[[Plot], Plot]:
    """Register a function (records, axes) -> whether it drew anything; name is that of its PNG."""

    def register(function: Plot) -> Plot:
        if name in PLOTS and PLOTS[name] is not function:
            raise ValueError(f"there is a plot named {name!r} already")
        PLOTS[name] = function
        return function

    return register


@plot("goals")
def draw_goals(records: Sequence[Record], axes: Any) -> bool:
    """Each goal's ratios over its floor, so that 1 is where it must be."""
    some = [r for r in records if r.goal is not None and r.ratio and not r.invalid]
    if not some:
        return False
    floors = [GOALS[r.goal or ""] for r in some]
    shares = [
        (r.ratio or 0) / g.floor if g.better == "higher" else g.floor / (r.ratio or 1)
        for r, g in zip(some, floors, strict=True)
    ]
    names = [f"{r.goal} {r.name}, {r.shape}" for r in some]
    axes.barh(names, shares, color=["tab:blue" if share >= 1 else "tab:red" for share in shares])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("of the floor (1: reached)")
    return True


@plot("latency")
def draw_latency(records: Sequence[Record], axes: Any) -> bool:
    """Medians with p10 to p90 of what is timed, and the peers'."""
    some = [r for r in records if r.unit in _SECONDS and r.ours and r.median is not None]
    if not some:
        return False
    places = range(len(some))

    def draw(values: list[tuple[float, float, float]], where: list[float], **style: Any) -> None:
        middle = [m for m, _, _ in values]
        below, above = [max(m - lo, 0) for m, lo, _ in values], [max(hi - m, 0) for m, _, hi in values]
        axes.errorbar(middle, where, xerr=[below, above], fmt="o", **style)

    draw(
        [(r.ours * _SECONDS[r.unit], r.p10 * _SECONDS[r.unit], r.p90 * _SECONDS[r.unit]) for r in some],
        list(places),
        label="ours",
    )
    beside = [(i, r) for i, r in enumerate(some) if r.peer]
    if beside:
        peers = [
            [(p or r.peer) * _SECONDS[r.unit] for p in (r.peer, r.peer_p10, r.peer_p90)] for _, r in beside
        ]
        draw([(m, lo, hi) for m, lo, hi in peers], [i + 0.25 for i, _ in beside], label="peer")
    axes.set_yticks(list(places), [f"{r.name}, {r.shape}" for r in some], fontsize=6)
    axes.set_xscale("log")
    axes.set_xlabel("s")
    axes.legend()
    return True


@plot("roofline")
def draw_roofline(records: Sequence[Record], axes: Any) -> bool:
    """FLOP a second over FLOP a byte, under the ceilings that were measured in the same run (details: copy_bw, gemm_flops)."""
    some = [r for r in records if r.flops and r.bytes and r.ours and r.unit in _SECONDS]
    ceilings = {
        (r.details["copy_bw"], r.details["gemm_flops"])
        for r in some
        if {"copy_bw", "gemm_flops"} <= set(r.details)
    }
    if not some or not ceilings:
        return False
    xs = [(r.flops or 0) / (r.bytes or 1) for r in some]
    axes.scatter(xs, [(r.flops or 0) / ((r.ours or 1) * _SECONDS[r.unit]) for r in some], s=12)
    line = [min(xs) / 2, *sorted(f / b for b, f in ceilings), max(*xs, *(f / b for b, f in ceilings)) * 2]
    for bandwidth, flops in ceilings:
        axes.plot(line, [min(x * bandwidth, flops) for x in line], color="black", linewidth=1)
    for x, r in zip(xs, some, strict=True):
        axes.annotate(
            f"{r.name} {r.shape}", (x, (r.flops or 0) / ((r.ours or 1) * _SECONDS[r.unit])), fontsize=5
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="FLOP/s")
    return True
