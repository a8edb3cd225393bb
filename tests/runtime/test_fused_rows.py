"""A reply of several contexts is as many rows of a step: counted by steps, rows in use, sessions and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_core import World, program

from innervoice.runtime.fusion import Fusion
from innervoice.schedule import Schedule, Segment
from innervoice.types import OutOfCapacity

SPOKEN = program(Schedule(cycle=(Segment("transcript"),)))
FREELY = {"temperature": 0.8, "ignore_eos": True}


def submit(world: World, name: str, num: int, length: int = 5, **more: Any) -> None:
    """A reply of so many contexts of so many tokens each."""
    contexts = tuple(tuple([n + 1] * length) for n in range(num))
    fused = {"fusion": Fusion.pragmatic(), "contexts": contexts[1:]} if num > 1 else {}
    options = {"most": 12, "is_live": False, "sampling": FREELY} | more
    world.submit(name, contexts[0], SPOKEN, 3, **fused, **options)


def test_a_step_counts_every_context_and_never_has_more_rows_than_there_are() -> None:
    world = World(num_pages=200, max_rows=4)
    for name, num in (("three", 3), ("one", 1), ("two", 2), ("four", 4), ("last", 1)):
        submit(world, name, num)
    seen = []
    table, columns = world.core.table, world.core.table.columns
    for _ in range(500):
        if not world.has_work:
            break
        seen.append(world.core.step_tokens(world.now).rows)
        assert world.core.num_rows == table.num_rows <= 4
        assert sorted(r.num_rows - 1 for r in table.active if r.finish is None) == sorted(
            int(columns.more_rows[r.table_index]) for r in table.active if r.finish is None
        )
        world.core.check_integrity()
        world.drain()
        world.core.step_speech(world.now)
        world.drain()
        world.now += 0.01
    assert max(seen) == 4 and set(seen) >= {2, 4}
    assert list(world.received) == ["three", "one", "two", "four", "last"]
    assert all(len(received.ids) == 12 for received in world.received.values())
    assert (table.num_rows, world.core.num_rows) == (0, 0)
    assert world.pool.num_available == world.pool.num_pages


def test_rows_of_contexts_are_not_free() -> None:
    """For a session, or for one more reply where none may wait."""
    world = World(num_pages=200, max_rows=4, max_waiting=0)
    submit(world, "fused", 3)
    for _ in range(3):
        world.step()
    world.core.sessions.open("a")
    with pytest.raises(OutOfCapacity, match="all 4 sessions are in use"):
        world.core.sessions.open("b")
    world.core.sessions.close("a")
    submit(world, "beside", 1)
    world.step()
    with pytest.raises(OutOfCapacity, match="as many as may"):
        submit(world, "refused", 1)
    world.run()
    assert len(world.received["fused"].ids) == len(world.received["beside"].ids) == 12


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("prompt_tokens", [2, 16, 1000])
def test_contexts_fill_the_cache_to_its_last_page(share: bool, prompt_tokens: int) -> None:
    """As many contexts as rows, each up to the model's length, in a cache that holds no more than that; fed in pieces
    of fewer tokens than there are contexts, of some, or whole.
    """
    most, page = 64, World().pool.page_size
    settings = {"prefill_chunk": prompt_tokens}
    world = World(4 * most // page, 4, max_model_len=most, settings=settings, share_prefixes=share)
    submit(world, "fused", 4, length=most - 10, most=100)
    submit(world, "behind", 4, length=7, most=3)
    world.run()
    assert len(world.received["fused"].ids) == 10 and len(world.received["behind"].ids) == 3
    assert world.received["fused"].done.finish_reason == "length"
    roomy = World(1000, 4, max_model_len=most)
    submit(roomy, "fused", 4, length=most - 10, most=100)
    roomy.run()
    assert roomy.received["fused"].ids == world.received["fused"].ids
