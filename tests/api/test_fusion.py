"""Replies drawn from several contexts through an engine: when they equal one context's, shared pages, logs, refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from innervoice import Engine, Fusion, Ids, RequestFailed, Sampling, TokenEvent
from innervoice.api.event_log import EventLog, write_events
from innervoice.tools.replay.recording import RecordedReply
from innervoice.tools.replay.replay import replay

SAMPLING = Sampling(temperature=0.8, top_k=0, top_p=0.9, seed=3, max_new_tokens=40)
PROMPT = [1, 2, 3, 4] * 20
OTHER = [*PROMPT[:64], *[9, 8, 7] * 6]


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=512, max_sessions=4) as made:
        yield made


def ids_of(engine: Engine, contexts: list[list[int]], fusion: Fusion | None, **more: Any) -> list[int]:
    prompt, *others = map(Ids, contexts)
    request = {"schedule": "stitch_s", "sampling": SAMPLING, "contexts": others, "fusion": fusion} | more
    return engine.generate(prompt, **request).ids


def test_what_makes_no_difference_makes_none(engine: Engine) -> None:
    """Equal contexts, guidance of 1, no contrast, a function that looks at the prompt alone: the prompt's own reply."""
    own = ids_of(engine, [PROMPT], None)
    other = ids_of(engine, [OTHER], None)
    assert own != other
    assert ids_of(engine, [PROMPT] * 3, Fusion.pragmatic()) == own
    assert ids_of(engine, [PROMPT, OTHER, OTHER], Fusion.pragmatic(alpha=0.0)) == own
    assert ids_of(engine, [PROMPT, OTHER], Fusion.guidance(1.0)) == own
    assert ids_of(engine, [PROMPT, OTHER], Fusion.guidance(0.0)) == other
    assert ids_of(engine, [PROMPT, OTHER], Fusion.contrast(beta=0.0, alpha=1e-9)) == own
    assert ids_of(engine, [PROMPT, OTHER], Fusion.of(lambda logits: logits[1])) == other
    assert ids_of(engine, [PROMPT, OTHER], Fusion.pragmatic()) not in (own, other)
    assert ids_of(engine, [PROMPT, OTHER], Fusion.guidance(3.0)) not in (own, other)
    engine.parts.core.check_integrity()


