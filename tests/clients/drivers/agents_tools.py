"""The openai-agents package: the model calls a tool, the package runs it, and the answer is spoken."""

from __future__ import annotations

import asyncio

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from common import KEY, MODEL, WS_BASE, show


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    show("tool", city=city)
    return "25 degrees"


async def converse() -> None:
    agent = RealtimeAgent(name="Ada", instructions="Be brief.", tools=[weather])
    url = f"{WS_BASE}/realtime?model={MODEL}"
    session = await RealtimeRunner(starting_agent=agent).run(model_config={"api_key": KEY, "url": url})
    async with session:
        await session.send_message("How warm is it in Paris?")
        async with asyncio.timeout(100):
            sound_s, num_ends = 0.0, 0
            async for event in session:
                if event.type == "audio":
                    sound_s += len(event.audio.data) / 48000
                elif event.type == "raw_model_event":
                    num_ends += event.data.type == "turn_ended"
                elif event.type in ("tool_start", "tool_end", "error"):
                    show("event", type=event.type, error=str(getattr(event, "error", "")))
                if num_ends == 2:  # of the call and of the answer
                    break
        show("history", items=[item.model_dump() for item in session._history], sound_s=sound_s)


asyncio.run(converse())
