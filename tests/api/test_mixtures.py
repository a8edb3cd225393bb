"""A language model of experts in the engine: the ids that transformers draws, in every way that a prompt is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import chat_files
from family_models import make

from innervoice import Engine, Ids, Sampling, Schedule
from innervoice.types import Reply

REQUEST: dict[str, Any] = {
    "schedule": Schedule(cycle=(), guided=False),
    "sampling": Sampling(temperature=0, max_new_tokens=8, ignore_eos=True),
}
DRAWN = torch.randint(3, 480, (512,), generator=torch.Generator().manual_seed(4)).tolist()
PROMPTS = [DRAWN[:3], DRAWN[50:90], DRAWN[100:195], DRAWN[150:450]]


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe_shares"])
@pytest.mark.parametrize("backend", ["native", "plain"])
def test_greedy_ids_equal_transformers(tmp_path: Path, name: str, backend: Any) -> None:
    """In a batch with a prompt of several steps, alone from cached pages, forked, exported, and recomputed."""
    theirs = make(name, vocab_size=512, max_position_embeddings=1024)
    chat_files.save(tmp_path, "chatml")
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")

    def greedy(ids: list[int]) -> list[int]:
        x, counts = torch.tensor([ids]), {"max_new_tokens": 8, "min_new_tokens": 8}
        made = theirs.generate(x, attention_mask=torch.ones_like(x), do_sample=False, **counts)
        found: list[int] = made[0, len(ids) :].tolist()
        return found

    def ids_of(replies: list[Reply]) -> list[list[int]]:
        return [reply.ids for reply in replies]

    options: dict[str, Any] = {"device": "cpu", "backend": backend}
    want = [greedy(ids) for ids in PROMPTS]
    assert len({tuple(ids) for ids in want}) == len(want)
    with Engine.from_pretrained(tmp_path, max_model_len=640, max_sessions=4, **options) as engine:
        assert ids_of(engine.generate([Ids(ids) for ids in PROMPTS], **REQUEST)) == want
        for ids, expected in zip(PROMPTS, want, strict=True):
            assert engine.generate(Ids(ids), **REQUEST).ids == expected
        with engine.open_session(**REQUEST) as session:
            first = session.reply(Ids(PROMPTS[2])).reply()
            assert first.ids == want[2]
            history = [*PROMPTS[2], *first.ids, 17, 18]
            with session.fork() as fork, engine.open_session(restore=session.export(), **REQUEST) as restored:
                for one in (session, fork, restored):
                    assert one.reply(Ids([17, 18])).reply().ids == greedy(history)
    shorter = [ids[-90:] for ids in PROMPTS[2:]] * 2
    with Engine.from_pretrained(tmp_path, max_model_len=112, max_sessions=2, **options) as small:
        prompts = [Ids([n, *ids]) for n, ids in enumerate(shorter)]
        assert ids_of(small.generate(prompts, **REQUEST)) == [greedy(list(one.ids)) for one in prompts]
        small.parts.core.check_integrity()
