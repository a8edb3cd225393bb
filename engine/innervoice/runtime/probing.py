"""Probing: tokens that are fed for the log-probabilities of given ids behind them, or for their hidden states, between
the steps of replies.
"""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from innervoice.model.pages import PagePool
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence, TokenColumns
from innervoice.model.token_role import TokenRole
from innervoice.runtime.host_decode import NO_NUMBERS
from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.types import OutOfCapacity, RequestFailed

_MOST_LOGITS = 64  # positions of a step whose logits are computed: each takes the vocabulary's size
_MOST_STATES = 1 << 20  # positions of a step whose hidden states are kept: all that it feeds


@dataclass(frozen=True)
class Probe:
    """Tokens and the questions to them.

    asked: by position, at least one, the ids whose log-probabilities are wanted behind the token there; none where
    the token's hidden state is. weights: as `Sequence.log_weights`, of the replies that tokens belong to.
    """

    tokens: TokenColumns
    asked: Mapping[int, tuple[int, ...]]
    weights: tuple[float, ...] = (0.0,)

    @property
    def first(self) -> int:
        """The first position that must be fed, whatever is cached."""
        return min(self.asked)

    def fill(self, sequence: Sequence, begin: int, end: int) -> None:
        """Append the tokens from begin to end."""
        tokens = self.tokens
        for i in range(begin, min(end, len(tokens.ids))):
            sequence.append(tokens.ids[i], tokens.roles[i], tokens.replies[i])


@dataclass(frozen=True)
class ProbeAnswer:
    """The answers to a probe.

    logprobs: by position, those of the asked ids. num_cached: tokens of the prompt that lay in shared pages.
    states: by position, the hidden states [D] float32, on the host.
    """

    logprobs: Mapping[int, tuple[float, ...]]
    num_cached: int
    states: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StatesOf:
    """A layer whose hidden states are wanted in place of log-probabilities; see `ModelRunner.states_at`."""

    layer: int | None = None


@dataclass(frozen=True)
class ProbedPrompt:
    """One prompt with its continuations, as probes.

    probe_of[c]: the one among them that feeds continuation c.
    """

    num_prompt: int
    continuations: tuple[tuple[int, ...], ...]
    probes: tuple[Probe, ...]
    probe_of: tuple[int, ...]

    @classmethod
    def of(
        cls,
        prompt: TokenColumns,
        continuations: abc.Sequence[tuple[int, ...]],
        role: TokenRole = TokenRole.NEUTRAL,
        reply: int = 0,
        weights: tuple[float, ...] = (0.0,),
    ) -> ProbedPrompt:
        """Continuations whose fed ids begin another's are asked for in that one's probe.

        role, reply: of the continuations' tokens.
        """
        fed = [ids[:-1] for ids in continuations]
        longest: list[tuple[int, ...]] = []
        for ids in sorted(set(fed), key=len, reverse=True):
            if not any(other[: len(ids)] == ids for other in longest):
                longest.append(ids)
        places = {
            ids: next(i for i, other in enumerate(longest) if other[: len(ids)] == ids) for ids in set(fed)
        }
        probe_of, num = tuple(places[ids] for ids in fed), len(prompt.ids)
        asked: list[dict[int, list[int]]] = [{} for _ in longest]
        for ids, number in zip(continuations, probe_of, strict=True):
            for place, token in enumerate(ids):
                here = asked[number].setdefault(num - 1 + place, [])
                if token not in here:
                    here.append(token)
        probes = []
        for ids, wanted in zip(longest, asked, strict=True):
            tokens = prompt.at(range(num))
            tokens.extend(TokenColumns(list(ids), [role] * len(ids), [reply] * len(ids)))
            probes.append(Probe(tokens, {at: tuple(found) for at, found in wanted.items()}, weights))
        return cls(num, tuple(continuations), tuple(probes), probe_of)

    def logprobs(self, answers: abc.Sequence[ProbeAnswer]) -> list[tuple[float, ...]]:
        """The log-probabilities of each continuation's ids, from the answers to these probes."""
        found = []
        for ids, number in zip(self.continuations, self.probe_of, strict=True):
            asked, logprobs = self.probes[number].asked, answers[number].logprobs
            places = range(self.num_prompt - 1, self.num_prompt - 1 + len(ids))
            found.append(
                tuple(logprobs[at][asked[at].index(token)] for at, token in zip(places, ids, strict=True))
            )
        return found


@dataclass
class _Lane:
    """A probe that is being fed."""

    number: int
    probe: Probe
    sequence: Sequence
    num_cached: int
    found: dict[int, tuple[float, ...]] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)

    @property
    def num_left(self) -> int:
        return len(self.probe.tokens.ids) - self.sequence.num_cached

    def piece(self, most: int, most_logits: int) -> int:
        """The tokens that the next step may feed, at most so many, with so many asked positions among them."""
        begin = self.sequence.num_cached
        end = min(begin + most, len(self.probe.tokens.ids))
        inside = [at for at in sorted(self.probe.asked) if begin <= at < end]
        return (inside[most_logits] if len(inside) > most_logits else end) - begin


