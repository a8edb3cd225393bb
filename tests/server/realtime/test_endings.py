"""How connections end: age, idleness, slow readers, floods of bad events, a full or dead engine, drain."""

from __future__ import annotations

import asyncio
import base64
import gc
from pathlib import Path
from typing import Any

import pytest
from realtime_client import connected, greeted, make_context, run

from innervoice import Engine, EngineDead
from innervoice.server.context import ServerContext
from innervoice.server.errors import ApiError
from innervoice.server.realtime.writer import WriterLimits


@pytest.mark.parametrize(
    ("options", "code", "close"),
    [
        ({"max_session_s": 0.3}, "session_expired", 1001),
        ({"idle_s": 0.3}, "session_idle", 1001),
    ],
)
def test_a_session_has_its_time(
    engine: Engine, context: ServerContext, options: dict[str, Any], code: str, close: int
) -> None:
    async def work() -> None:
        context.options = type(context.options)(**options)
        async with connected(context) as client:
            session = (await client.until("session.created"))["session"]
            assert isinstance(session["expires_at"], int)
            assert (await client.until("error"))["error"]["code"] == code
            assert (await client.until("closed"))["code"] == close

    run(work())


def test_a_reader_that_takes_nothing_ends_while_others_go_on(context: ServerContext) -> None:
    async def work() -> None:
        context.options = type(context.options)(slow_reader_s=0.3)
        async with connected(context) as slow, connected(context) as other:
            await greeted(slow)
            await greeted(other)
            sound = base64.b64encode(bytes(200_000)).decode()
            part = {"type": "input_audio", "audio": sound}
            slow.send(
                "conversation.item.create",
                item={"id": "recording", "type": "message", "role": "user", "content": [part]},
            )
            slow.send("response.create", response={"max_output_tokens": 1500})
            await slow.until("response.created")
            slow.socket.may_send.clear()
            for _ in range(1000):  # whose answers are more than it may leave unread
                slow.send("conversation.item.retrieve", item_id="recording")
            [writer] = [
                one._hosted.conversation.scope.writer  # type: ignore[attr-defined]
                for one in context.live
                if one._socket is slow.socket  # type: ignore[attr-defined]
            ]
            other.say("hello")
            assert (await other.answer(max_output_tokens=20))["output"]
            for _ in range(100):
                most = WriterLimits()
                assert writer._delta_bytes <= most.delta_bytes + 100_000
                assert writer._audio_s <= most.audio_s + 2.5
                assert writer._control_bytes <= most.control_bytes + 400_000
                if slow.socket.close_code is not None:
                    break
                await asyncio.sleep(0.1)
            assert slow.socket.close_code == 1008
            assert (await other.answer(max_output_tokens=20))["output"]

    run(work())


def test_a_hundred_bad_events_in_a_row_end_the_session(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            for i in range(99):
                client.send_text("{" if i % 2 else '{"type":"nothing"}')
            client.send("session.update", session={})
            await client.until("session.updated")
            for _ in range(100):
                client.send("conversation.item.delete", item_id="nobody")
            assert (await client.until("closed"))["code"] == 1008
            assert client.events[-2]["error"]["code"] == "too_many_errors"

    run(work())


def test_a_full_engine_refuses_and_a_failing_reply_leaves_the_session(
    engine: Engine, context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        held = [engine.open_session() for _ in range(8)]
        async with connected(context) as client:
            assert (await client.until("error"))["error"]["code"] == "session_limit_reached"
            assert (await client.until("closed"))["code"] == 1013
        for session in held:
            session.close()
        async with connected(context) as client:
            await greeted(client, instructions="word " * 20000)
            client.say("hello")
            done = await client.answer()
            assert done["status"] == "failed"
            assert done["status_details"]["error"]["message"]
            client.send("session.update", session={"instructions": ""})
            assert (await client.answer())["status"] != "failed"

    run(work())


def test_a_failure_in_a_handler_is_reported_and_stays_with_its_event(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from innervoice.server.realtime.items import ItemList

    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            with monkeypatch.context() as patch:
                patch.setattr(ItemList, "find", lambda self, id: 1 / 0)
                client.send("conversation.item.truncate", item_id="x", audio_end_ms=0, event_id="e1")
                error = (await client.until("error"))["error"]
            assert (error["type"], error["code"], error["event_id"]) == ("server_error", "server_error", "e1")
            assert "division" not in error["message"]
            client.say("hello")
            assert (await client.answer())["output"]

    run(work())


def test_the_server_ends_a_connection_with_its_reason(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello")
            client.send("response.create", response={"max_output_tokens": 400})
            await client.until("response.output_audio.delta")
            [connection] = context.live
            assert connection.is_busy
            context.admission.drain()
            client.send("response.create", response={"conversation": "none"})
            assert (await client.until("error"))["error"]["code"] == "server_draining"
            error = ApiError("server_draining", "The server is shutting down.", type="server_error")
            await asyncio.gather(connection.end(1001, error), connection.end(1001, error))
            assert (await client.until("closed"))["code"] == 1001
            assert client.events[-2]["error"]["code"] == "server_draining"

    run(work())


def test_clients_that_vanish_in_the_middle_leave_nothing(engine: Engine, context: ServerContext) -> None:
    async def work() -> None:
        for i in range(12):
            async with connected(context) as client:
                await greeted(client)
                client.say("hello")
                client.send("response.create", response={"max_output_tokens": 1500})
                if i % 3:
                    await client.until("response.created" if i % 3 == 1 else "response.output_audio.delta")
                client.drop()
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == 1

    run(work())
    gc.collect()


def test_a_dead_engine_ends_its_connections(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=2) as engine:
        context = make_context(engine)

        async def work() -> None:
            async with connected(context) as client:
                await greeted(client)

                def fail(*_: Any) -> None:
                    raise RuntimeError("the device is lost")

                monkeypatch.setattr(engine.parts.core.runner, "forward", fail)
                client.say("hello")
                done = await client.answer()
                assert done["status"] == "failed"
                assert (await client.until("closed"))["code"] == 1011
            async with connected(context) as client:
                assert (await client.until("closed"))["code"] == 1011

        run(work())
        with pytest.raises(EngineDead):
            engine.check_health()
        context.listener.close()
