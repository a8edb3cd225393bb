"""Guide: a pattern as an automaton over token ids, and a reply's walk through one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from innervoice.schedule.emission import Mask
from innervoice_kernels.sampling.bits import pack_ids

_FEW = 128  # ids that a mask has singly
ENDLESS = 2**31 - 1  # of a distance: the end cannot be reached

Edges = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Ids, ascending, and the state that each leads to."""


@dataclass(frozen=True)
class Guide:
    """States 0 (the start) and up; all of them can reach an end.

    edges: of each state. distance: by state, the fewest ids to an end; 0: the pattern may end there. size: ids of
    the vocabulary.
    """

    edges: Sequence[Edges]
    distance: npt.NDArray[np.int32]
    size: int

    @classmethod
    def of(cls, edges: Mapping[int, Edges], start: int, ends: Iterable[int], size: int) -> Guide | None:
        """A guide of the states from which an end can be reached; None: it cannot be from the start."""
        before: dict[int, set[int]] = {state: set() for state in edges}
        for state, (_, targets) in edges.items():
            for target in np.unique(targets).tolist():
                before[target].add(state)
        distance = {state: 0 for state in ends if state in edges}
        reached = list(distance)
        while reached:
            nearer = {one for state in reached for one in before[state]} - distance.keys()
            distance |= dict.fromkeys(nearer, distance[reached[0]] + 1)
            reached = list(nearer)
        if start not in distance:
            return None
        order = [start, *sorted(distance.keys() - {start})]
        numbers = np.full(max(edges) + 1, -1, dtype=np.int32)
        numbers[order] = np.arange(len(order), dtype=np.int32)
        kept = []
        for state in order:
            ids, targets = edges[state]
            lives = numbers[targets] >= 0
            kept.append((ids[lives], numbers[targets[lives]]))
        return cls(kept, np.array([distance[state] for state in order], dtype=np.int32), size)

    @cached_property
    def shortest(self) -> int:
        """The fewest ids that spell the pattern."""
        return int(self.distance[0])

    @cached_property
    def ends_by_itself(self) -> bool:
        """Whether nothing can follow wherever the pattern may end."""
        return not any(len(self.edges[state][0]) for state in np.flatnonzero(self.distance == 0).tolist())

    def follow(self, state: int, token: int) -> int:
        """The state behind an id, -1: the pattern does not go on with it."""
        ids, targets = self.edges[state]
        place = int(np.searchsorted(ids, token))
        return int(targets[place]) if place < len(ids) and ids[place] == token else -1

    def allowed(self, state: int, most: int = ENDLESS) -> npt.NDArray[np.int32]:
        """The ids that the pattern goes on with, such that it can end within `most` ids behind them."""
        ids, targets = self.edges[state]
        return ids[self.distance[targets] <= most]


@dataclass(frozen=True)
class BoundSegment:
    """A segment that a pattern binds. budget: its ids at most, None: any number. ends: the ids that end it, where
    the pattern may end.
    """

    guide: Guide
    budget: int | None
    ends: frozenset[int]
    masks: dict[int, Mask] = field(default_factory=dict, compare=False, repr=False)

    def mask(self, state: int, most: int = ENDLESS) -> Mask:
        """The ids that may be drawn; see `Guide.allowed`."""
        if most >= len(self.guide.distance) and state in self.masks:
            return self.masks[state]
        ids = self.guide.allowed(state, most)
        if self.ends and self.guide.distance[state] == 0:
            ids = np.append(ids, sorted(self.ends)).astype(np.int32)
        if len(ids) <= _FEW:
            made = Mask((), tuple(ids.tolist()))
        else:
            made = Mask(((0, self.guide.size),), bits=pack_ids(ids, self.guide.size))
        if most >= len(self.guide.distance):  # no shortest way is longer
            self.masks[state] = made
        return made


@dataclass(frozen=True)
class Walk:
    """A reply's place in the segment that is open: the ids of its pattern so far, and the guide's state."""

    segment: BoundSegment
    ids: tuple[int, ...] = ()
    state: int = 0

    @classmethod
    def along(cls, segment: BoundSegment, ids: Sequence[int]) -> Walk | None:
        """The walk behind some ids, None: the pattern does not begin so."""
        walk = cls(segment)
        for token in ids:
            walk = walk.take(token)
            if walk.state < 0:
                return None
        return walk

    def take(self, token: int) -> Walk:
        """The walk behind one more id."""
        state = self.segment.guide.follow(self.state, token)
        return replace(self, ids=(*self.ids, token), state=state)

    @property
    def may_end(self) -> bool:
        """Whether the pattern is spelled."""
        return int(self.segment.guide.distance[self.state]) == 0

    def closes(self, token: int) -> bool:
        """Whether an id ends the segment here."""
        return token in self.segment.ends and self.may_end

    def is_over(self, limit: int) -> bool:
        """Whether nothing more is drawn: the pattern may end, and cannot go on or has had its cap."""
        goes_on = len(self.segment.guide.edges[self.state][0]) > 0
        return self.may_end and (not goes_on or len(self.ids) >= limit)

    def mask(self, limit: int) -> Mask:
        """The ids that may be drawn. From the cap on they lead to the end by the shortest way; before it, such that
        the budget is enough.
        """
        count, budget = len(self.ids), self.segment.budget
        if count >= limit:
            return self.segment.mask(self.state, int(self.segment.guide.distance[self.state]) - 1)
        return self.segment.mask(self.state, ENDLESS if budget is None else budget - count - 1)