def test_beside_others_and_in_small_pieces_it_is_the_same_and_shares_pages(
    engine: Engine, tmp_path: Path
) -> None:
    """Sixteen pages of a common beginning stand in the cache once; and a log is made again."""
    alone = ids_of(engine, [PROMPT, OTHER, PROMPT[:70]], Fusion.pragmatic())
    core, held = engine.parts.core, []

    def seen(logits: torch.Tensor) -> torch.Tensor:
        (reply,) = [reply for reply in core.table.active if reply.fused is not None]
        held.append([list(sequence.table.pages) for sequence in reply.sequences])
        return logits.mean(0)

    ids_of(engine, [PROMPT, OTHER, PROMPT[:70]], Fusion.of(seen))
    size = core.pool.page_size
    first, *others = held[-1]
    assert all(pages[: 64 // size] == first[: 64 // size] for pages in others)
    assert len({page for pages in held[-1] for page in pages}) <= sum(map(len, held[-1])) - 2 * (64 // size)

    streams = [
        engine.stream(
            Ids(PROMPT),
            contexts=[Ids(OTHER), Ids(PROMPT[:70])],
            fusion=Fusion.pragmatic(),
            schedule="stitch_s",
            sampling=SAMPLING,
            realtime=False,
        ),
        engine.stream(Ids(OTHER), schedule="stitch_s", sampling=SAMPLING, realtime=False),
    ]
    record = streams[0].record
    fused, plain = (stream.reply() for stream in streams)
    assert fused.ids == alone and plain.ids == ids_of(engine, [OTHER], None)
    log = EventLog()
    lines = [line for event in fused.events for line in log.feed(event)] + log.finish()
    write_events(tmp_path / "fused.jsonl", [line for line in (record, *lines) if line])
    assert replay(engine, RecordedReply.load(tmp_path / "fused.jsonl")).mismatch is None


def test_pages_run_out_and_come_back(tiny_dir: Path) -> None:
    """Two replies of three contexts in a cache that holds little more than one of them."""
    with Engine.from_pretrained(tiny_dir, device="cpu", max_model_len=128, max_sessions=3) as small:
        one = [[1, 2, n] * 25 for n in range(3)]
        alone = ids_of(small, one, Fusion.pragmatic())
        request = {
            "fusion": Fusion.pragmatic(),
            "schedule": "stitch_s",
            "sampling": SAMPLING,
            "realtime": False,
        }
        contexts = [Ids(ids) for ids in one[1:]]
        streams = [small.stream(Ids(one[0]), contexts=contexts, **request) for _ in range(3)]
        assert [stream.reply().ids for stream in streams] == [alone] * 3
        pool = small.parts.core.pool
        small.parts.core.check_integrity()
        assert pool.num_available == pool.num_pages


def test_a_function_that_fails_ends_its_reply_alone(engine: Engine) -> None:
    def silent(logits: Any) -> Any:
        raise KeyError

    def blank(value: float) -> Any:
        return lambda logits: logits[0] * 0 + value

    numbers = (blank(float(one)) for one in ("nan", "inf", "-inf"))
    for wrong in (lambda logits: logits, lambda logits: 3, lambda logits: 1 // 0, silent, *numbers):
        beside = engine.stream(Ids(OTHER), schedule="stitch_s", sampling=SAMPLING, realtime=False)
        with pytest.raises(
            RequestFailed, match=r"must give one row|a step of this reply failed: \w|must be a finite number"
        ):
            ids_of(engine, [PROMPT, OTHER], Fusion.of(wrong))
        assert [i for e in beside.reply().events if isinstance(e, TokenEvent) for i in e.ids]
    engine.parts.core.check_integrity()


def test_refusals(engine: Engine) -> None:
    def refused(message: str, **request: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            engine.stream(Ids(PROMPT), sampling=SAMPLING, **request)
        assert "\n" not in str(error.value)

    refused("contexts are given without fusion", contexts=[Ids([1])])
    refused("fusion is given without contexts", fusion=Fusion.pragmatic())
    refused("takes 2 contexts, and there are 3", contexts=[Ids([1]), Ids([2])], fusion=Fusion.guidance(2.0))
    refused("has 2 values for 3 contexts", contexts=[Ids([1])] * 2, fusion=Fusion.pragmatic(prior=(0.5, 0.5)))
    two = Fusion.guidance(2.0)
    refused("contexts[0]: prompt id 1000000 is outside the vocabulary", contexts=[Ids([10**6])], fusion=two)
    refused("contexts[1]: the prompt has no ids", contexts=[Ids([1]), Ids([])], fusion=Fusion.pragmatic())
    refused(
        "contexts[0]: the prompt has 600 tokens and the cache holds 512",
        contexts=[Ids([1] * 600)],
        fusion=two,
    )
    many = [Ids([1])] * engine.parts.core.max_rows
    refused("takes as many rows, and there are", contexts=many, fusion=Fusion.pragmatic())
    with (
        engine.open_session() as session,
        pytest.raises(ValueError, match="a session's reply has one context"),
    ):
        session.reply(Ids(PROMPT), contexts=[Ids([1])], fusion=Fusion.guidance(2.0))
    for make in (
        lambda: Fusion.contrast(alpha=0.0),
        lambda: Fusion.pragmatic(beta=-1.0),
        lambda: Fusion("mean"),
        lambda: Fusion("function"),
        lambda: Fusion("guidance", 2.0, combine=sum),
        lambda: Fusion.of(3),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"Fusion\."):
            make()
