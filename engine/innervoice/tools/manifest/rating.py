"""PairRun: every pair of a manifest rated once, in batches, and how far the ratings agree with given ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from innervoice.api.judge import Evaluation
from innervoice.tools.manifest.pairs import PairItem
from innervoice.tools.manifest.results import Result, ResultLines
from innervoice.tools.manifest.run import FAILURES, FailedItem

Rate = Callable[[list[Any]], Iterable[Evaluation]]
"""Rates pairs of question and reply, in order."""


class PairRun:
    """Rates pairs and keeps their results. Where a batch fails its pairs are rated one by one, so that a failure is
    that of its item.
    """

    def __init__(self, rate: Rate, lines: ResultLines) -> None:
        self._rate = rate
        self._lines = lines

    def run(self, items: Sequence[PairItem], batch_size: int) -> Iterator[PairItem | FailedItem]:
        """Rate the pairs that have no result, so many at a time; each is returned when it is over.

        Raises EngineDead.
        """
        waiting = [item for item in items if item.item_id not in self._lines.done]
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            try:
                found = list(self._rate([(item.question, item.reply) for item in batch]))
            except FAILURES as error:
                if len(batch) == 1:
                    yield FailedItem(batch[0].item_id, " ".join(str(error).split()))
                    continue
                for item in batch:
                    yield from self.run([item], 1)
                continue
            for item, evaluation in zip(batch, found, strict=True):
                self._lines.add(result_of(item, evaluation))
                yield item


def result_of(item: PairItem, evaluation: Evaluation) -> Result:
    """A line of the results."""
    return {"id": item.item_id, **evaluation_values(evaluation), "fields": dict(item.fields)}


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON values."""
    usage = evaluation.usage
    counts = ("prompt_tokens", "cached_tokens", "total_new_tokens")
    return {
        "scores": dict(evaluation.scores),
        "mean": evaluation.mean,
        "method": evaluation.method,
        "description": evaluation.description,
        "usage": {name: getattr(usage, name) for name in counts},
    }


@dataclass(frozen=True)
class Agreement:
    """The agreement of ratings with given ones. lcc: the linear correlation coefficient, None for fewer than two items and
    where either side is the same for all. mse: the mean squared error.
    """

    num: int
    lcc: float | None
    mse: float


def agreements(
    given: Sequence[Mapping[str, float]], rated: Sequence[Mapping[str, float]]
) -> dict[str, Agreement]:
    """The agreement by name, over the items whose line carries a score of that name."""
    names = {name: None for scores in rated for name in scores}
    found = {}
    for name in names:
        pairs = [
            (one[name], two[name])
            for one, two in zip(given, rated, strict=True)
            if name in one and name in two
        ]
        if pairs:
            found[name] = _agreement(np.array(pairs, np.float64))
    return found


def _agreement(pairs: np.ndarray) -> Agreement:
    want, got = pairs[:, 0], pairs[:, 1]
    is_spread = len(pairs) > 1 and bool(np.ptp(want) > 0) and bool(np.ptp(got) > 0)
    lcc = float(np.corrcoef(want, got)[0, 1]) if is_spread else None
    return Agreement(len(pairs), lcc, float(np.mean((want - got) ** 2)))
