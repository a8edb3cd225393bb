"""The queue of events to a client: order, room, deltas that are taken back, slow readers, and coming back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.server.realtime.writer import SlowReader, Writer, WriterLimits


def delta(reply: str, number: int) -> dict[str, Any]:
    return {
        "type": "response.output_audio.delta",
        "response_id": reply,
        "number": number,
        "delta": b"\0" * 300,
    }


class Wire:
    """Takes messages, `room` of them at once."""

    def __init__(self, room: int = 10**6) -> None:
        self.events: list[dict[str, Any]] = []
        self.room = asyncio.Semaphore(room)

    async def send(self, text: str) -> None:
        await self.room.acquire()
        self.events.append(json.loads(text))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["control", "a", "b", "take a", "take b", "send"]), max_size=30))
def test_events_go_out_in_order_less_those_taken_back(steps: list[str]) -> None:
    async def run() -> None:
        writer, wire = Writer(), Wire(0)
        task = asyncio.create_task(writer.run(wire.send))
        expected: list[tuple[str, int]] = []
        for i, step in enumerate(steps):
            if step == "send":
                wire.room.release()
                for _ in range(5):
                    await asyncio.sleep(0)
            elif step.startswith("take"):
                taken = {(step[-1], event["number"]) for event in writer.take_back(step[-1])}
                assert all((event.get("response_id"), event["number"]) not in taken for event in wire.events)
                expected = [one for one in expected if one not in taken]
            else:
                reply = None if step == "control" else step
                writer.put(delta(step, i), reply=reply, audio_s=0.1 if reply else 0.0)
                expected.append((step, i))
        writer.close()
        for _ in range(len(steps) + 1):
            wire.room.release()
        await task
        assert [(event["response_id"], event["number"]) for event in wire.events] == expected
        assert len({event["event_id"] for event in wire.events}) == len(wire.events)
        assert writer.has_delta_room and writer.num_waiting == 0

    asyncio.run(run())


def test_deltas_wait_for_room_in_bytes_and_in_seconds_while_other_events_do_not() -> None:
    async def run() -> None:
        writer, wire = Writer(limits=WriterLimits(delta_bytes=10**6, audio_s=1.0)), Wire(0)
        task = asyncio.create_task(writer.run(wire.send))
        for i in range(4):
            await asyncio.wait_for(writer.room(), 1)
            writer.put(delta("a", i), reply="a", audio_s=0.4)
            await asyncio.sleep(0)
        waiting = asyncio.create_task(writer.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        writer.put({"type": "error"})
        wire.room.release()
        await asyncio.wait_for(waiting, 1)
        task.cancel()

    asyncio.run(run())


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    async def run() -> None:
        writer, wire = Writer(limits=WriterLimits(stall_s=0.05)), Wire(1)
        writer.put({"type": "a"})
        writer.put({"type": "b"})
        with pytest.raises(SlowReader, match=r"0\.05 s"):
            await writer.run(wire.send)
        assert [event["type"] for event in wire.events] == ["a"]

    asyncio.run(run())


def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    async def run() -> None:
        writer, first, second = Writer(), Wire(), Wire()
        writer.is_numbering = True
        task = asyncio.create_task(writer.run(first.send))
        for i in range(5):
            writer.put({"type": "x", "number": i})
        await writer.drained()
        task.cancel()
        await asyncio.sleep(0)
        writer.put({"type": "x", "number": 5})
        writer.close()
        await writer.run(second.send, after=3, greeting={"type": "hello"})
        assert [event.get("number") for event in second.events] == [None, 3, 4, 5]
        assert [event.get("event_seq") for event in second.events] == [None, 4, 5, 6]
        assert writer.missed_after(3) == 0

    asyncio.run(run())


def test_history_is_bounded_and_says_how_much_is_lost() -> None:
    async def run() -> None:
        writer, wire = Writer(limits=WriterLimits(history_bytes=200)), Wire()
        writer.is_numbering = True
        for _ in range(20):
            writer.put({"type": "x"})
        writer.close()
        await writer.run(wire.send)
        kept = 200 // len(json.dumps(wire.events[-1], separators=(",", ":")))
        assert writer.missed_after(0) == 20 - kept

    asyncio.run(run())


def test_a_cancellation_in_the_midst_of_a_message_ends_the_writer() -> None:
    async def run() -> None:
        writer = Writer()

        async def send(_: str) -> None:
            task.cancel()

        task = asyncio.create_task(writer.run(send))
        writer.put({"type": "x"})
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()

    asyncio.run(run())
