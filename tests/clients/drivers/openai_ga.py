"""The openai package: a conversation over `client.realtime`, or what it does when the server closes."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from common import BASE, KEY, MODEL, mode, pieces, question, show
from openai import AsyncOpenAI

CLIENT = AsyncOpenAI(base_url=BASE, api_key=KEY)


async def until(connection: Any, kind: str) -> Any:
    """Read on to the next event of this type."""
    async for event in connection:
        if event.type == "error":
            show("error", code=event.error.code, message=event.error.message)
        if event.type == kind:
            return event
    raise RuntimeError(f"no {kind} came")


async def reply(connection: Any, cancel_after: int | None = None) -> str:
    """Read a reply to its end, or cancel it after some deltas of sound -> its item's id."""
    text, sound, num_deltas, final = "", b"", 0, None
    async for event in connection:
        if event.type == "response.output_audio_transcript.delta":
            text += event.delta
        elif event.type == "response.output_audio_transcript.done":
            final = event.transcript
        elif event.type == "response.output_audio.delta":
            sound += base64.b64decode(event.delta)
            num_deltas += 1
            if num_deltas == cancel_after:
                await connection.response.cancel()
        elif event.type == "error":
            show("error", code=event.error.code, message=event.error.message)
        elif event.type == "response.done":
            break
    response = event.response
    show(
        "reply",
        status=response.status,
        joined=text,
        final=final,
        sound_s=len(sound) / 48000,
        usage=response.usage.model_dump() if response.usage else None,
        item=response.output[0].to_dict(),
    )
    return response.output[0].id


async def converse() -> None:
    """Text in, then speech in with a reply that is cancelled, truncated and retrieved."""
    async with CLIENT.realtime.connect(model=MODEL) as connection:
        created = await until(connection, "session.created")
        show("session", model=created.session.model)
        await connection.session.update(
            session={
                "type": "realtime",
                "audio": {"input": {"turn_detection": None}},
                "instructions": "Be brief.",
            }
        )
        updated = await until(connection, "session.updated")
        show("updated", turn_detection=updated.session.audio.input.turn_detection)
        await connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "How are you?"}],
            }
        )
        await connection.response.create()
        await reply(connection)

        for piece in pieces(question()):
            await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        item_id = await reply(connection, cancel_after=1)
        await connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=200)
        truncated = await until(connection, "conversation.item.truncated")
        await connection.conversation.item.retrieve(item_id=item_id)
        retrieved = await until(connection, "conversation.item.retrieved")
        show("retrieved", audio_end_ms=truncated.audio_end_ms, item=retrieved.item.to_dict())


async def come_back() -> None:
    """Stay connected, with leave to reconnect, until the server ends it for good."""

    def reconnecting(event: Any) -> None:
        show("reconnecting", code=event.close_code, attempt=event.attempt)

    async with CLIENT.realtime.connect(model=MODEL, on_reconnecting=reconnecting) as connection:
        try:
            async for event in connection:
                show("event", type=event.type)
        except Exception as error:
            show(
                "ended", error=type(error).__name__, code=getattr(getattr(error, "rcvd", None), "code", None)
            )
        else:
            show("ended", error=None, code=None)


asyncio.run(come_back() if mode() == "reconnect" else converse())
