"""Replies that take ids from feeds: slow, fast, failing and silent producers, many at once, on the host and on a device."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from scripted_core import VOCABULARY, World, program
from served_core import Served

from innervoice.runtime.feed import Feed
from innervoice.schedule import Program, Schedule
from innervoice.types import FeedClosed, Ids

FED = {"kind": "fed", "as": "reflection", "feed": "user", "budget": 3}
SAID = {"kind": "fed", "as": "transcript", "feed": "user", "budget": 2}
SCHEDULES: dict[str, dict[str, Any]] = {
    "listening": {"listen": [FED, ["reflection", 4]], "cycle": [["transcript", 3], ["speech", 4]]},
    "streamed text": {"cycle": [SAID, ["speech", 4]]},
    "injected": {"cycle": [["transcript", 2], FED, ["speech", 3]]},
    "all at once": {"prologue": [FED | {"budget": None}], "cycle": [["transcript", 2], ["speech", 3]]},
}
GIVEN = [3, 1, 4, 1, 5, 9, 2, 6]


def feed(**settings: Any) -> Feed:
    made = Feed(**settings)
    made.spell_by(lambda item: item.ids if isinstance(item, Ids) else [item])  # type: ignore[return-value, list-item]
    return made


def begin(
    world: World, name: str, made: Feed, schedule: Program, prompt: list[int], seed: int = 0, **request: Any
) -> None:
    made.attach(lambda: None)
    world.submit(name, prompt, schedule, seed, feeds={"user": made}, **request)


def produce(world: World, given: dict[Feed, list[int]], slow: Random | None) -> None:
    """Put ids between steps, some at a time, and close each feed behind its last."""
    for _ in range(3000):
        for made, left in given.items():
            while left and not made.is_closed and (slow is None or slow.random() < 0.2):
                made.put(left.pop(0))
            if not left and (slow is None or slow.random() < 0.2):
                made.close()
        world.drain()
        if not world.has_work:
            return
        world.step()
    raise AssertionError(f"no end: {world.core.occupancy()}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_however_fast_the_producer_is_the_reply_is_the_same(name: str) -> None:
    """On the host and on a device: the scripted model's draws depend on all tokens before them."""
    schedule, replies = program(Schedule.from_dict(SCHEDULES[name])), []
    for stepped, slow in (
        (False, None),
        (False, Random(1)),
        (True, None),
        (True, Random(2)),
        (True, Random(3)),
    ):
        world = World(max_rows=2, stepped=stepped, steady=False)
        made, beside = feed(), feed()
        begin(world, "a", made, schedule, [1, 2, 3], is_live=False)
        begin(world, "b", beside, schedule, [1, 2, 7], seed=1, is_live=False)
        produce(world, {made: list(GIVEN), beside: [8]}, slow)
        world.core.check_integrity()
        assert world.pool.num_available == world.pool.num_pages
        replies.append([(one.ids, one.kinds, one.done) for one in world.received.values()])
        assert all(done is not None and done.error is None for _, _, done in replies[-1])
    told = [[(ids, kinds, done.finish_reason) for ids, kinds, done in reply if done] for reply in replies]
    assert all(reply == told[0] for reply in told)
    assert [i for i in GIVEN if i in told[0][0][0]] and told[0][0][2] in ("stop", "length")


@pytest.mark.parametrize("stepped", [False, True])
def test_nothing_is_drawn_before_what_it_waits_for(stepped: bool) -> None:
    world, made = World(stepped=stepped), feed()
    begin(world, "a", made, program(Schedule.from_dict(SCHEDULES["injected"])), [1, 2, 3])
    for _ in range(20):
        world.step()
    world.drain()
    received = world.received["a"]
    assert received.kinds == ["transcript"] * 2
    made.put(5)
    for _ in range(20):
        world.step()
    assert received.kinds == ["transcript"] * 2 + ["reflection"] and received.ids[2] == 5
    made.put(Ids([6, 7]))
    for _ in range(20):
        world.step()
    assert received.ids[2:5] == [5, 6, 7] and received.kinds[5:8] == ["speech"] * 3
    made.close()
    world.run()
    assert received.done is not None and received.done.finish_reason == "length"


