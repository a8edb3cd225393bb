"""Plots of bench/codec.py's records: what a chunk costs over a reply, and the spectrum of steady streaming across borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.plots import plot
from bench.record import Record


@plot("chunk_cost")
def draw_chunk_cost(records: Sequence[Record], axes: Any) -> bool:
    """Seconds to make each chunk over the sound before it."""
    some = [record for record in records if "cost_s" in record.details]
    for record in some:
        axes.plot(
            record.details["sound_s"], record.details["cost_s"], label=f"{record.device}, {record.shape}"
        )
    if some:
        axes.set_xlabel("sound before the chunk, s")
        axes.set_ylabel("time to make it, s")
        axes.set_ylim(bottom=0)
        axes.legend()
    return bool(some)


@plot("chunk_borders")
def draw_chunk_borders(records: Sequence[Record], axes: Any) -> bool:
    """A log spectrogram with a line at every border of chunks."""
    some = [record for record in records if "spectrogram_db" in record.details]
    if not some:
        return False
    details = some[-1].details
    axes.imshow(
        list(zip(*details["spectrogram_db"], strict=True)), origin="lower", aspect="auto", cmap="magma"
    )
    for frame in details["border_frames"]:
        axes.axvline(frame, color="white", linewidth=0.8)
    axes.set_xlabel("frame of 256 samples")
    axes.set_ylabel("bin")
    return True
