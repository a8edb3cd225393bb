"""ZeroShotJudge: a reply rated by the probabilities that any instruction-tuned model gives the digits 1 to 5."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from innervoice.api.evaluation_prompt import RatedContent, contents_of
from innervoice.runtime.conversation import Message
from innervoice.types import Text, Usage

if TYPE_CHECKING:
    from innervoice.api.engine import Engine
    from innervoice.api.likelihood import Likelihoods

DIGITS = ("1", "2", "3", "4", "5")
DIMENSIONS: Mapping[str, str] = MappingProxyType(
    {
        "need_support": "need support: does the reply meet what the speaker needs in this situation",
        "wording": "wording appropriateness: are the words and the tone of the reply fitting",
        "understanding": "emotion understanding: does the reply understand what the speaker feels and why",
        "support": "emotional support: does the reply comfort and encourage the speaker",
    }
)
"""The dimensions of empathy by name, and how a rating prompt words them."""


@dataclass(frozen=True)
class Evaluation:
    """The empathy of a reply.

    scores: by dimension, on the scale from 1 to 5. mean: of the scores. method: "heads" for those of an `Evaluator`,
    "zero-shot" for ratings of a model that was not trained to rate, which is not EmpathyEval. description: in
    words, None: not asked for. usage: of the prompts, and of the description.
    """

    scores: Mapping[str, float]
    mean: float
    method: str
    description: str | None
    usage: Usage

    @classmethod
    def of(
        cls, scores: Mapping[str, float], method: str, usage: Usage, description: str | None = None
    ) -> Evaluation:
        """An evaluation whose mean is that of its scores."""
        return cls(dict(scores), sum(scores.values()) / len(scores), method, description, usage)


Pair = tuple[RatedContent, RatedContent]


class ZeroShotJudge:
    """Rates the empathy of replies with any chat model: text, or recordings where the model hears them.

    This is not EmpathyEval, which is trained: the score of a dimension is the expected value over the digits
    "1" to "5", each weighted with the probability that the model gives it as the next token, relative to the
    five together. dimensions: names, and how a prompt words them.
    """

    def __init__(self, engine: Engine, dimensions: Mapping[str, str] = DIMENSIONS) -> None:
        if not dimensions:
            raise ValueError("a judge has no dimensions: give at least one name with its wording")
        self._engine = engine
        self._dimensions = dict(dimensions)

    def score(self, question: RatedContent, reply: RatedContent) -> Evaluation:
        """Rate one reply to a question. Raises the errors of `Engine.logprobs`."""
        return next(self.score_many([(question, reply)]))

    def score_many(self, pairs: Iterable[Pair]) -> Iterator[Evaluation]:
        """Rate pairs of question and reply, in batches; what begins alike is prefilled once.

        Raises the errors of `Engine.logprobs`.
        """
        batch: list[Pair] = []
        most = max(1, self._engine.parts.core.max_rows // len(self._dimensions))
        for pair in pairs:
            batch.append(pair)
            if len(batch) == most:
                yield from self._rate(batch)
                batch = []
        if batch:
            yield from self._rate(batch)

    def prompt(self, question: RatedContent, reply: RatedContent, dimension: str) -> list[Message]:
        """The dialogue whose next token rates a dimension. Raises ValueError for pairs that are Ids."""
        asked, answered = contents_of(question, "question"), contents_of(reply, "reply")
        intro = Text("A person said this to an assistant:")
        between = Text("The assistant replied:")
        rate = Text(
            "Rate the empathy of the assistant's reply from 1 (very poor) to 5 (excellent). Answer with one digit and "
            f"nothing else. What to rate is {self._dimensions[dimension]}?"
        )
        return [Message("user", [intro, *asked, between, *answered, rate])]

    def _rate(self, pairs: Sequence[Pair]) -> Iterator[Evaluation]:
        prompts = [self.prompt(*pair, name) for pair in pairs for name in self._dimensions]
        found = self._engine.logprobs(prompts, [Text(digit) for digit in DIGITS])
        num = len(self._dimensions)
        for begin in range(0, len(found), num):
            own = found[begin : begin + num]
            scores = {name: expected(one) for name, one in zip(self._dimensions, own, strict=True)}
            usage = Usage(
                prompt_tokens=sum(one.prompt_tokens for one in own),
                cached_tokens=sum(one.cached_tokens for one in own),
            )
            yield Evaluation.of(scores, "zero-shot", usage)


def expected(found: Likelihoods) -> float:
    """The expected digit: the sum of k p(k) over that of p(k)."""
    totals = [one.total for one in found.continuations]
    most = max(totals)
    weights = [math.exp(total - most) for total in totals]
    return sum(k * weight for k, weight in enumerate(weights, 1)) / sum(weights)
