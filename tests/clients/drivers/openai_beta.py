"""The openai package's beta: a flat session, and events by their older names."""

from __future__ import annotations

import asyncio

from common import BASE, KEY, MODEL, WS_BASE, show
from openai import AsyncOpenAI


async def converse() -> None:
    client = AsyncOpenAI(base_url=BASE, websocket_base_url=WS_BASE, api_key=KEY)
    async with client.beta.realtime.connect(model=MODEL) as connection:
        async for event in connection:
            show("event", type=event.type)
            if event.type == "session.created":
                await connection.session.update(
                    session={
                        "modalities": ["text", "audio"],
                        "turn_detection": None,
                        "instructions": "Be brief.",
                    }
                )
            elif event.type == "session.updated":
                show("session", session=event.session.to_dict())
                await connection.conversation.item.create(
                    item={
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "How are you?"}],
                    }
                )
                await connection.response.create()
            elif event.type == "error":
                show("error", message=event.error.message)
            elif event.type == "response.done":
                show("reply", status=event.response.status, item=event.response.output[0].to_dict())
                return


asyncio.run(converse())