@pytest.mark.parametrize("stepped", [False, True])
def test_silence_failure_and_cancellation_end_the_reply_with_the_reason(stepped: bool) -> None:
    schedule = program(Schedule.from_dict(SCHEDULES["listening"]))
    world = World(stepped=stepped, max_rows=8)
    feeds = {name: feed(timeout_s=2.0 if name == "silent" else None) for name in ("silent", "fails", "gone")}
    for name, made in feeds.items():
        begin(world, name, made, schedule, [1, 2, 3])
    began = world.now
    for made in feeds.values():
        made.put(4)
    for _ in range(10):
        world.step()
    feeds["fails"].fail(RuntimeError("the microphone is unplugged"))
    world.core.cancel("gone")
    world.run()
    done = {name: received.done for name, received in world.received.items()}
    assert [done[name].finish_reason for name in feeds] == ["error", "error", "cancelled"]  # type: ignore[union-attr]
    assert "waited 2 s for its feed 'user'" in done["silent"].error  # type: ignore[union-attr, operator]
    assert "'user' of this reply failed: the microphone is unplugged" in done["fails"].error  # type: ignore[union-attr, operator]
    assert 2.0 <= world.now - began < 4.0
    for made in feeds.values():
        with pytest.raises(FeedClosed, match="is over"):
            made.put(1)
    assert world.pool.num_available == world.pool.num_pages


@pytest.mark.parametrize("stepped", [False, True])
def test_the_next_piece_of_the_input_closes_what_a_listener_thinks(stepped: bool) -> None:
    """A live reply; one that is not live thinks as long as its schedule says."""
    long = {"listen": [FED, ["reflection", 30]], "cycle": [["transcript", 3], ["speech", 4]]}
    counts = {}
    for is_live in (True, False):
        world, made = World(stepped=stepped), feed()
        begin(world, "a", made, program(Schedule.from_dict(long)), [1, 2], most=90, is_live=is_live)
        made.put(Ids([1, 2, 3]))
        for _ in range(8):
            world.step()
        made.put(Ids([4, 5, 6]))
        for _ in range(60):
            world.step()
        made.close()
        world.run()
        ids = world.received["a"].ids
        assert ids[:4] == [1, 2, 3, VOCABULARY.open]
        counts[is_live] = ids.index(VOCABULARY.close) - 4
    assert 1 <= counts[True] < 10 and counts[False] == 30


def test_an_id_that_interrupts_closes_the_feed() -> None:
    schedule = SCHEDULES["listening"] | {"listen": [FED | {"stop": list(range(21))}, ["reflection", 4]]}
    world, made = World(), feed()
    begin(world, "a", made, program(Schedule.from_dict(schedule)), [1, 2, 3])
    made.put(Ids([1, 2, 3, 4, 5, 6]))
    world.run()
    received = world.received["a"]
    assert received.ids.count(VOCABULARY.open) == 1 and received.kinds[-1] in ("speech", "end")
    assert made.is_closed and made.num_unread == 0


def test_two_hundred_at_once() -> None:
    """Producers of all speeds, in more replies than rows: each is what it is alone, and nothing is left."""
    random = Random(5)
    names = list(SCHEDULES)
    programs = {name: program(Schedule.from_dict(SCHEDULES[name])) for name in names}
    world = Served(num_pages=220, max_rows=24, stepped=True, reader_timeout_s=None)
    given: dict[Feed, list[int]] = {}
    asked = {}
    for number in range(200):
        made, left = feed(timeout_s=None), [random.randrange(21) for _ in range(random.randrange(9))]
        name = names[number % len(names)]
        asked[f"r{number}"] = (name, list(left))
        given[made] = left
        world.submit(
            f"r{number}",
            [1, 2, number % 21],
            programs[name],
            seed=number,
            feeds={"user": made},
            most=24,
            is_live=False,
        )
    slow = {made: random.choice([0.02, 0.3, 1.0]) for made in given}
    for _ in range(6000):
        for made, left in given.items():
            if not made.is_closed and random.random() < slow[made]:
                made.put(left.pop(0)) if left else made.close()
        if not world.has_work:
            break
        world.step()
    world.drain()
    world.core.check_integrity()
    assert world.pool.num_available == world.pool.num_pages and world.core.table.num_active == 0
    for number in random.sample(range(200), 12):
        name, left = asked[f"r{number}"]
        received = world.received[f"r{number}"]
        alone, made = World(num_pages=64, max_rows=1), feed(timeout_s=None)
        begin(alone, "a", made, programs[name], [1, 2, number % 21], seed=number, most=24, is_live=False)
        produce(alone, {made: left}, None)
        assert alone.received["a"].ids == received.ids
    assert {r.done.finish_reason for r in world.received.values()} <= {"stop", "length"}  # type: ignore[union-attr]
