"""The openai-agents package: a message, a spoken question over the reply, a tool that is there to be called."""

from __future__ import annotations

import asyncio

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from common import KEY, MODEL, WS_BASE, question, show, spoken


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    show("tool", city=city)
    return "sunny"


async def converse() -> None:
    agent = RealtimeAgent(name="Ada", instructions="Be brief.", tools=[weather])
    url = f"{WS_BASE}/realtime?model={MODEL}"
    session = await RealtimeRunner(starting_agent=agent).run(model_config={"api_key": KEY, "url": url})
    ends = asyncio.Queue[str]()
    has_sound = asyncio.Event()

    async def watch() -> None:
        async for event in session:
            if event.type == "audio":
                show("audio", seconds=len(event.audio.data) / 48000)
                has_sound.set()
            elif event.type == "raw_model_event":
                if event.data.type == "turn_ended":
                    ends.put_nowait("turn_ended")
                show("raw", type=event.data.type)
            else:
                show("event", type=event.type, error=str(getattr(event, "error", "")))

    async with session:
        watching = asyncio.create_task(watch())
        await session.send_message("How are you?")
        await asyncio.wait_for(has_sound.wait(), 60)
        async for piece in spoken(question(), silence_s=4.5):
            await session.send_audio(piece)
        for _ in range(2):  # the interrupted reply and the one to the question
            await asyncio.wait_for(ends.get(), 150)
        watching.cancel()
    history = [item.model_dump() for item in session._history]
    show("history", items=history)


asyncio.run(converse())
