"""Plots of listeners: gaps against the number of streams, and one reply's sound against its player."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bench.plots import plot
from bench.record import Record

KINDS = {"reflection": "tab:purple", "transcript": "tab:green", "speech": "tab:blue", "end": "black"}


@plot("streams")
def draw_streams(records: Sequence[Record], axes: Any) -> bool:
    """The largest gap that anybody heard, by the number of sessions, a line a policy."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        details = record.details
        if details.get("underrun_s") is not None and "sessions" in details:
            lines[f"{details['policy']}, {details.get('part', '')}, {record.device}"].append(
                (details["sessions"], details["underrun_s"])
            )
    if not lines:
        return False
    for name, points in sorted(lines.items()):
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, [1e3 * y for y in ys], marker="o", label=name)
    axes.axhline(100, color="black", linewidth=1, linestyle=":")  # c100
    axes.set(xlabel="sessions", ylabel="largest underrun of a reply, ms", yscale="symlog")
    axes.legend(fontsize=6)
    return True


@plot("timeline")
def draw_timeline(records: Sequence[Record], axes: Any) -> bool:
    """One reply: sound that came and sound that was played, tokens by kind, and silences in red."""
    some = [
        record.details["timeline"] for record in records if record.details.get("timeline", {}).get("audio")
    ]
    if not some:
        return False
    audio, tokens = some[-1]["audio"], some[-1]["tokens"]
    came, played = [(0.0, 0.0)], [(audio[0][0], 0.0)]
    dry_s, total_s = audio[0][0], 0.0
    for t, sound_s in audio:
        if t > dry_s:
            axes.axvspan(dry_s, t, color="tab:red", alpha=0.4)
            played += [(dry_s, total_s), (t, total_s)]
            dry_s = t
        came += [(t, total_s), (t, total_s + sound_s)]
        total_s, dry_s = total_s + sound_s, dry_s + sound_s
    played.append((dry_s, total_s))
    axes.plot(*zip(*came, strict=True), label="sound that came, s")
    axes.plot(*zip(*played, strict=True), label="sound that was played, s")
    for row, (kind, color) in enumerate(KINDS.items()):
        times = [t for t, k in tokens if k == kind]
        axes.scatter(
            times, [-0.05 * total_s * (row + 1)] * len(times), marker="|", color=color, label=f"{kind} tokens"
        )
    axes.set(xlabel="s since submission", ylabel="s")
    axes.legend(fontsize=6)
    return True