class Probing:
    """Feeds probes, a piece of at most a step's prompt tokens at a time.

    Probes that begin alike share pages: the first of them is fed alone, the others adopt what it published.
    """

    def __init__(
        self,
        runner: ModelRunner,
        pages: SequencePages,
        pool: PagePool,
        registry: SessionRegistry,
        settings: SchedulerSettings,
        max_rows: int,
    ) -> None:
        self._runner = runner
        self._pages = pages
        self._pool = pool
        self._registry = registry
        self._settings = settings
        self._max_rows = max_rows

    def answers(
        self, probes: abc.Sequence[Probe], states: StatesOf | None = None
    ) -> Generator[int, None, list[ProbeAnswer]]:
        """Feed all, a step for each `next`, which gives the tokens that were fed -> their answers, in order.

        states: the hidden states that are asked for, None: log-probabilities are. Closed early it gives its pages
        back. Raises OutOfCapacity where the cache has no room, RequestFailed for logits that are no numbers.
        """
        found: dict[int, ProbeAnswer] = {}
        waiting = list(enumerate(probes))
        while waiting:
            lanes: list[_Lane] = []
            try:
                lanes.extend(self._begin(waiting))
                while left := [lane for lane in lanes if lane.num_left]:
                    yield self._step(left, states)
            finally:
                for lane in lanes:
                    lane.sequence.release()
            for lane in lanes:
                found[lane.number] = ProbeAnswer(lane.found, lane.num_cached, lane.states)
            waiting = [one for one in waiting if one[0] not in found]
        return [found[number] for number in range(len(probes))]

    def _begin(self, waiting: abc.Sequence[tuple[int, Probe]]) -> Iterator[_Lane]:
        """The lanes of a round: of probes that would compute the same page, the first alone."""
        size, coming, num = self._runner.page_size, set[tuple[int, ...]](), 0
        for number, probe in waiting:
            if num == self._max_rows:
                return
            # The page table finds no more than lies before the first asked position.
            sequence, ids = self._pages.new_sequence(), probe.tokens.ids
            sequence.log_weights = list(probe.weights)
            probe.fill(sequence, 0, probe.first + 1)
            self._pages.adopt(sequence)
            probe.fill(sequence, probe.first + 1, len(ids))
            next_page = tuple(ids[: sequence.num_cached + size])
            if self._pages.shares and len(next_page) <= probe.first and next_page in coming:
                sequence.release()
                continue
            if len(next_page) == sequence.num_cached + size:
                coming.add(next_page)
            num += 1
            yield _Lane(number, probe, sequence, sequence.num_cached)

    def _step(self, lanes: abc.Sequence[_Lane], states: StatesOf | None) -> int:
        """Feed the next pieces, first the lanes that come first, and take the answers that lie in them."""
        fed: list[_Lane] = []
        room, logits_left = self._settings.prefill_chunk, _MOST_LOGITS if states is None else _MOST_STATES
        for lane in lanes:
            num = lane.piece(room, logits_left)
            if num <= 0:
                break
            lane.sequence.limit = lane.sequence.num_cached + num
            if not self._make_room(lane.sequence, must=not fed):
                lane.sequence.limit = None
                break
            fed.append(lane)
            room -= num
            begin = lane.sequence.num_cached
            logits_left -= sum(begin <= at < lane.sequence.end for at in lane.probe.asked)
        self._feed(fed, states)
        return self._settings.prefill_chunk - room

    def _make_room(self, sequence: Sequence, *, must: bool) -> bool:
        """Give a sequence its pages, if need be those of idle sessions.

        Raises OutOfCapacity where it must have them.
        """
        while not self._pages.make_writable(sequence):
            if not self._registry.release_oldest():
                if not must:
                    return False
                raise OutOfCapacity(
                    f"the cache of {self._pool.num_pages} pages is full: try again, or load the model with more "
                    "max_sessions"
                )
        return True

    def _feed(self, lanes: abc.Sequence[_Lane], states: StatesOf | None) -> None:
        sequences = [lane.sequence for lane in lanes]
        wanted: list[int] = []
        owners: list[tuple[_Lane, int]] = []
        start = 0
        for lane in lanes:
            begin, end = lane.sequence.num_cached, lane.sequence.end
            for at in sorted(at for at in lane.probe.asked if begin <= at < end):
                wanted.append(start + at - begin)
                owners.append((lane, at))
            start += end - begin
        try:
            if states is None:
                made = self._runner.logits_at(sequences, wanted)
            else:
                made = self._runner.states_at(sequences, wanted, states.layer).cpu()
        finally:
            for sequence in sequences:
                sequence.limit = None
        self._pages.publish(sequences)

        if states is not None:
            if not bool(made.isfinite().all()):
                raise RequestFailed(NO_NUMBERS)
            for row, (lane, at) in enumerate(owners):
                lane.states[at] = made[row].clone()
            return

        # The answers: logarithms over the whole vocabulary, at temperature 1.
        logprobs = made.log_softmax(-1)
        for row, (lane, at) in enumerate(owners):
            values = tuple(logprobs[row, list(lane.probe.asked[at])].tolist())
            if any(math.isnan(value) for value in values):
                raise RequestFailed(NO_NUMBERS)
            lane.found[at] = values
