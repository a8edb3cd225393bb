"""A reply's events between the engine's thread and its readers: order, bounds, wake-ups, readers that go
away, a loop's lag.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import math
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.runtime.event_queue import Bounds, EventQueue, deliver, fail_all
from innervoice.runtime.stream import Stream
from innervoice.types import (
    AudioChunk,
    Done,
    EngineDead,
    Event,
    FinishReason,
    Reflection,
    RequestFailed,
    Transcript,
    Usage,
)

RATE = 1000


def text(index: int, word: str = "a") -> Event:
    return Transcript(reply_id="r", index=index, t=0.0, segment=0, ids=[index], text=word)


def sound(index: int, samples: int) -> Event:
    return AudioChunk(reply_id="r", index=index, t=0.0, pcm=np.zeros(samples, np.float32), rate=RATE, start=0)


def done(index: int, reason: FinishReason = "stop", error: str | None = None) -> Event:
    return Done(reply_id="r", index=index, t=0.0, finish_reason=reason, usage=Usage(), error=error)


def stream(on_room: Callable[[], None] | None = None) -> Stream:
    return Stream("r", RATE, lambda: None, on_room)


def in_thread(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_thread_reads_what_another_delivers() -> None:
    made = stream()
    thread = in_thread(
        lambda: (
            [deliver([(made.queue, [text(i)])]) for i in range(100)] + [deliver([(made.queue, [done(100)])])]
        )
    )
    assert [event.index for event in made] == list(range(101))
    thread.join(10)
    assert list(made) == []
    reply = made.reply()
    assert reply.transcript == "a" * 100 and len(reply.events) == 101


def test_a_reply_has_its_parts_and_an_error_is_raised() -> None:
    made = stream()
    hidden = Reflection(reply_id="r", index=0, t=0.0, segment=0, ids=[1], text="hm")
    deliver([(made.queue, [hidden, text(1), sound(2, 5), sound(3, 7), done(4)])])
    reply = asyncio.run(made.areply())
    assert (reply.transcript, reply.reflections, len(reply.audio.samples), reply.audio.rate) == (
        "a",
        ["hm"],
        12,
        RATE,
    )
    failed = stream()
    deliver([(failed.queue, [done(0, "error", "no memory")])])
    with pytest.raises(RequestFailed, match="no memory"):
        failed.reply()


def test_two_threads_share_the_events_of_one_stream() -> None:
    made, seen = stream(), [[], []]
    threads = [in_thread(lambda n=n: seen[n].extend(event.index for event in made)) for n in range(2)]
    for i in range(500):
        deliver([(made.queue, [text(i)])])
    deliver([(made.queue, [done(500)])])
    for thread in threads:
        thread.join(10)
    assert sorted(seen[0] + seen[1]) == list(range(501))
    assert seen[0] == sorted(seen[0]) and seen[1] == sorted(seen[1])
    assert [event.index for event in made.reply().events] == list(range(501))


def test_a_failure_comes_after_what_was_delivered() -> None:
    made, waiting = stream(), stream()
    deliver([(made.queue, [text(0)])])
    errors: list[BaseException] = []

    def read() -> None:
        try:
            next(waiting)
        except EngineDead as error:
            errors.append(error)

    thread = in_thread(read)
    fail_all([made.queue, waiting.queue], EngineDead("the engine stopped"))
    thread.join(10)
    assert len(errors) == 1 and next(made).index == 0
    with pytest.raises(EngineDead):
        next(made)
    over = stream()
    deliver([(over.queue, [done(0)])])
    assert len(over.reply().events) == 1
    fail_all([over.queue], EngineDead("later"))
    assert list(over) == []


def test_a_slow_reader_fills_its_own_stream_alone() -> None:
    calls: list[int] = []
    slow, quick = stream(lambda: calls.append(1)).bounded(events=4), stream().bounded(events=4)
    for i in range(4):
        deliver([(slow.queue, [text(i)]), (quick.queue, [text(i)])])
        next(quick)
    assert slow.is_full and not quick.is_full and calls == []
    next(slow)
    assert slow.is_full and calls == []  # it stays so until half is read
    next(slow)
    assert not slow.is_full and calls == [1]


def test_sound_fills_a_stream_too() -> None:
    made = stream().bounded(audio_s=1.0)
    deliver([(made.queue, [sound(0, 600)])])
    assert not made.is_full and made.queue.unread_s == pytest.approx(0.6)
    deliver([(made.queue, [sound(1, 400), text(2)])])
    assert made.is_full
    next(made)
    assert not made.is_full and made.queue.unread_s == pytest.approx(0.4)


def test_who_wants_the_whole_is_never_full() -> None:
    calls: list[int] = []
    made = stream(lambda: calls.append(1)).bounded(events=2)
    deliver([(made.queue, [text(0), text(1), text(2)])])
    assert made.is_full
    thread = in_thread(made.reply)
    while not calls:
        time.sleep(0.001)
    assert not made.is_full
    deliver([(made.queue, [text(3), text(4), text(5), done(6)])])
    thread.join(10)
    assert not thread.is_alive() and not made.is_full


@pytest.mark.parametrize("bounds", [{"events": 0}, {"audio_s": 0.0}, {"events": math.nan}])
def test_bounds_that_hold_nothing_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^(events|audio_s) is .*: it must be"):
        stream().bounded(**bounds)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 6), st.just(-1)), max_size=60), st.integers(1, 8))
def test_fullness_is_that_of_a_counter(steps: list[int], most: int) -> None:
    """A number delivers so many events, -1 reads one."""
    rooms: list[int] = []
    queue, unread, full, given = EventQueue(lambda: rooms.append(1), Bounds(most, math.inf)), 0, False, 0
    expected_rooms = 0
    for step in steps:
        if step > 0:
            deliver([(queue, [text(given + i) for i in range(step)])])
            given, unread = given + step, unread + step
            full |= unread >= most
        elif unread:
            assert queue.read().index == given - unread
            unread -= 1
            if full and unread <= most / 2:
                full, expected_rooms = False, expected_rooms + 1
        assert (queue.is_full, queue.num_unread, len(rooms)) == (full, unread, expected_rooms)


def test_a_reader_that_takes_nothing_is_noticed() -> None:
    queue = EventQueue(bounds=Bounds(2, math.inf))
    assert queue.neglected_s(0.0) == 0.0
    deliver([(queue, [text(i) for i in range(8)])])
    assert [queue.neglected_s(t) for t in (1.0, 2.0, 4.0)] == [0.0, 1.0, 3.0]
    queue.read()
    assert [queue.neglected_s(t) for t in (5.0, 6.5)] == [0.0, 1.5]  # slow, but alive
    for _ in range(7):
        queue.read()
    assert queue.neglected_s(100.0) == 0.0


def test_a_stream_that_nobody_holds_is_abandoned() -> None:
    made = stream()
    queue = made.queue
    deliver([(queue, [text(0)])])
    for _ in made:
        break
    assert not queue.is_abandoned
    del made
    gc.collect()
    assert queue.is_abandoned


def test_a_task_that_was_cancelled_lets_go() -> None:
    async def main() -> EventQueue:
        made = stream()
        queue = made.queue

        async def read(own: Stream) -> None:
            async for _ in own:
                pass

        task = asyncio.create_task(read(made))
        del made
        await asyncio.sleep(0)
        assert len(queue._waiters) == 1 and not queue.is_abandoned
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert queue._waiters == []
        del task
        return queue

    queue = asyncio.run(main())
    gc.collect()
    assert queue.is_abandoned


def test_a_loop_that_was_closed_lets_go_at_the_next_event() -> None:
    """Without the garbage collector, which may not come by for as long as the reply is paused and holds its
    pages.
    """

    async def read_one(own: Stream) -> None:
        await anext(own)

    def wait_and_close() -> EventQueue:
        made, loop = stream(), asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it says that a task was left waiting
        loop.create_task(read_one(made))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return made.queue

    gc.disable()
    try:
        queue = wait_and_close()
        assert len(queue._waiters) == 1 and not queue.is_abandoned
        deliver([(queue, [text(0)])])
        assert queue.is_abandoned
    finally:
        gc.enable()


def test_waiting_with_a_timeout_loses_nothing() -> None:
    async def main() -> list[int]:
        made, seen = stream(), []
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(made), 0.001)
        assert made.queue._waiters == []
        thread = in_thread(lambda: deliver([(made.queue, [text(0), done(1)])]))
        async for event in made:
            seen.append(event.index)
        thread.join(10)
        return seen

    assert asyncio.run(main()) == [0, 1]


def test_a_closed_loop_does_not_hurt_the_others() -> None:
    gone, made = stream(), stream()
    loop = asyncio.new_event_loop()
    task = loop.create_task(gone.__anext__())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    deliver([(gone.queue, [text(0)]), (made.queue, [text(0)])])
    assert next(made).index == 0
    task.cancel  # noqa: B018 - the task is held until here
    del task


def test_a_step_is_one_call_into_each_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loops of 32 readers and two readers in threads: a step of all 66 streams wakes each loop once."""
    calls: list[int] = []
    streams = [stream() for _ in range(66)]
    ready, over = threading.Barrier(3), []

    def loop_of(some: list[Stream]) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            wake = loop.call_soon_threadsafe
            tasks = [asyncio.create_task(read(one)) for one in some]
            await asyncio.sleep(0)
            monkeypatch.setattr(
                loop, "call_soon_threadsafe", lambda *a: (calls.append(id(loop)), wake(*a))[1]
            )
            threading.Thread(target=ready.wait, daemon=True).start()
            await asyncio.gather(*tasks)

        async def read(one: Stream) -> None:
            over.append([event.index async for event in one])

        asyncio.run(main())

    threads = [in_thread(lambda: loop_of(streams[:32])), in_thread(lambda: loop_of(streams[32:64]))]
    threads += [
        in_thread(lambda one=one: over.append([event.index for event in one])) for one in streams[64:]
    ]
    ready.wait(10)
    deliver([(one.queue, [text(0), text(1), done(2)]) for one in streams])
    for thread in threads:
        thread.join(10)
    assert over == [[0, 1, 2]] * 66
    assert len(calls) == 2 and len(set(calls)) == 2


