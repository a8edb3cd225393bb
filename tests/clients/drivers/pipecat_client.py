"""Pipecat: a pipeline whose turns the server finds, or whose turns are found locally."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common import KEY, MODEL, WS_BASE, mode, question, show, spoken
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE = 24000


class Sink(FrameProcessor):
    """Notes what the pipeline brings."""

    def __init__(self) -> None:
        super().__init__()
        self.sound_s = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.sound_s += len(frame.audio) / 2 / frame.sample_rate
        elif isinstance(frame, InterruptionFrame):
            show("interruption")
        elif isinstance(frame, ErrorFrame):
            show("error", message=frame.error)
        await self.push_frame(frame, direction)


def block(sound: bytes) -> InputAudioRawFrame:
    return InputAudioRawFrame(audio=sound, sample_rate=RATE, num_channels=1)


async def say(worker: PipelineWorker, silence_s: float) -> None:
    async for piece in spoken(question(), silence_s):
        await worker.queue_frame(block(piece))


class Watch:
    """Notes the items of the conversation."""

    def __init__(self, llm: OpenAIRealtimeLLMService) -> None:
        self.completed: list[str] = []
        llm.add_event_handler("on_conversation_item_updated", self.updated)

    async def updated(self, _: object, item_id: str, item: events.ConversationItem | None) -> None:
        if item is not None and item.role == "assistant" and item.status == "completed":
            self.completed.append(item_id)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(150):
        while not holds():
            await asyncio.sleep(0.02)


async def converse(sink: Sink, worker: PipelineWorker, watch: Watch, is_manual: bool) -> None:
    """Let the model speak first, speak over it, and wait for the answer."""
    await worker.queue_frame(LLMRunFrame())
    await until(lambda: sink.sound_s > 0)
    await asyncio.sleep(0.3)
    if is_manual:
        await worker.queue_frame(UserStartedSpeakingFrame())
        await worker.queue_frame(InterruptionFrame())
        await say(worker, 0.0)
        await worker.queue_frame(UserStoppedSpeakingFrame())
    else:
        await say(worker, 1.5)
    await until(lambda: bool(watch.completed))


async def run() -> None:
    is_manual = mode() == "manual"
    properties = events.SessionProperties(
        audio=events.AudioConfiguration(input=events.AudioInput(turn_detection=False if is_manual else None))
    )
    settings = OpenAIRealtimeLLMService.Settings(
        model=MODEL,
        system_instruction="Be brief.",
        **({"session_properties": properties} if is_manual else {}),
    )
    llm = OpenAIRealtimeLLMService(api_key=KEY, base_url=f"{WS_BASE}/realtime", settings=settings)
    context = LLMContext([{"role": "user", "content": "How are you?"}])
    watch = Watch(llm)
    pair = LLMContextAggregatorPair(context)
    sink = Sink()
    worker = PipelineWorker(Pipeline([pair.user(), llm, sink, pair.assistant()]), enable_rtvi=False)

    @worker.event_handler("on_pipeline_error")
    async def failed(_: PipelineWorker, frame: ErrorFrame) -> None:
        show("error", message=frame.error)

    async def steps() -> None:
        try:
            await converse(sink, worker, watch, is_manual)
            item = await asyncio.wait_for(llm.retrieve_conversation_item(watch.completed[0]), 10)
            show("alive", status=item.status, sound_s=sink.sound_s)
        finally:
            await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await asyncio.gather(runner.run(worker), steps())
    show("context", messages=context.get_messages())


asyncio.run(run())
