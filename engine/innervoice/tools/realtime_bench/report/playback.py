"""The playback of a reply: which part was heard when, and where the player ran dry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Sound from `place_s` of a reply on, played from begin_s to end_s."""

    begin_s: float
    end_s: float
    place_s: float


class PlaybackSpans(NamedTuple):
    """heard: spans that were played; gaps: (begin_s, end_s) of silences in between; unheard: (begin_s, end_s) in
    which the rest would have been played, had the player not been cleared.
    """

    heard: list[Span]
    gaps: list[tuple[float, float]]
    unheard: tuple[float, float] | None


def playback_spans(
    audio: Sequence[tuple[float, int]], rate: int, stopped_s: float | None, ended_s: float | None = None
) -> PlaybackSpans:
    """Play (arrival, samples) of each delta from the first on, unbuffered, until the player is cleared.

    ended_s: when the server ended the reply; a player that was dry before, and is then cleared, was dry until then.
    """
    stop_s = math.inf if stopped_s is None else stopped_s
    heard: list[Span] = []
    gaps: list[tuple[float, float]] = []
    dry_s = place_s = 0.0
    for arrival_s, count in audio:
        begin_s = max(arrival_s, dry_s)
        end_s = begin_s + count / rate
        if arrival_s <= stop_s:
            if heard and begin_s > dry_s + 1e-6:
                gaps.append((dry_s, min(begin_s, stop_s)))
            if begin_s < stop_s:
                heard.append(Span(begin_s, min(end_s, stop_s), place_s))
        dry_s, place_s = end_s, place_s + count / rate
    last_s = heard[-1].end_s if heard else math.inf
    has_more = ended_s is None or ended_s > last_s
    if (
        stopped_s is not None
        and last_s < stopped_s
        and has_more
        and stopped_s not in (end for _, end in gaps)
    ):
        gaps.append((last_s, stopped_s))
    unheard = (stop_s, dry_s) if dry_s > stop_s + 1e-6 else None
    return PlaybackSpans(heard, gaps, unheard)


def reserve_points(
    audio: Sequence[tuple[float, int]], rate: int, stopped_s: float | None
) -> list[tuple[float, float]]:
    """Points (time, seconds that wait to be played) of a line, from the first arrival until all is played."""
    points: list[tuple[float, float]] = []
    dry_s = 0.0
    for arrival_s, count in audio:
        if stopped_s is not None and arrival_s > stopped_s:
            break
        if points and dry_s < arrival_s:
            points.append((dry_s, 0.0))
        left_s = max(0.0, dry_s - arrival_s)
        points += [(arrival_s, left_s), (arrival_s, left_s + count / rate)]
        dry_s = arrival_s + left_s + count / rate
    if points and stopped_s is not None and stopped_s < dry_s:
        points += [(stopped_s, dry_s - stopped_s), (stopped_s, 0.0)]
    elif points:
        points.append((dry_s, 0.0))
    return points
