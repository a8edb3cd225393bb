"""The openai package: a tool is called, its result goes back, and the answer is spoken."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from common import BASE, KEY, MODEL, show
from openai import AsyncOpenAI

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": PARAMETERS,
}


async def answer(connection: Any) -> Any:
    """Read a response to its end, and show what it held."""
    sound, arguments = b"", ""
    async for event in connection:
        if event.type == "error":
            show("error", code=event.error.code, message=event.error.message)
        elif event.type == "response.output_audio.delta":
            sound += base64.b64decode(event.delta)
        elif event.type == "response.function_call_arguments.delta":
            arguments += event.delta
        elif event.type == "response.done":
            items = [item.to_dict() for item in event.response.output]
            show(
                "reply",
                status=event.response.status,
                items=items,
                arguments=arguments,
                sound_s=len(sound) / 48000,
            )
            return event.response
    raise RuntimeError("no response.done came")


async def converse() -> None:
    async with (
        AsyncOpenAI(base_url=BASE, api_key=KEY) as client,
        client.realtime.connect(model=MODEL) as connection,
    ):
        audio: Any = {"input": {"turn_detection": None}}
        await connection.session.update(session={"type": "realtime", "tools": [WEATHER], "audio": audio})
        content: Any = [{"type": "input_text", "text": "How warm is it in Paris?"}]
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        await connection.response.create()
        [call] = (await answer(connection)).output
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "25 degrees"}
        await connection.conversation.item.create(item=result)
        await connection.response.create()
        await answer(connection)


asyncio.run(converse())
