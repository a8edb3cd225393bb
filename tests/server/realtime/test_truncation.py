"""Conversations that outgrow the model's context: they go on, or the reply says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, greeted, make_context, run

from innervoice import Engine
from innervoice.server.context import ServerContext

CONTEXT = 256
VAD: dict[str, Any] = {"audio": {"input": {"turn_detection": None}}, "innervoice": {"events": ["timeline"]}}


@pytest.fixture(scope="module")
def context(tiny_dir: Path) -> Iterator[ServerContext]:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", vocoder_noise=False, max_sessions=2, max_model_len=CONTEXT
    ) as engine:
        made = make_context(engine, max_output_tokens=20)
        yield made
        made.listener.close()
        made.calls.shutdown()
        pool = engine.parts.core.pool
        pool.check_integrity()
        assert pool.num_available == pool.num_pages


def dropped_of(client: RealtimeClient) -> list[str]:
    events = client.of_type("innervoice.history.shortened")
    return [id for event in events for id in event["item_ids"]]


async def history_of(context: ServerContext) -> list[str]:
    [connection] = context.live
    session = connection._hosted.conversation.scope.session  # type: ignore[attr-defined]
    return [item.item_id for item in await session.aitems()]


@pytest.mark.parametrize("kind", ["words", "words at once", "system texts", "speech"])
def test_a_conversation_goes_on_without_its_oldest_items(
    context: ServerContext, question: np.ndarray, kind: str
) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, instructions="be brief", **VAD)
            for turn in range(6):
                if kind == "speech":
                    client.append(np.tile(question, 3)[: 4 * 24000])
                    client.send("input_audio_buffer.commit")
                elif kind == "system texts":
                    client.say("it is late " * 8, role="system", id=f"item_{turn}")
                    client.say("so?")
                else:
                    client.say("why is that so? " * 5, id=f"item_{turn}")
                if kind != "words at once" or turn == 5:
                    response = await client.answer()
                    assert response["status"] != "failed", response["status_details"]
                    assert response["usage"]["input_tokens"] < CONTEXT
            dropped = dropped_of(client)
            kept = await history_of(context)
            assert dropped and not set(dropped) & set(kept)
            added = [event["item"]["id"] for event in client.of_type("conversation.item.added")]
            assert [id for id in added if id in dropped or id in kept] == added
            assert [id for id in added if id in kept][-2:] == added[-2:]
            assert client.items_of_server(context) == added
            client.send("conversation.item.delete", item_id=dropped[0])
            await client.until("conversation.item.deleted")
            client.say("and now?")
            assert (await client.answer())["status"] != "failed"

    run(work())


def test_a_message_that_does_not_fit_alone_fails_and_the_next_is_answered(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client, **VAD)
            client.say("word " * 2000, id="item_big")
            failed = (await client.answer())["status_details"]["error"]
            assert failed["code"] == "context_length_exceeded"
            assert failed["message"].startswith("The newest message, with the instructions, has ")
            assert failed["message"].endswith(
                f"a conversation holds {CONTEXT}, the reply included: send a shorter one."
            )
            client.say("word " * 5000)
            assert (await client.until("error"))["error"]["code"] == "context_length_exceeded"
            client.say("hello?")
            assert (await client.answer())["status"] != "failed"
            assert dropped_of(client) == ["item_big"]

    run(work())


def test_without_truncation_the_reply_fails_until_room_is_made(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            session = await greeted(client, **VAD, truncation="disabled")
            assert session["truncation"] == "disabled"
            for turn in range(6):
                client.say("why is that so? " * 5, id=f"item_{turn}")
            failed = (await client.answer())["status_details"]["error"]
            assert failed["code"] == "context_length_exceeded"
            assert failed["message"].endswith("delete items, or set truncation to auto.")
            for turn in range(4):
                client.send("conversation.item.delete", item_id=f"item_{turn}")
            assert (await client.answer())["status"] != "failed"
            assert dropped_of(client) == []

    run(work())
