"""Log-probabilities of given continuations, and ratings made of them, against transformers' logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from chat_files import save
from family_models import make

from innervoice import Engine, Ids, Message, Sampling, Schedule, Text, ZeroShotJudge

PROMPT = [7, 45, 99, 12, 300, 8, 41] * 9
CONTINUATIONS = [[5], [9], [5, 17, 33], [5, 17], [5, 17, 40], [200, 3, 3, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "chatml")
    make(
        "llama_tied_llama3", vocab_size=512, eos_token_id=[0, 2], max_position_embeddings=1024
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu", max_model_len=1024, max_sessions=8) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def expected(theirs: Any, prompt: list[int], continuation: list[int]) -> list[float]:
    """transformers' logarithms of each id's probability behind those before it."""
    with torch.inference_mode():
        logits = theirs(torch.tensor([prompt + continuation])).logits[0]
    rows = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(row[i]) for row, i in zip(rows, continuation, strict=True)]


def test_they_equal_transformers_in_a_batch_and_alone(engine: Engine, theirs: Any) -> None:
    prompts = [PROMPT, PROMPT[:20], [*PROMPT, 77], [3]]
    found = engine.logprobs([Ids(one) for one in prompts], [Ids(one) for one in CONTINUATIONS])
    for prompt, likelihoods in zip(prompts, found, strict=True):
        assert likelihoods.prompt_tokens == len(prompt)
        for ids, got in zip(CONTINUATIONS, likelihoods.continuations, strict=True):
            assert list(got.ids) == ids
            assert got.logprobs == pytest.approx(expected(theirs, prompt, ids), abs=1e-4)
            assert got.total == pytest.approx(sum(got.logprobs))
            alone = engine.logprobs(Ids(prompt), [Ids(ids)]).continuations[0]
            assert alone.logprobs == pytest.approx(got.logprobs, abs=1e-5)


def test_a_common_prompt_is_prefilled_once(engine: Engine) -> None:
    """Ten continuations behind one new prompt: whole pages of it are fed once, its rest once for each that differs."""
    prompt = [11, 13, 17] * 40
    many = [[i, 400] for i in range(20, 30)]
    found = engine.logprobs(Ids(prompt), [Ids(one) for one in many])
    assert found.cached_tokens == 0
    pages = (len(prompt) - 1) // 16 * 16
    assert found.fed_tokens == pages + len(many) * (len(prompt) - pages + 1)
    digits = engine.logprobs(Ids(prompt), [str(k) for k in range(1, 6)])
    assert (digits.cached_tokens, digits.fed_tokens) == (pages, len(prompt) - pages)


def test_they_stay_the_same_beside_replies_and_small_pieces(folder: Path, engine: Engine) -> None:
    """Replies run meanwhile, and the cache has hardly room: the same numbers."""
    prompts = [Ids([*PROMPT, *range(n, n + 300)]) for n in (40, 60, 80)]
    calm = engine.logprobs(prompts, [Ids(one) for one in CONTINUATIONS])
    schedule, sampling = (
        Schedule(cycle=(), guided=False),
        Sampling(temperature=0, max_new_tokens=60, ignore_eos=True),
    )
    with Engine.from_pretrained(folder, device="cpu", max_model_len=512, max_sessions=1) as small:
        before = small.generate(Ids(PROMPT), schedule=schedule, sampling=sampling).ids
        with small.stream(Ids(PROMPT), schedule=schedule, sampling=sampling, realtime=False) as stream:
            busy = small.logprobs(prompts, [Ids(one) for one in CONTINUATIONS])
            assert stream.reply().ids == before
        parts = small.parts.core
        parts.pool.check_integrity()
        assert parts.pool.num_available == parts.pool.num_pages
    for one, other in zip(calm, busy, strict=True):
        for got, want in zip(one.continuations, other.continuations, strict=True):
            assert got.logprobs == pytest.approx(want.logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "continuations", "message"),
    [
        (Text("hi"), [], "continuations is empty"),
        (Text("hi"), [Ids([])], "a continuation has no ids"),
        (Text("hi"), [Ids([512])], "holds id 512, outside the vocabulary of 512"),
        (Ids([600]), ["1"], "prompt id 600 is outside the vocabulary"),
        (Ids([1] * 1020), [Ids([1] * 5)], "have 1025 tokens and the cache holds 1024"),
    ],
)
def test_refusals(engine: Engine, prompt: Any, continuations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.logprobs(prompt, continuations)


def test_the_judge_expects_a_digit(engine: Engine, theirs: Any, folder: Path) -> None:
    """Each score is the mean of 1 to 5, weighted with transformers' probabilities behind the same prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    judge = ZeroShotJudge(engine)
    pairs = [(Text("nobody hears what the speaker says"), Text(reply)) for reply in ("listen first", "hurry")]
    made = list(judge.score_many(pairs))
    assert made[1].scores == pytest.approx(judge.score(*pairs[1]).scores, abs=1e-4)
    for pair, evaluation in zip(pairs, made, strict=True):
        assert (evaluation.method, evaluation.description) == ("zero-shot", None)
        assert list(evaluation.scores) == ["need_support", "wording", "understanding", "support"]
        assert evaluation.mean == pytest.approx(sum(evaluation.scores.values()) / 4)
        for name, score in evaluation.scores.items():
            (message,) = judge.prompt(*pair, name)
            content = "\n".join(part.text for part in message.parts)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
            )
            weights = []
            for digit in "12345":
                ids = tokenizer.encode(digit, add_special_tokens=False)
                weights.append(math.exp(sum(expected(theirs, prompt, ids))))
            want = sum(k * weight for k, weight in enumerate(weights, 1)) / sum(weights)
            assert score == pytest.approx(want, abs=1e-4)
    assert made[0].usage.cached_tokens > made[0].usage.prompt_tokens / 2  # three of four prompts begin alike
    with pytest.raises(ValueError, match="the question is given as Ids"):
        judge.score(Ids([1]), Text("x"))
    assert isinstance(judge.prompt(*pairs[0], "wording")[0], Message)
