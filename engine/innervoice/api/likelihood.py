"""Log-probabilities of given continuations behind prompts: the questions to a Prober, and its answers put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from innervoice.api.request_builder import RequestBuilder
from innervoice.model.sequence import TokenColumns
from innervoice.model.text import ids_within
from innervoice.runtime.probe import Prober
from innervoice.runtime.probing import ProbeAnswer, ProbedPrompt
from innervoice.types import Ids, Text


@dataclass(frozen=True)
class Likelihood:
    """A continuation's ids, and of each the natural logarithm of its probability behind those before it."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The logarithm of the whole continuation's probability."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class Likelihoods:
    """The likelihoods of all continuations of one prompt, in order.

    prompt_tokens: of the prompt. cached_tokens: of those, the ones that lay in pages of an earlier prompt or
    another of the same call. fed_tokens: all that the model was fed, continuations included.
    """

    continuations: tuple[Likelihood, ...]
    prompt_tokens: int
    cached_tokens: int
    fed_tokens: int


def continuation_ids(requests: RequestBuilder, given: Sequence[Text | Ids | str]) -> list[tuple[int, ...]]:
    """The ids of continuations. Text is written as it would be within a text, and nothing in it is a special token.

    Raises ValueError for none, for one without ids, and for ids outside the vocabulary.
    """
    if not given or isinstance(given, str):
        raise ValueError("continuations is empty or no list: give texts or ids, at least one")
    return [_ids_of(requests, Text(one) if isinstance(one, str) else one) for one in given]


def _ids_of(requests: RequestBuilder, given: Text | Ids) -> tuple[int, ...]:
    ids = list(given.ids) if isinstance(given, Ids) else ids_within(requests.tokenizer, given.text)
    if not ids:
        raise ValueError("a continuation has no ids: give at least one")
    wrong = [i for i in ids if i >= requests.vocabulary.size]
    if wrong:
        raise ValueError(
            f"a continuation holds id {wrong[0]}, outside the vocabulary of {requests.vocabulary.size}"
        )
    return tuple(ids)


def _put_together(question: ProbedPrompt, answers: Sequence[ProbeAnswer]) -> Likelihoods:
    found = zip(question.continuations, question.logprobs(answers), strict=True)
    pairs = zip(question.probes, answers, strict=True)
    fed = sum(len(probe.tokens.ids) - answer.num_cached for probe, answer in pairs)
    continuations = tuple(Likelihood(ids, values) for ids, values in found)
    return Likelihoods(continuations, question.num_prompt, answers[0].num_cached, fed)


def likelihoods(
    prober: Prober,
    prompts: Sequence[tuple[int, ...]],
    continuations: Sequence[tuple[int, ...]],
    max_model_len: int,
) -> list[Likelihoods]:
    """The likelihoods of all continuations behind each of the prompts.

    Raises ValueError for what is longer than the cache holds, and the errors of `Prober.run`.
    """
    longest = max(map(len, continuations))
    for prompt in prompts:
        if len(prompt) + longest > max_model_len:
            raise ValueError(
                f"prompt and continuation have {len(prompt) + longest} tokens and the cache holds {max_model_len}: "
                "shorten them or raise max_model_len"
            )
    questions = [ProbedPrompt.of(TokenColumns.neutral(prompt), continuations) for prompt in prompts]
    answers = prober.run([probe for question in questions for probe in question.probes])
    found, begin = [], 0
    for question in questions:
        end = begin + len(question.probes)
        found.append(_put_together(question, answers[begin:end]))
        begin = end
    return found
