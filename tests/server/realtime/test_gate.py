"""Bounds in time: speech over a reply, the answer to a commit, sound from the engine to the socket, and clients that
are killed.

Times are medians, or those of the event loop's thread without the waits that the machine is to blame for. With
`--junit-xml FILE` they are in the file, as properties of the tests.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from loop_probe import ThreadClock
from realtime_client import MemorySocket, RealtimeClient, connected, greeted, run

from innervoice import Engine, Sampling
from innervoice.runtime.event_queue import EventQueue
from innervoice.server.context import ServerContext
from innervoice.server.realtime import reply_request
from innervoice.server.realtime.conversation import Conversation
from innervoice.server.realtime.reply_output import Delta, ReplyOutput
from innervoice.server.realtime.writer import Writer
from innervoice.types import AudioChunk, Event

Record = Callable[[str, object], None]
RATE = 24000
FRAME_LEN = RATE * 32 // 1000
LOUD = (np.sin(np.arange(FRAME_LEN) * 2 * np.pi * 250 / RATE) * 12000).astype(np.int16)
VAD: dict[str, Any] = {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
MAX_AFTER_THIRD_FRAME_S = 0.150
MAX_TO_CREATED_S = 0.020
MAX_TO_SOCKET_S = {"idle": 0.010, "busy": 0.030}


def conversation_of(context: ServerContext) -> Conversation:
    [connection] = context.live
    made: Conversation = connection._hosted.conversation  # type: ignore[attr-defined]
    return made


@pytest.fixture
def long_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies end by their number of tokens alone, so that they last until they are interrupted."""
    monkeypatch.setattr(reply_request, "Sampling", partial(Sampling, seed=5, ignore_eos=True))


async def heard_reply(client: RealtimeClient) -> None:
    """Begin a reply that lasts, of which some is sent."""
    client.say("hello")
    client.send("response.create")
    await client.until("response.output_audio.delta")


def assert_no_delta_after_speech(client: RealtimeClient) -> None:
    place = client.types().index("input_audio_buffer.speech_started")
    assert [one for one in client.types()[place:] if one.endswith(".delta")] == []


@pytest.mark.parametrize("context", [1500], indirect=True)
def test_speech_over_a_reply_is_noticed_within_150_ms_of_sound_after_its_third_frame(
    context: ServerContext, long_replies: None, record_property: Record
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **VAD)
            await heard_reply(client)
            lane = conversation_of(context).turns.audio._lane
            assert lane is not None
            num_frames = 0
            while not client.of_type("input_audio_buffer.speech_started"):
                client.append(LOUD)
                num_frames += 1
                await client.settle(0.005)
                await lane.drain()
                await client.settle(0.005)
            record_property("ms", 32 * (num_frames - 3))
            assert 0 <= (num_frames - 3) * 0.032 <= MAX_AFTER_THIRD_FRAME_S
            await client.until("response.done", status="cancelled")
            assert_no_delta_after_speech(client)

    run(work())


