"""What a client may pile up: sound that waits for turn detection, jobs, kept copies, unheard recordings; and races of
connections for one session.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, greeted, run

from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime import job_lane, scope
from innervoice.server.realtime.conversation import Conversation
from innervoice.server.realtime.items import ConversationItem, ItemList, Part
from innervoice.server.realtime.resume import Resumable
from innervoice.server.vad import listener
from innervoice.server.vad.energy import EnergyNetwork

RATE = 24000
QUIET = np.zeros(RATE, dtype=np.int16)
LOUD = (np.sin(np.arange(RATE) * 2 * np.pi * 220 / RATE) * 12000).astype(np.int16)
VAD: dict[str, Any] = {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}


def conversation_of(context: ServerContext) -> Conversation:
    [connection] = context.live
    made: Conversation = connection._hosted.conversation  # type: ignore[attr-defined]
    return made


async def until(holds: Any) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass in time")


def test_sound_waits_in_the_socket_while_turn_detection_is_behind(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_WAITING", 40)
    may_judge = threading.Event()
    judge = EnergyNetwork.push

    def slow(self: EnergyNetwork, *args: Any) -> Any:
        may_judge.wait(30)
        return judge(self, *args)

    monkeypatch.setattr(EnergyNetwork, "push", slow)

    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **VAD)
            for _ in range(60):
                client.append(LOUD[: RATE // 2])
            await client.settle(0.3)
            lane = conversation_of(context).turns.audio._lane
            assert lane is not None
            assert 40 <= lane._num_waiting <= 40 + 16
            assert client.socket.to_server.qsize() > 40
            may_judge.set()
            await client.until("input_audio_buffer.speech_started")
            await until(client.socket.to_server.empty)

    run(work())


def test_events_wait_in_the_socket_while_jobs_pile_up(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_lane, "MAX_JOBS", 10)

    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello", id="one")
            await client.until("conversation.item.done")
            lane, gate = conversation_of(context).scope.lane, asyncio.Event()

            async def wait() -> None:
                await gate.wait()

            lane.put(wait)
            for _ in range(100):
                client.send("conversation.item.retrieve", item_id="one")
            await client.settle(0.1)
            assert len(lane._jobs) == 10
            assert client.socket.to_server.qsize() >= 85
            gate.set()
            for _ in range(100):
                await client.until("conversation.item.retrieved")

    run(work())


def test_a_twin_of_a_client_that_left_meanwhile_is_closed(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            session = conversation_of(context).scope.session
            fork, begun, gate = session.afork, asyncio.Event(), asyncio.Event()

            async def slow() -> Any:
                begun.set()
                await gate.wait()
                return await fork()

            monkeypatch.setattr(session, "afork", slow)
            close = session.aclose

            async def close_late() -> None:
                gate.set()
                await asyncio.sleep(0.2)
                await close()

            monkeypatch.setattr(session, "aclose", close_late)
            client.send("response.create", response={"conversation": "none"})
            await begun.wait()
        await until(lambda: context.engine.parts.core.num_rows == 0)
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(work())


def test_a_turn_that_does_not_fit_into_the_list_is_refused_with_its_reason(context: ServerContext) -> None:
    async def work() -> None:
        context.options = type(context.options)(max_items=2)
        async with connected(context) as client:
            await greeted(client, **VAD)
            client.say("one")
            client.say("two")
            client.append(np.concatenate([QUIET, LOUD, QUIET]))
            await client.until("input_audio_buffer.speech_stopped")
            assert "2 items" in (await client.until("error"))["error"]["message"]
            assert client.of_type("input_audio_buffer.committed") == []
            assert [item.is_pending for item in await conversation_of(context).scope.session.aitems()] == [
                True
            ] * 2

    run(work())


def test_a_client_may_take_the_name_of_a_turn(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **VAD)
            client.append(np.concatenate([QUIET, LOUD]))
            taken = (await client.until("input_audio_buffer.speech_started"))["item_id"]
            client.say("hello", id=taken)
            await client.until("conversation.item.done")
            client.append(QUIET)
            assert (await client.until("input_audio_buffer.committed"))["item_id"] != taken
            await client.until("response.done")
            assert client.of_type("error") == []

    run(work())


def sound_item(id: str, seconds: float) -> dict[str, Any]:
    audio = base64.b64encode(np.resize(LOUD, int(seconds * RATE)).tobytes()).decode()
    return {"id": id, "type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}]}


async def audio_of(client: RealtimeClient, id: str) -> int:
    client.send("conversation.item.retrieve", item_id=id)
    [part] = (await client.until("conversation.item.retrieved", id=id))["item"]["content"]
    return len(part.get("audio", ""))


def test_sound_is_forgotten_only_once_a_reply_has_read_it(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "MAX_SOUND_BYTES", 3 * 2 * RATE)
    monkeypatch.setattr(scope, "MAX_UNHEARD_BYTES", 5 * 2 * RATE)

    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            for name in ("a", "b"):
                client.send("conversation.item.create", item=sound_item(name, 2.0))
            client.send("conversation.item.create", item=sound_item("c", 2.0), event_id="third")
            refused = (await client.until("error"))["error"]
            assert (refused["event_id"], refused["code"]) == ("third", "invalid_value")
            assert await audio_of(client, "a") > 0
            usage = (await client.answer(max_output_tokens=5))["usage"]
            assert usage["input_tokens"] > 2 * 25
            client.send("conversation.item.create", item=sound_item("d", 1.0))
            assert await audio_of(client, "a") == 0 < await audio_of(client, "b")
            client.send("conversation.item.delete", item_id="b")
            client.send("conversation.item.create", item=sound_item("e", 1.0))
            assert await audio_of(client, "d") > 0 < await audio_of(client, "e")

    run(work())


def test_exports_are_refused_when_they_take_too_much_room(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innervoice.server.realtime.resume.MAX_BYTES", 2 * 2 * RATE)

    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            await greeted(client)
            client.send("conversation.item.create", item=sound_item("a", 1.0))
            client.send("innervoice.session.export")
            await client.until("innervoice.session.exported")
            client.send("innervoice.session.export", event_id="too much")
            refused = (await client.until("error"))["error"]
            assert (refused["event_id"], refused["code"]) == ("too much", "rate_limit_exceeded")
        await context.resumable.close()

    run(work())


def test_room_comes_back_with_what_is_forgotten() -> None:
    async def work() -> None:
        kept = Resumable()

        async def drop() -> None:
            pass

        tokens = [kept.add(None, drop, 60, num_bytes=2**28) for _ in range(2)]
        with pytest.raises(ApiError):
            kept.add(None, drop, 60, num_bytes=1)
        kept.forget(tokens[0])
        kept.add(None, drop, 60, num_bytes=2**28)
        await kept.close()
        assert (len(kept), kept._num_bytes) == (0, 0)

    run(work())


def test_a_copied_list_shares_no_item() -> None:
    items = ItemList()
    items.insert(ConversationItem("a", role="user", content=[Part("input_audio", audio=b"12")]))
    twin = items.copy()
    items.delete("a")
    [item] = list(twin)
    assert item.content[0].audio == b"12"
    assert twin.last_id == "a"


def test_of_several_connections_that_take_a_session_over_the_last_has_it(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            token = (await client.until("session.created"))["session"]["innervoice"]["resume_token"]
            async with (
                connected(context, innervoice="1", resume=token) as second,
                connected(context, innervoice="1", resume=token) as third,
            ):
                assert (await client.until("closed"))["code"] == 4001
                await until(lambda: 4001 in [one.socket.close_code for one in (second, third)])
                codes = [one.socket.close_code for one in (second, third)]
                [rest] = [one for one, code in zip((second, third), codes, strict=True) if code is None]
                await rest.until("session.created")
                rest.say("hello")
                assert (await rest.answer(max_output_tokens=5))["output"]
                assert len(context.live) == 1

    run(work())


def test_a_session_that_ended_by_itself_is_not_taken_over(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with connected(context, innervoice="1") as client:
            token = (await client.until("session.created"))["session"]["innervoice"]["resume_token"]
            [connection] = context.live
            end = connection.end

            async def ended_first(code: int, error: ApiError) -> None:
                client.drop(1000)
                await asyncio.sleep(0.05)
                await end(code, error)

            monkeypatch.setattr(connection, "end", ended_first)
            async with connected(context, innervoice="1", resume=token) as second:
                assert (await second.until("error"))["error"]["code"] == "invalid_resume_token"
                assert (await second.until("closed"))["code"] == 1008

    run(work())


def test_the_text_of_a_conversation_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innervoice.server.realtime.items.MAX_CHARACTERS", 10)
    items = ItemList()
    words = [
        ConversationItem(name, role="user", content=[Part("input_text", text="12345")]) for name in "abc"
    ]
    for item in words[:2]:
        items.insert(item)
    with pytest.raises(ApiError, match="10 characters: delete some"):
        items.insert(words[2])
    with pytest.raises(ApiError):
        items.copy().insert(words[2])
    words[0].content[0].text = ""
    items.delete("a")
    items.insert(words[2])
    assert [item.id for item in items] == ["b", "c"]


def test_an_export_is_a_session_more_and_needs_a_place(context: ServerContext) -> None:
    async def work() -> None:
        admission = context.admission
        async with connected(context, innervoice="1") as client:
            await greeted(client)
            client.send("innervoice.session.export")
            token = (await client.until("innervoice.session.exported"))["resume_token"]
            held = [admission.hold() for _ in range(admission.max_sessions - admission.num_held)]
            async with connected(context, innervoice="1", resume=token, is_beyond=True) as second:
                assert (await second.until("error"))["error"]["code"] == "session_limit_reached"
                assert (await second.until("closed"))["code"] == 1013
            held.pop().release()
            extra = admission.num_held
            async with connected(context, innervoice="1", resume=token, is_beyond=True) as second:
                second.say("hello")
                assert (await second.answer(max_output_tokens=5))["output"]
                assert admission.num_held == extra + 1
            assert admission.num_held == extra
            for slot in held:
                slot.release()
        await context.resumable.close()

    run(work())
