"""Evaluator: the empathy of replies, scored by regression heads on a model's hidden states, and described in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from innervoice.api.engine import Engine
from innervoice.api.evaluation_prompt import EvaluationPrompt, RatedContent
from innervoice.api.judge import Evaluation
from innervoice.api.options import EngineOptions
from innervoice.api.page_sums import PageSums
from innervoice.api.preparation import prepare
from innervoice.api.request_builder import RequestOptions
from innervoice.checkpoint.heads import Heads, read_heads
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.model.rows import EmbeddingRow
from innervoice.model.sequence import TokenColumns
from innervoice.runtime.conversation import Message
from innervoice.runtime.probing import Probe, StatesOf
from innervoice.types import Ids, Reply, Sampling, Usage

DESCRIBING = Sampling(temperature=0, max_new_tokens=512)
_HEADS = ("lm_head.weight", "thinker.lm_head.weight")
RatedPair = tuple[RatedContent, RatedContent]


class Evaluator:
    """Scores replies with a checkpoint that was trained to rate them: its heads read the hidden states of one prefill.

    Thread-safe; a context manager. Question and reply are recordings or texts, or a list of both, such as a recording
    with its words. Replies to one question share its pages, and an equal recording is encoded once. Make one with
    `Evaluator.from_pretrained`.
    """

    def __init__(self, engine: Engine, heads: Heads, *, describes: bool = True) -> None:
        """Score with an engine that is open. describes: whether the model has an output layer to describe with."""
        self.engine = engine
        self.heads = heads
        self.describes = describes
        self._requests = engine.parts.requests
        self._prompts = EvaluationPrompt(heads.config, self._requests)
        num_layers = engine.parts.core.runner.model.config.num_layers
        layer = heads.config.layer % (num_layers + 1)
        self._prober = engine.prober(StatesOf(None if layer == num_layers else layer))
        self._sums = PageSums(engine.parts.core.runner.page_size)

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], options: EngineOptions | None = None, **changes: Any
    ) -> Evaluator:
        """Load a checkpoint with heads: heads.json with heads.safetensors, or a sequence classifier's score.weight.

        options, changes: as for `Engine.from_pretrained`. Raises its errors, FileNotFoundError for a checkpoint without
        heads, and ValueError for heads that are not the model's.
        """
        prepared = prepare(model, (options or EngineOptions()).changed(**changes))
        folder, config = prepared.paths.model, prepared.configs.model
        heads = read_heads(folder, config.hidden_size, config.num_layers, config.vocab_size)
        tensors = TensorDir(folder)
        describes = config.tied or any(name in tensors for name in _HEADS)
        if not describes:  # a classifier: the embedding stands in for the output layer, which is not used
            tied = replace(prepared.configs, model=replace(config, tied=True))
            prepared = replace(prepared, configs=tied)
        engine = Engine.load(prepared)
        try:
            return cls(engine, heads, describes=describes)
        except BaseException:
            engine.close()
            raise

    def score(
        self,
        question: RatedContent,
        reply: RatedContent,
        describe: bool = True,
        *,
        sampling: Sampling = DESCRIBING,
    ) -> Evaluation:
        """Rate one reply to a question: one prefill, and, to describe it, a reply of the model from the same pages.

        sampling: of the description. Raises ValueError for bad input, such as a recording that is too short, and the
        errors of `Engine.generate`.
        """
        return next(self.score_many([(question, reply)], describe, sampling=sampling))

    def score_many(
        self, pairs: Iterable[RatedPair], describe: bool = False, *, sampling: Sampling = DESCRIBING
    ) -> Iterator[Evaluation]:
        """Rate pairs of question and reply, in batches; a question that comes again is encoded and prefilled once.

        Raises the errors of `score`.
        """
        if describe and not self.describes:
            raise ValueError("this checkpoint has no output layer to describe with: give describe=False")
        return self._scored(pairs, describe, sampling)

    def prompt(self, question: RatedContent, reply: RatedContent) -> list[Message] | Ids:
        """The prompt whose hidden states are read. Raises ValueError for Ids, and for content that is none."""
        return self._prompts.of(question, reply)

    def describe_prompt(self, question: RatedContent, reply: RatedContent) -> list[Message] | Ids:
        """The prompt that is answered with a description. Raises ValueError as `prompt`."""
        return self._prompts.of(question, reply, describes=True)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scored(self, pairs: Iterable[RatedPair], describe: bool, sampling: Sampling) -> Iterator[Evaluation]:
        left, most = iter(pairs), max(1, self.engine.parts.core.max_rows)
        while batch := list(islice(left, most)):
            found = self._rate(batch)
            replies: Sequence[Reply | None] = [None] * len(batch)
            if describe:
                prompts: list[Any] = [self.describe_prompt(*pair) for pair in batch]
                replies = self.engine.generate(prompts, sampling=sampling)
            for evaluation, said in zip(found, replies, strict=True):
                yield evaluation if said is None else _described(evaluation, said)

    def _rate(self, pairs: Sequence[RatedPair]) -> list[Evaluation]:
        options = RequestOptions()
        prompts = [self._requests.request(self.prompt(*pair), options, 0.0).prompt_ids for pair in pairs]
        pooled, cached = self._pooled(prompts)
        scores = self.heads.scores(pooled).tolist()
        names = self.heads.config.names
        return [
            Evaluation.of(
                dict(zip(names, row, strict=True)),
                "heads",
                Usage(prompt_tokens=len(ids), cached_tokens=num_cached),
            )
            for row, ids, num_cached in zip(scores, prompts, cached, strict=True)
        ]

    def _pooled(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[int]]:
        """The pooled states [B, D] of prompts, and how many of each prompt's tokens lay in shared pages."""
        pool = self.heads.config.pool
        if pool == "mean_audio":
            return self._means(prompts)
        places = [len(ids) - 1 if pool == "last" else _last_of(ids, pool) for ids in prompts]
        answers = self._prober.run(
            [_probe(ids[: at + 1], [at]) for ids, at in zip(prompts, places, strict=True)]
        )
        states = [answer.states[at] for answer, at in zip(answers, places, strict=True)]
        return torch.stack(states), [answer.num_cached for answer in answers]

    def _means(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[int]]:
        """Means over rows of recordings. Prompts that begin alike are fed one after another, so that the sums of the
        pages of the first are known for the others.
        """
        places = [_heard(ids, self._requests.vocabulary.speech) for ids in prompts]
        means: dict[int, Tensor] = {}
        cached: dict[int, int] = {}
        waiting = list(range(len(prompts)))
        while waiting:
            coming: set[bytes] = set()
            now: dict[int, Probe] = {}
            for number in waiting:
                asked, first = self._sums.unknown(prompts[number], places[number])
                if first not in coming:
                    coming |= {first} - {b""}
                    end = max(places[number]) + 1
                    now[number] = _probe(prompts[number][:end], asked)
            answers = self._prober.run(list(now.values()))
            for number, answer in zip(now, answers, strict=True):
                total = self._sums.total(prompts[number], places[number], answer.states)
                means[number] = total / len(places[number])
                cached[number] = answer.num_cached
            waiting = [number for number in waiting if number not in means]
        numbers = range(len(prompts))
        return torch.stack([means[number] for number in numbers]), [cached[number] for number in numbers]


