"""LiveKit: an AgentSession with a microphone and a speaker of its own, and no LiveKit server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from common import BASE, KEY, MODEL, RATE, mode, question, show, spoken
from livekit import rtc
from livekit.agents import Agent, AgentSession, ChatContext, function_tool
from livekit.agents.voice import io
from livekit.plugins import openai
from openai.types.beta.realtime.session import TurnDetection

NUM_ITEMS = 40


class Microphone(io.AudioInput):
    """Frames that it is given."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self.frames = asyncio.Queue[rtc.AudioFrame]()

    async def __anext__(self) -> rtc.AudioFrame:
        return await self.frames.get()

    async def say(self, silence_s: float) -> None:
        async for piece in spoken(question(), silence_s):
            self.frames.put_nowait(rtc.AudioFrame(piece, RATE, 1, len(piece) // 2))


class Speaker(io.AudioOutput):
    """Plays in real time, and says what of it was played when it ends or is cleared."""

    def __init__(self) -> None:
        super().__init__(
            label="speaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE
        )
        self.start_s: float | None = None
        self.pushed_s = 0.0
        self.ending: asyncio.Task[None] | None = None

    @property
    def played_s(self) -> float:
        return 0.0 if self.start_s is None else min(self.pushed_s, time.monotonic() - self.start_s)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self.start_s is None:
            self.start_s = time.monotonic()
            self.on_playback_started(created_at=time.time())
        self.pushed_s += frame.duration

    def flush(self) -> None:
        super().flush()
        if self.start_s is not None and self.ending is None:
            self.ending = asyncio.create_task(self._play_out())

    def clear_buffer(self) -> None:
        if self.start_s is not None:
            self._finish(is_cut=True)

    async def _play_out(self) -> None:
        while self.played_s < self.pushed_s:
            await asyncio.sleep(0.02)
        self._finish(is_cut=False)

    def _finish(self, is_cut: bool) -> None:
        position_s, ending = self.played_s, self.ending
        self.start_s, self.pushed_s = None, 0.0
        self.ending = None
        if is_cut and ending is not None:
            ending.cancel()
        show("played", seconds=position_s, is_cut=is_cut)
        self.on_playback_finished(playback_position=position_s, interrupted=is_cut)


@function_tool
async def weather(city: str) -> str:
    """The weather of a city."""
    show("tool", city=city)
    return "sunny"


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    late_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > late_s:
            raise TimeoutError("it did not come in time")
        await asyncio.sleep(0.02)


def make_model(kind: str) -> openai.realtime.RealtimeModel:
    chosen = {}
    if kind == "server":
        chosen["turn_detection"] = TurnDetection(
            type="server_vad", silence_duration_ms=500, create_response=True, interrupt_response=True
        )
    elif kind == "none":
        chosen["turn_detection"] = None
    return openai.realtime.RealtimeModel(model=MODEL, base_url=BASE, api_key=KEY, **chosen)


def long_context() -> ChatContext:
    context = ChatContext.empty()
    for i in range(NUM_ITEMS):
        context.add_message(role=("user", "assistant")[i % 2], content=f"Line {i}.", id=f"line_{i:02}")
    return context


async def converse(session: AgentSession, microphone: Microphone, speaker: Speaker, is_manual: bool) -> None:
    """A reply that speech interrupts, the reply to the speech, and one on instructions."""
    session.generate_reply(user_input="How are you?")
    await until(lambda: speaker.played_s > 0.4)
    if is_manual:
        await session.interrupt()
        await microphone.say(0.3)
        session.commit_user_turn(transcript_timeout=0.0)
    else:
        await microphone.say(5.0 if mode() == "semantic" else 1.5)
    await until(lambda: speaker.played_s > 0.4)
    await session.interrupt()
    last = session.generate_reply(instructions="Say goodbye.")
    await until(lambda: speaker.played_s > 0.4)
    await session.interrupt()
    await asyncio.wait_for(last.wait_for_playout(), 30)


async def come_back(session: AgentSession, agent: Agent, speaker: Speaker) -> None:
    """Wait for the connection to be lost and made again, then ask."""
    back = asyncio.Event()
    agent.realtime_llm_session.on("session_reconnected", lambda _: back.set())
    show("ready")
    await asyncio.wait_for(back.wait(), 60)
    await until(lambda: len(agent.realtime_llm_session.chat_ctx.items) == NUM_ITEMS)
    show("reconnected")
    session.generate_reply(user_input="Are you still here?")
    await until(lambda: speaker.played_s > 0.4)
    await session.interrupt()


async def run() -> None:
    kind = mode()
    microphone, speaker = Microphone(), Speaker()
    manner = "manual" if kind == "none" else "realtime_llm"
    session = AgentSession(
        llm=make_model(kind), turn_handling={"turn_detection": manner}, aec_warmup_duration=None
    )
    session.input.audio = microphone
    session.output.audio = speaker
    session.on("error", lambda event: show("error", message=str(event.error)))
    agent = Agent(
        instructions="Be brief.",
        tools=[weather],
        **({"chat_ctx": long_context()} if kind == "reconnect" else {}),
    )
    await session.start(agent, record=False)
    if kind == "reconnect":
        await come_back(session, agent, speaker)
    else:
        await converse(session, microphone, speaker, is_manual=kind == "none")
    await asyncio.sleep(0.5)
    for item in session.history.items:
        if item.type == "message":
            show("item", role=item.role, text=item.text_content, interrupted=item.interrupted)
    await session.aclose()


asyncio.run(run())