def test_64_streams_hold_a_loop_up_for_less_than_5_ms() -> None:
    """A beat waits for what the loop does in between, and for the interpreter while the engine's thread holds
    it.

    Both are taken as processor time of their threads, which other processes do not stretch.
    """
    held_s, beats_s = asyncio.run(_beside_an_engine(num_streams=64, num_steps=60))
    assert len(beats_s) > 50 and len(held_s) == 60
    assert float(np.percentile(beats_s, 99) + np.percentile(held_s, 99)) < 0.005


async def _beside_an_engine(num_streams: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds of the engine's thread with the interpreter held, a step; seconds of the loop's thread between
    two beats.
    """
    streams = [stream() for _ in range(num_streams)]
    held_s: list[float] = []
    beats_s: list[float] = []
    weights = bytes(1 << 21)

    def engine() -> None:
        """Steps like the engine's: native calls, which let the interpreter go, then a token each, and sound
        every ninth step.
        """
        for step in range(num_steps):
            for _ in range(4):
                hashlib.sha256(weights)
            begin = time.thread_time()
            new = [text(step)] if step % 9 else [text(step), sound(step, 1764)]
            deliver([(one.queue, new) for one in streams])
            held_s.append(time.thread_time() - begin)
        deliver([(one.queue, [done(num_steps)]) for one in streams])

    async def read(one: Stream) -> int:
        return len([event async for event in one])

    async def heartbeat() -> None:
        while True:
            begin = time.thread_time()
            await asyncio.sleep(0.001)
            beats_s.append(time.thread_time() - begin)

    heart = asyncio.create_task(heartbeat())
    thread = in_thread(engine)
    counts = await asyncio.gather(*(read(one) for one in streams))
    heart.cancel()
    thread.join(10)
    assert counts == [num_steps + 1 + math.ceil(num_steps / 9)] * num_streams
    return held_s, beats_s
