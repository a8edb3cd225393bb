"""Every eos id of a checkpoint ends a reply, under a schedule as in free decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("transformers")

from chat_files import save
from family_models import make

from innervoice import Engine, Ids, Sampling, Schedule, Segment

EOS = [2, 0, 500, 501, 509]  # the last three lie behind the tokenizer, as llama 3's do
PROMPT = Ids([5, 6, 7])
FREE = Schedule(cycle=(Segment("transcript"),), guided=False)
THINK = Schedule(
    cycle=(Segment("reflection", 2), Segment("transcript", 2)),
    tokens={"open": None, "close": None, "done": None},
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("ends")
    theirs = save(folder, "chatml")
    theirs.add_tokens(["Section5A"])
    theirs.save_pretrained(folder)
    model = make("llama", vocab_size=512, eos_token_id=2)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    with Engine.from_pretrained(folder, device="cpu") as made:
        yield made


@pytest.mark.parametrize("schedule", [None, FREE, THINK], ids=["default", "free", "thinking"])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_every_eos_may_be_drawn(engine: Engine, schedule: Schedule | None, ignore_eos: bool) -> None:
    program = engine.parts.requests.compile(schedule)
    assert program.ends == tuple(EOS)
    sampling = Sampling(temperature=30.0, top_k=0, top_p=1.0, max_new_tokens=200, ignore_eos=ignore_eos)
    ends = set()
    for seed in range(2 if ignore_eos else 16):
        reply = engine.generate(
            PROMPT, schedule=schedule, sampling=Sampling(**{**vars(sampling), "seed": seed})
        )
        if ignore_eos:
            assert reply.finish_reason == "length"
            assert schedule is FREE or not set(EOS) & set(reply.ids)
            continue
        assert set(EOS) & set(reply.ids) <= {reply.ids[-1]}
        assert reply.finish_reason == ("stop" if reply.ids[-1] in EOS else "length")
        ends.add(reply.ids[-1])
    assert ignore_eos or len(ends & set(EOS)) >= 3