@pytest.mark.parametrize("context", [1500], indirect=True)
@pytest.mark.slow
def test_a_reply_falls_silent_within_150_ms_of_the_third_loud_frame(
    context: ServerContext, long_replies: None, record_property: Record
) -> None:
    late_s: list[float] = []

    async def interrupt() -> None:
        async with connected(context) as client:
            await greeted(client, **VAD)
            await heard_reply(client)
            clock = client.socket.clock = ThreadClock().now_s
            begin_s = clock()
            sound = np.resize(LOUD, RATE // 2)
            for i in range(25):  # appends of 20 ms
                await asyncio.sleep(max(0.0, begin_s + 0.02 * (i + 1) - clock()))
                client.append(sound[480 * i : 480 * (i + 1)])
            await client.until("response.done", status="cancelled")
            assert_no_delta_after_speech(client)
            place = client.types().index("input_audio_buffer.speech_started")
            late_s.append(client.socket.times_s[place] - (begin_s + 3 * 0.032))

    async def work() -> None:
        for _ in range(7):
            await interrupt()

    run(work())
    record_property("ms", [round(1e3 * one, 1) for one in sorted(late_s)])
    assert np.median(late_s) <= MAX_AFTER_THIRD_FRAME_S, late_s


def test_a_commit_is_answered_at_once(
    context: ServerContext, question: np.ndarray, record_property: Record
) -> None:
    """`response.created` does not wait for the engine, so that it is not 20 ms behind its `reply()`."""
    took_s: list[float] = []

    async def work() -> None:
        for _ in range(9):
            async with connected(context) as client:
                await greeted(client)
                client.append(question)
                await client.settle(0.05)
                client.socket.clock = ThreadClock().now_s
                begin_s = client.socket.clock()
                client.send("input_audio_buffer.commit")
                client.send("response.create", response={"max_output_tokens": 5})
                await client.until("response.created")
                place = client.types().index("response.created")
                took_s.append(client.socket.times_s[place] - begin_s)

    run(work())
    record_property("ms", [round(1e3 * one, 1) for one in sorted(took_s)])
    assert np.median(took_s) <= MAX_TO_CREATED_S, took_s


class ChunkTimes:
    """The seconds from the engine's delivery of a chunk to its last delta on the socket, by the loop's own clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        self._clock = ThreadClock()
        self._delivered_s: dict[int, float] = {}  # by chunk, then by its last delta
        self._deliver, self._turn, self._send = EventQueue._add, ReplyOutput.take, Writer._send_one
        self._receive = MemorySocket.send_text
        monkeypatch.setattr(MemorySocket, "send_text", lambda socket, text: self._received(socket, text))
        monkeypatch.setattr(EventQueue, "_add", lambda queue, events: self._added(queue, events))
        monkeypatch.setattr(ReplyOutput, "take", lambda output, event: self._turned(output, event))
        monkeypatch.setattr(
            Writer, "_send_one", lambda writer, send, queued: self._sent(writer, send, queued)
        )

    async def _received(self, socket: MemorySocket, text: str) -> None:
        if not text.startswith('{"type":"response.output_audio.delta"'):  # which the loop is not to read, too
            await self._receive(socket, text)

    def _added(self, queue: EventQueue, events: list[Event]) -> Any:
        for event in events:
            if isinstance(event, AudioChunk):
                self._delivered_s[id(event)] = self._clock.now_s()
        return self._deliver(queue, events)

    def _turned(self, output: ReplyOutput, event: Event) -> list[Delta]:
        made = self._turn(output, event)
        if isinstance(event, AudioChunk):
            self._delivered_s[id(made[-1].event)] = self._delivered_s.pop(id(event))
        return made

    async def _sent(self, writer: Writer, send: Any, queued: Any) -> None:
        await self._send(writer, send, queued)
        begin_s = self._delivered_s.pop(id(queued.event), None)
        if begin_s is not None:
            self.seconds.append(self._clock.now_s() - begin_s)


@pytest.mark.parametrize(("load", "num_clients"), [("idle", 1), ("busy", 8)])
def test_sound_is_on_the_socket_at_once(
    context: ServerContext,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    load: str,
    num_clients: int,
) -> None:
    async def listen() -> None:
        for said in ("hello", "and then?", "why is that so?")[: 3 if num_clients == 1 else 1]:
            async with connected(context) as client:
                await greeted(client)
                client.say(said)
                await client.answer(max_output_tokens=180)

    async def work() -> None:
        await asyncio.gather(*(listen() for _ in range(num_clients)))

    rounds: list[list[float]] = []
    for _ in range(
        3
    ):  # a thread that holds the interpreter may lose its processor, which is no fault of the loop
        with monkeypatch.context() as patch:
            chunks = ChunkTimes(patch)
            run(work())
        assert len(chunks.seconds) >= 3 * num_clients
        rounds.append([round(1e3 * float(np.quantile(chunks.seconds, q)), 2) for q in (0.5, 0.99, 1.0)])
        if rounds[-1][1] <= 1e3 * MAX_TO_SOCKET_S[load]:
            break
    record_property("ms", rounds)
    assert rounds[-1][1] <= 1e3 * MAX_TO_SOCKET_S[load], rounds


async def killed(context: ServerContext, chance: random.Random) -> None:
    """A client that is killed somewhere between its greeting and the end of its reply."""
    async with connected(context, innervoice=chance.choice("01")) as client:
        patience_s = chance.choice([0.0, 0.0, 0.01, 0.1, 0.5])
        client.send("session.update", session=VAD if chance.random() < 0.5 else {"turn_detection": None})
        client.say("hello")
        for _ in range(chance.randrange(12)):
            client.append(LOUD)
        if chance.random() < 0.3:
            client.send("input_audio_buffer.commit")
        client.send("response.create", response={"max_output_tokens": 1500})
        if chance.random() < 0.2:
            client.send("response.create", response={"conversation": "none"})
        if chance.random() < 0.2:
            client.send("response.cancel")
        await client.settle(patience_s)
        client.drop()


def check_kills(engine: Engine, context: ServerContext, num_kills: int) -> None:
    """Kill clients, some at a time: no session, page, slot, task or thread is left of them."""
    context.options = type(context.options)(resume_grace_s=0.2)
    context.listener.start()
    engine.start_threads()
    chance = random.Random(num_kills)

    async def kill(num: int) -> None:
        for _ in range(num):
            await killed(context, chance)

    async def work() -> None:
        await asyncio.gather(*(kill(num_kills // 4) for _ in range(4)))
        await context.resumable.close()
        for _ in range(500):
            if len(asyncio.all_tasks()) == 1 and engine.parts.core.num_rows == 0:
                break
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1
        assert len(context.resumable) == 0
        assert context.live == set()

    num_threads = threading.active_count()
    run(work())
    gc.collect()
    assert threading.active_count() <= num_threads + 1  # the listener of pushed sound
    core = engine.parts.core
    assert (core.num_rows, core.speech.num_open, core.table.num_active) == (0, 0, 0)
    assert core.pool.num_available == core.pool.num_pages


def test_nothing_is_left_of_clients_that_are_killed(engine: Engine, context: ServerContext) -> None:
    check_kills(engine, context, 40)


@pytest.mark.slow
def test_nothing_is_left_of_a_thousand_clients_that_are_killed(
    engine: Engine, context: ServerContext
) -> None:
    check_kills(engine, context, 1000)
