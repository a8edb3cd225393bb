"""Log-probabilities of given continuations behind prompts: the questions to a Prober, and its answers put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from innervoice.api.request_builder import RequestBuilder
from innervoice.model.text import ids_within
from innervoice.runtime.probe import Probe, ProbeAnswer, Prober
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


@dataclass(frozen=True)
class _Question:
    """One prompt with its continuations, as probes.

    probe_of[c]: the probe, of this question, that feeds continuation c.
    """

    num_prompt: int
    continuations: tuple[tuple[int, ...], ...]
    probes: tuple[Probe, ...]
    probe_of: tuple[int, ...]

    @classmethod
    def of(cls, prompt: tuple[int, ...], continuations: Sequence[tuple[int, ...]]) -> _Question:
        """Continuations whose fed ids begin another's are asked for in that one's probe."""
        fed = [ids[:-1] for ids in continuations]
        longest: list[tuple[int, ...]] = []
        for ids in sorted(set(fed), key=len, reverse=True):
            if not any(other[: len(ids)] == ids for other in longest):
                longest.append(ids)
        places = {
            ids: next(i for i, other in enumerate(longest) if other[: len(ids)] == ids) for ids in set(fed)
        }
        probe_of = tuple(places[ids] for ids in fed)
        asked: list[dict[int, list[int]]] = [{} for _ in longest]
        for ids, number in zip(continuations, probe_of, strict=True):
            for place, token in enumerate(ids):
                here = asked[number].setdefault(len(prompt) - 1 + place, [])
                if token not in here:
                    here.append(token)
        probes = tuple(
            Probe(prompt + ids, {at: tuple(tokens) for at, tokens in wanted.items()})
            for ids, wanted in zip(longest, asked, strict=True)
        )
        return cls(len(prompt), tuple(continuations), probes, probe_of)

    def likelihoods(self, answers: Sequence[ProbeAnswer]) -> Likelihoods:
        """The answers to this question's probes, by continuation."""
        found = []
        for ids, number in zip(self.continuations, self.probe_of, strict=True):
            probe, answer = self.probes[number], answers[number]
            places = range(self.num_prompt - 1, self.num_prompt - 1 + len(ids))
            values = (
                answer.logprobs[at][probe.asked[at].index(token)]
                for at, token in zip(places, ids, strict=True)
            )
            found.append(Likelihood(ids, tuple(values)))
        fed = sum(
            len(probe.ids) - answer.num_cached for probe, answer in zip(self.probes, answers, strict=True)
        )
        return Likelihoods(tuple(found), self.num_prompt, answers[0].num_cached, fed)


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
    questions = [_Question.of(prompt, continuations) for prompt in prompts]
    answers = prober.run([probe for question in questions for probe in question.probes])
    found, begin = [], 0
    for question in questions:
        end = begin + len(question.probes)
        found.append(question.likelihoods(answers[begin:end]))
        begin = end
    return found
