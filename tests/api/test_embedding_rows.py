"""Prompts that hold embedding rows: the numbers of transformers' inputs_embeds, in every way that a prompt is fed."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers
from chat_files import save
from family_models import make

from innervoice import EmbeddingRows, Engine, EventLog, Ids, Sampling, Schedule
from innervoice.api.event_log import write_events
from innervoice.model.rows import EmbeddingRow
from innervoice.model.sequence import Sequence
from innervoice.runtime.snapshot import FORMAT, SessionSnapshot
from innervoice.tools.replay.recording import RecordedReply

PAD = 444
FREE = Schedule(cycle=(), guided=False)
REQUEST: dict[str, Any] = {
    "schedule": FREE,
    "sampling": Sampling(temperature=0, max_new_tokens=12, ignore_eos=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "chatml")
    model = make("qwen3", vocab_size=512, eos_token_id=[0, 2], max_position_embeddings=2048)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(folder, device="cpu", max_model_len=1500, max_sessions=8) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def recording(seed: int, num: int, width: int = 64) -> EmbeddingRows:
    values = torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) * 0.3
    return EmbeddingRows(values)


def numbers(seed: int, num: int) -> list[int]:
    return torch.randint(3, 440, (num,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt_of(seed: int, num_rows: int, num_before: int = 5) -> list[int]:
    """Ids, rows, and ids again."""
    return [*numbers(1, num_before), *recording(seed, num_rows).items(PAD), *numbers(2, 7)]


def expected(theirs: Any, items: list[int], num: int) -> list[int]:
    """What transformers draws greedily behind the embeddings of ids and the rows among them."""
    table = theirs.get_input_embeddings().weight
    rows = [
        torch.from_numpy(one.values) if isinstance(one, EmbeddingRow) else table[one].detach()
        for one in items
    ]
    with torch.inference_mode():
        made = theirs.generate(
            inputs_embeds=torch.stack(rows)[None], max_new_tokens=num, min_new_tokens=num, do_sample=False
        )
    return made[0].tolist()


def test_rows_that_equal_embeddings_give_what_the_ids_give(engine: Engine, theirs: Any) -> None:
    ids = numbers(3, 90)
    table = theirs.get_input_embeddings().weight.detach()
    items = [*ids[:20], *EmbeddingRows(table[ids[20:70]]).items(PAD), *ids[70:]]
    assert engine.generate(Ids(items), **REQUEST).ids == engine.generate(Ids(ids), **REQUEST).ids
    of_rows, of_ids = (engine.logprobs(Ids(one), [Ids([n]) for n in range(500)]) for one in (items, ids))
    got, want = ([one.total for one in found.continuations] for found in (of_rows, of_ids))
    assert got == pytest.approx(want, abs=1e-4)


def test_other_rows_equal_transformers_alone_in_a_batch_cached_and_in_pieces(
    engine: Engine, theirs: Any
) -> None:
    """Short and long prompts; one that begins with rows, and one that ends with them."""
    prompts = [
        prompt_of(11, 1),
        prompt_of(12, 40),
        prompt_of(13, 700),  # more than a step feeds
        [*recording(14, 33).items(PAD), 9],
        [9, *recording(15, 20).items(PAD)],
        numbers(4, 50),
    ]
    want = [expected(theirs, prompt, 12) for prompt in prompts]
    batch = engine.generate([Ids(prompt) for prompt in prompts], **REQUEST)
    assert [reply.ids for reply in batch] == want
    assert len({tuple(ids) for ids in want}) == len(want)
    again = [engine.generate(Ids(prompt), **REQUEST) for prompt in prompts]
    assert [reply.ids for reply in again] == want
    for reply, prompt in zip(again, prompts, strict=True):
        assert reply.usage.cached_tokens == (len(prompt) - 1) // 16 * 16


def test_pages_are_shared_by_content_alone(engine: Engine, theirs: Any) -> None:
    """Equal recordings share pages, others under the same ids none."""
    prompt, equal, other = ([7, 8, *recording(seed, 64).items(PAD), 3] for seed in (21, 21, 22))
    assert engine.generate(Ids(prompt), **REQUEST).usage.cached_tokens == 0
    shared = engine.generate(Ids(equal), **REQUEST)
    assert shared.usage.cached_tokens == 64
    apart = engine.generate(Ids(other), **REQUEST)
    assert apart.usage.cached_tokens == 0
    plain = engine.generate(Ids([7, 8, *[PAD] * 64, 3]), **REQUEST)
    assert plain.usage.cached_tokens == 0
    assert [one.ids for one in (shared, apart)] == [expected(theirs, one, 12) for one in (prompt, other)]


def test_sessions_forks_and_exports_hold_rows(engine: Engine, theirs: Any) -> None:
    first, second = prompt_of(31, 50), prompt_of(32, 30)
    with engine.open_session() as session:
        one = session.reply(Ids(first), **REQUEST).reply().ids
        assert one == expected(theirs, first, 12)
        with session.fork() as fork, engine.open_session(restore=session.export()) as restored:
            dialogue = [*first, *one, *second]
            want = expected(theirs, dialogue, 12)
            for each in (session, fork, restored):
                assert each.reply(Ids(second), **REQUEST).reply().ids == want
            data = restored.export()
    read = SessionSnapshot.from_bytes(data, engine.model_id)
    assert read.ids[: len(first)] == first
    assert read.to_bytes() == data


def test_a_preempted_prompt_is_computed_again_from_its_rows(folder: Path, theirs: Any) -> None:
    """Six replies in a cache for two: rows are fed anew whenever pages were taken back."""
    prompts = [prompt_of(40 + n, 60) for n in range(6)]
    request = {**REQUEST, "sampling": Sampling(temperature=0, max_new_tokens=60, ignore_eos=True)}
    with Engine.from_pretrained(folder, device="cpu", max_model_len=150, max_sessions=2) as small:
        replies = small.generate([Ids(prompt) for prompt in prompts], **request)
        assert [reply.ids for reply in replies] == [expected(theirs, prompt, 60) for prompt in prompts]
        small.parts.core.check_integrity()


def test_event_logs_hold_rows(engine: Engine, tmp_path: Path) -> None:
    prompt, log = prompt_of(51, 20), EventLog()
    with engine.stream(Ids(prompt), realtime=False, **REQUEST) as stream:
        lines = [{**(stream.record or {}), "engine": {}}]
        for event in stream:
            lines += log.feed(event)
        ids = stream.reply().ids
    write_events(tmp_path / "events.jsonl", lines)
    read = RecordedReply.load(tmp_path / "events.jsonl")
    assert list(read.prompt_ids) == prompt
    assert engine.generate(Ids(read.prompt_ids), **REQUEST).ids == ids


def test_rows_are_items_of_their_own(engine: Engine) -> None:
    """Equal by content, unlike any plain id; they survive copies; page keys never meet those of tokens."""
    one, equal, other = recording(61, 4).items(5), recording(61, 4).items(5), recording(62, 4).items(5)
    assert one == equal and hash(one[1]) == hash(equal[1])
    assert one[0] != one[1] and one[0] != other[0] and one[0] != 5 and one[0] not in (5, [5])
    assert list(Ids(one).ids) == one and int(one[2]) == 5
    assert pickle.loads(pickle.dumps(one)) == one and copy.deepcopy(one)[0] is one[0]
    keys = {row.page_key for row in (*one, *other)}
    assert len(keys) == 8 and all(-(2**63) <= key < 0 for key in keys)
    sequence = Sequence(engine.parts.core.pages.new_sequence().table)
    sequence.extend([3, *one])
    assert sequence.page_keys == [0, *(row.page_key for row in equal)]
    assert sequence.num_common(sequence.columns(5)) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), r"have the shape \(4,\): give \[N, D\]"),
        (np.zeros((0, 64)), r"have the shape \(0, 64\)"),
        (np.full((2, 64), np.nan), "no finite numbers"),
    ],
)
def test_refused_rows(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingRows(values)


def signed(values: dict[str, Any]) -> bytes:
    """An export with other values and the checksum that fits them."""
    body = json.dumps(values).encode()
    return b"\n".join((FORMAT.encode(), hashlib.sha256(body).hexdigest().encode(), body))


def test_refused_prompts_and_exports(engine: Engine) -> None:
    with pytest.raises(ValueError, match="has 32 values: this model takes 64"):
        engine.stream(Ids([1, *recording(71, 2, 32).items(PAD)]))
    with pytest.raises(ValueError, match="prompt id 600 is outside"):
        engine.stream(Ids([1, *recording(71, 2).items(600)]))
    with engine.open_session() as session:
        session.reply(Ids(prompt_of(72, 3)), **REQUEST).reply()
        body = session.export().split(b"\n", 2)[2]
    for change, message in (
        ({"data": "AAAA"}, "embedding rows cannot be read"),
        ({"shape": [1, 192]}, "row 1 is not there"),
        ({"shape": [6, 32]}, "embedding rows have 32 values: this model takes 64"),
    ):
        values = json.loads(body)
        values["rows"][0] |= change
        with pytest.raises(ValueError, match=message):
            engine.open_session(restore=signed(values))
