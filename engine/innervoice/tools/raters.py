"""Raters: a checkpoint's own heads, or the zero-shot judge, by one interface for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from innervoice.api.engine import Engine
from innervoice.api.evaluator import Evaluator
from innervoice.api.judge import DIMENSIONS, Evaluation, ZeroShotJudge
from innervoice.api.options import EngineOptions

ZERO_SHOT_LABEL = "zero-shot ratings of a model that was not trained to rate: this is not EmpathyEval"


class Rater:
    """Rates pairs with an `Evaluator`, or with a `ZeroShotJudge` over an engine. A context manager.

    describes: whether descriptions are made, which a judge does not. Make one with `Rater.load` or `Rater.over`.
    """

    def __init__(self, by: Evaluator | ZeroShotJudge, engine: Engine, *, describes: bool = False) -> None:
        self._by = by
        self._describes = describes
        self.engine = engine

    @classmethod
    def load(cls, load: dict[str, Any], *, zero_shot: bool, describes: bool = False) -> Rater:
        """Load a checkpoint that rates; zero_shot: any model, as a judge. load: model and options of the engine.

        Raises the errors of `Evaluator.from_pretrained`.
        """
        options = EngineOptions().changed(**{name: value for name, value in load.items() if name != "model"})
        if not zero_shot:
            evaluator = Evaluator.from_pretrained(load["model"], options)
            if describes and not evaluator.describes:
                evaluator.close()
                raise ValueError(f"{load['model']} has no output layer to describe with: give --no-describe")
            return cls(evaluator, evaluator.engine, describes=describes)
        return cls.over(Engine.from_pretrained(load["model"], options))

    @classmethod
    def over(cls, engine: Engine) -> Rater:
        """The zero-shot judge over an open engine."""
        return cls(ZeroShotJudge(engine), engine)

    @property
    def is_trained(self) -> bool:
        """Whether the ratings are those of heads."""
        return isinstance(self._by, Evaluator)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scores."""
        return self._by.heads.config.names if isinstance(self._by, Evaluator) else tuple(DIMENSIONS)

    @property
    def hears(self) -> bool:
        """Whether recordings are rated."""
        return self.engine.parts.requests.speech_tokenizer is not None

    def rate(self, pairs: Iterable[Any]) -> Iterator[Evaluation]:
        """Rate pairs of question and reply, in order."""
        if isinstance(self._by, Evaluator):
            return self._by.score_many(pairs, self._describes)
        return self._by.score_many(pairs)

    def __enter__(self) -> Rater:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
