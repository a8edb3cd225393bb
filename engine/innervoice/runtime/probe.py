"""Prober: probes from any thread, one after another's pieces between the steps of replies."""

from __future__ import annotations

from collections import abc
from collections.abc import Generator
from contextlib import suppress

from innervoice.runtime.probing import Probe, ProbeAnswer, StatesOf
from innervoice.runtime.worker import Worker
from innervoice.types import EngineDead


class Prober:
    """Feeds probes on the worker's thread; see `Probing`.

    states: the probes ask for hidden states; None: for log-probabilities.
    """

    def __init__(self, worker: Worker, states: StatesOf | None = None) -> None:
        self._worker = worker
        self._states = states

    def run(self, probes: abc.Sequence[Probe]) -> list[ProbeAnswer]:
        """Feed all -> their answers, in order.

        Raises OutOfCapacity where the cache has no room, RequestFailed for logits that are no numbers,
        EngineDead, and ValueError on a closed engine.
        """
        call = self._worker.call
        steps = call(lambda core: core.probing.answers(probes, self._states))
        try:
            while True:
                answers = call(lambda core: _advance(steps))
                if answers is not None:
                    return answers
        finally:
            with suppress(ValueError, EngineDead):  # whose pages are gone
                call(lambda core: steps.close())


def _advance(steps: Generator[int, None, list[ProbeAnswer]]) -> list[ProbeAnswer] | None:
    """Feed the next piece -> None, and once all are fed the answers."""
    try:
        next(steps)
    except StopIteration as end:
        found: list[ProbeAnswer] = end.value
        return found
    return None
