"""A failure on the host that belongs to one reply, wherever it comes from, ends that reply and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted_core import World, program

from innervoice.runtime.scheduler_view import SchedulerView
from innervoice.schedule import Schedule
from innervoice.types import OutOfCapacity

SPOKEN = program(Schedule.from_dict({"cycle": [["reflection", 2], ["transcript", 3], ["speech", 4]]}))


def failing(call: Callable[..., Any], error: BaseException, after: int = 0) -> Callable[..., Any]:
    """A method that raises for the reply `bad`, from its call number `after` on."""
    calls = [0]

    def method(key: Any, *args: Any) -> Any:
        if key == "bad":
            calls[0] += 1
            if calls[0] > after:
                raise error
        return call(key, *args)

    return method


def good_ids(stepped: bool) -> list[int]:
    world = World(stepped=stepped)
    world.submit("good", [1, 2, 3], SPOKEN, is_live=False)
    world.run()
    return world.received["good"].ids


@pytest.mark.parametrize("stepped", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("error", [RuntimeError("this codec broke"), SystemExit(3)], ids=["error", "exit"])
@pytest.mark.parametrize(
    ("method", "after"),
    [("open", 0), ("push", 0), ("push", 3), ("tick", 0), ("tick", 2), ("finish", 0), ("close", 0)],
)
def test_a_codec_that_raises_ends_its_reply_alone(
    method: str, after: int, error: BaseException, stepped: bool
) -> None:
    world = World(stepped=stepped)
    world.core.sessions.open("talk")
    setattr(world.voice, method, failing(getattr(world.voice, method), error, after))
    world.submit("good", [1, 2, 3], SPOKEN, is_live=False)
    world.submit("bad", [4, 5], SPOKEN, is_live=False, session_id="talk")
    world.run()
    good, bad = world.received["good"].done, world.received["bad"].done
    assert good is not None and good.finish_reason == "length"
    assert world.received["good"].ids == good_ids(stepped)
    assert bad is not None
    if method != "close":
        assert (bad.finish_reason == "error" and "this codec broke" in str(bad.error)) or "3" in str(
            bad.error
        )

    # Nothing is left of it, and its session answers again.
    world.voice.__dict__.pop(method)
    if method == "close":
        world.voice.close("bad")
    world.core.check_integrity()
    world.submit("again", [6], SPOKEN, session_id="talk", most=8)
    world.run()
    again = world.received["again"].done
    assert again is not None and again.finish_reason == "length"
    world.core.sessions.close("talk")
    world.core.check_integrity()


def test_a_codec_step_that_raises_ends_the_replies_of_that_step() -> None:
    world = World()
    world.voice.step = failing_step = lambda keys: (_ for _ in ()).throw(RuntimeError("no sound today"))  # type: ignore[method-assign, assignment]
    world.submit("one", [1, 2, 3], SPOKEN)
    world.run()
    done = world.received["one"].done
    assert done is not None and done.finish_reason == "error" and "no sound today" in str(done.error)
    assert world.voice.step is failing_step
    del world.voice.step  # type: ignore[misc]
    world.core.check_integrity()
    world.submit("two", [1, 2, 3], SPOKEN, is_live=False)
    world.run()
    assert world.received["two"].ids == good_ids(False)


def test_a_turn_that_cannot_enter_leaves_its_session_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.core.sessions.open("talk")

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OverflowError("too wide for a column")

    with monkeypatch.context() as patch:
        patch.setattr(SchedulerView, "_look_ahead", fails)
        for _ in range(3):
            with pytest.raises(OverflowError):
                world.core.submit(world.request("bad", [1], SPOKEN, session_id="talk"), world.now)
    with pytest.raises(OverflowError):
        world.core.submit(world.request("wide", [1], SPOKEN, session_id="talk", priority=2**70), world.now)
    assert len(world.core.table.columns) == 0
    world.core.check_integrity()
    world.submit("good", [1, 2, 3], SPOKEN, is_live=False, session_id="talk")
    world.run()
    assert world.received["good"].ids == good_ids(False)


@pytest.mark.parametrize("session", [None, "talk"])
def test_a_reply_that_cannot_begin_is_taken_back(
    session: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.core.sessions.open("talk")
    factory = world.core.admission._factory
    make = factory.make

    def fails(request: Any, table_index: int, *args: Any) -> Any:
        if request.reply_id == "bad" and table_index >= 0:
            raise OutOfCapacity("no room for its resampler")
        return make(request, table_index, *args)

    monkeypatch.setattr(factory, "make", fails)
    world.submit("bad", [1, 2, 3, 4, 5, 6], SPOKEN, session_id=session)
    world.submit("good", [1, 2, 3], SPOKEN, is_live=False)
    world.run()
    done = world.received["bad"].done
    assert (
        done is not None and done.finish_reason == "error" and "no room for its resampler" in str(done.error)
    )
    assert world.received["good"].ids == good_ids(False)
    history = world.core.sessions.history("talk")
    assert (history.num_tokens, history.paused) == (0, None)
    world.core.check_integrity()


def test_an_event_that_cannot_be_made_ends_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.submit("bad", [7, 8], SPOKEN)
    world.submit("good", [1, 2, 3], SPOKEN, is_live=False)
    while not world.received["bad"].ids:
        world.step()
    bad = world.core.table.get("bad")
    monkeypatch.setattr(bad.events, "token", lambda *args, **kwargs: 1 / 0)
    world.run()
    done = world.received["bad"].done
    assert done is not None and done.finish_reason == "error" and "division" in str(done.error)
    assert world.received["good"].ids == good_ids(False)
    world.core.check_integrity()


def until_finished(world: World, reply_id: str) -> None:
    """Step until the reply takes no more tokens, and before its sound is made."""
    for _ in range(500):
        reply = world.core.table.find(reply_id)
        if reply is not None and reply.finish is not None:
            return
        world.core.step_tokens(world.now)
        world.now += 0.02
        world.drain()
    raise AssertionError("it never finished")


@pytest.mark.parametrize("blocked", [False, True], ids=["read", "unread"])
def test_a_timeout_ends_a_reply_that_only_waits_for_its_sound(blocked: bool) -> None:
    world = World()
    world.submit("late", [1, 2, 3], SPOKEN, most=12, deadline_s=world.now + 60.0)
    until_finished(world, "late")
    world.core.table.set_blocked("late", blocked)
    assert world.received["late"].done is None
    world.now += 61.0
    world.run()
    done = world.received["late"].done
    assert done is not None and done.finish_reason == "timeout" and done.usage.total_new_tokens == 12
    world.core.check_integrity()


@pytest.mark.parametrize("blocked", [False, True], ids=["read", "unread"])
def test_a_reply_that_a_timeout_stops_speaks_on_unless_its_reader_is_behind(blocked: bool) -> None:
    world = World()
    world.submit("late", [1, 2, 3], SPOKEN, most=60, deadline_s=world.now + 0.4)
    until_finished(world, "late")
    world.core.table.set_blocked("late", blocked)
    world.run()
    received = world.received["late"]
    assert received.done is not None and received.done.finish_reason == "timeout"
    assert (len(received.samples) < 20 * received.done.usage.speech_tokens) == blocked
    world.core.check_integrity()