def _probe(ids: Sequence[int], asked: Sequence[int]) -> Probe:
    return Probe(TokenColumns.neutral(ids), dict.fromkeys(asked, ()))


def _described(evaluation: Evaluation, reply: Reply) -> Evaluation:
    """An evaluation with its description, whose tokens are counted too."""
    own = evaluation.usage
    usage = replace(
        reply.usage,
        prompt_tokens=own.prompt_tokens + reply.usage.prompt_tokens,
        cached_tokens=own.cached_tokens + reply.usage.cached_tokens,
    )
    return replace(evaluation, description=reply.transcript, usage=usage)


def _last_of(ids: Sequence[int], token: object) -> int:
    found = next((at for at in range(len(ids) - 1, -1, -1) if ids[at] == token), None)
    if found is None:
        raise ValueError(
            f"the prompt has no token {token}, by which the heads are pooled: change pool, or the prompt"
        )
    return found


def _heard(ids: Sequence[int], speech: tuple[int, int] | None) -> list[int]:
    """The places of recordings' rows, or of their speech codes."""
    low, high = speech or (0, 0)
    found = [at for at, i in enumerate(ids) if isinstance(i, EmbeddingRow) or low <= i < high]
    if not found:
        raise ValueError("the heads are pooled over recordings, and the pair has none: give recordings")
    return found
