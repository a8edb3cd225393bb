"""Prober: prompts that are fed for the log-probabilities of given ids, and draw nothing."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from innervoice.model.sequence import Sequence
from innervoice.runtime.core import Core
from innervoice.runtime.host_decode import NO_NUMBERS
from innervoice.runtime.worker import Worker
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed

_MOST_LOGITS = 64  # positions of a step whose logits are computed: each takes the vocabulary's size


@dataclass(frozen=True)
class Probe:
    """A prompt and the questions to it.

    asked: by position, at least one, the ids whose log-probabilities are wanted behind the token there.
    """

    ids: tuple[int, ...]
    asked: Mapping[int, tuple[int, ...]]

    @property
    def first(self) -> int:
        """The first position that must be fed, whatever is cached."""
        return min(self.asked)


@dataclass(frozen=True)
class ProbeAnswer:
    """The answers to a probe.

    logprobs: by position, those of the asked ids. num_cached: tokens of the prompt that lay in shared pages.
    """

    logprobs: Mapping[int, tuple[float, ...]]
    num_cached: int


@dataclass
class _Lane:
    """A probe that is being fed."""

    number: int
    probe: Probe
    sequence: Sequence
    num_cached: int
    found: dict[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def num_left(self) -> int:
        return len(self.probe.ids) - self.sequence.num_cached

    def piece(self, most: int, most_logits: int) -> int:
        """The tokens that the next step may feed, at most so many, with so many asked positions among them."""
        begin = self.sequence.num_cached
        end = min(begin + most, len(self.probe.ids))
        inside = [at for at in sorted(self.probe.asked) if begin <= at < end]
        return (inside[most_logits] if len(inside) > most_logits else end) - begin


class Prober:
    """Feeds probes between the steps of replies, a piece of at most a step's prompt tokens at a time.

    Probes that begin alike share pages: the first of them is fed alone, the others adopt what it published.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def run(self, probes: abc.Sequence[Probe]) -> list[ProbeAnswer]:
        """Feed all -> their answers, in order.

        Raises OutOfCapacity where the cache has no room, RequestFailed for logits that are no numbers,
        EngineDead, and ValueError on a closed engine.
        """
        answers: dict[int, ProbeAnswer] = {}
        waiting = list(enumerate(probes))
        while waiting:
            for lane in self._run_round(waiting):
                answers[lane.number] = ProbeAnswer(lane.found, lane.num_cached)
            waiting = [one for one in waiting if one[0] not in answers]
        return [answers[number] for number in range(len(probes))]

    def _run_round(self, waiting: abc.Sequence[tuple[int, Probe]]) -> list[_Lane]:
        lanes: list[_Lane] = []
        call = self._worker.call
        try:
            call(lambda core: lanes.extend(_begin(core, waiting)))
            while any(lane.num_left for lane in lanes):
                call(lambda core: _step(core, [lane for lane in lanes if lane.num_left]))
        finally:
            with suppress(ValueError, EngineDead):  # whose pages are gone
                call(lambda core: _release(lanes))
        return lanes


def _begin(core: Core, waiting: abc.Sequence[tuple[int, Probe]]) -> Iterator[_Lane]:
    """The lanes of a round: of probes that would compute the same page, the first alone."""
    size, coming, num = core.runner.page_size, set[tuple[int, ...]](), 0
    for number, probe in waiting:
        if num == core.max_rows:
            return
        # The page table finds no more than lies before the first asked position.
        sequence = core.pages.new_sequence()
        sequence.extend(probe.ids[: probe.first + 1])
        core.pages.adopt(sequence)
        sequence.extend(probe.ids[probe.first + 1 :])
        next_page = probe.ids[: sequence.num_cached + size]
        if core.pages.shares and len(next_page) <= probe.first and next_page in coming:
            sequence.release()
            continue
        if len(next_page) == sequence.num_cached + size:
            coming.add(next_page)
        num += 1
        yield _Lane(number, probe, sequence, sequence.num_cached)


def _release(lanes: abc.Sequence[_Lane]) -> None:
    for lane in lanes:
        lane.sequence.release()


def _step(core: Core, lanes: abc.Sequence[_Lane]) -> None:
    """Feed the next pieces, first the lanes that come first, and take the answers that lie in them."""
    fed: list[_Lane] = []
    room, logits_left = core.settings.prefill_chunk, _MOST_LOGITS
    for lane in lanes:
        num = lane.piece(room, logits_left)
        if num <= 0:
            break
        lane.sequence.limit = lane.sequence.num_cached + num
        if not _make_room(core, lane.sequence, must=not fed):
            lane.sequence.limit = None
            break
        fed.append(lane)
        room -= num
        logits_left -= sum(at < lane.sequence.end for at in lane.probe.asked if at not in lane.found)
    _feed(core, fed)


def _make_room(core: Core, sequence: Sequence, *, must: bool) -> bool:
    """Give a sequence its pages, if need be those of idle sessions. Raises OutOfCapacity where it must have them."""
    while not core.pages.make_writable(sequence):
        if not core.registry.release_oldest():
            if not must:
                return False
            raise OutOfCapacity(
                f"the cache of {core.pool.num_pages} pages is full: try again, or load the model with more max_sessions"
            )
    return True


def _feed(core: Core, lanes: abc.Sequence[_Lane]) -> None:
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
        logits = core.runner.logits_at(sequences, wanted)
    finally:
        for sequence in sequences:
            sequence.limit = None
    core.pages.publish(sequences)

    # The answers: logarithms over the whole vocabulary, at temperature 1.
    logprobs = logits.log_softmax(-1)
    for row, (lane, at) in enumerate(owners):
        values = tuple(logprobs[row, list(lane.probe.asked[at])].tolist())
        if any(math.isnan(value) for value in values):
            raise RequestFailed(NO_NUMBERS)
        lane.found[at] = values
