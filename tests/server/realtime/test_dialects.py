"""The beta dialect, and habits of clients: odd models and voices, tools, transcription, whole updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from realtime_client import RealtimeClient, connected, greeted, run

from innervoice.server.context import ServerContext
from innervoice.server.transcriber import Transcription, TranscriptionFailed

BETA_REPLY = [
    "response.created",
    "response.output_item.added",
    "conversation.item.created",
    "response.content_part.added",
    "response.audio.done",
    "response.audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]
WHOLE_UPDATE: dict[str, Any] = {
    "type": "realtime",
    "instructions": "You are helpful.",
    "model": "gpt-realtime-2.1",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": None,
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {
                "type": "semantic_vad",
                "eagerness": "medium",
                "create_response": True,
                "interrupt_response": True,
            },
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1},
    },
    "max_output_tokens": "inf",
    "tool_choice": "auto",
    "tools": [
        {"type": "function", "name": "clock", "description": "The time.", "parameters": {"type": "object"}}
    ],
    "tracing": None,
    "prompt": None,
    "parallel_tool_calls": True,
    "reasoning": {"effort": "low"},
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.5},
}


def test_the_beta_dialect_has_its_own_names_and_shapes(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, "beta", model="gpt-4o-realtime-preview") as client:
            created = (await client.until("session.created"))["session"]
            assert created["modalities"] == ["text", "audio"]
            assert (created["input_audio_format"], created["turn_detection"]["type"]) == (
                "pcm16",
                "server_vad",
            )
            assert "type" not in created
            assert "audio" not in created
            update = {"turn_detection": None, "temperature": 0.7, "tool_choice": "none", "voice": "echo"}
            client.send("session.update", session=update)
            updated = (await client.until("session.updated"))["session"]
            assert (updated["turn_detection"], updated["temperature"]) == (None, 0.7)
            client.say("hello")
            done = await client.answer(modalities=["audio", "text"], max_output_tokens=40)
            assert done["modalities"] == ["text", "audio"]
            assert [part["type"] for part in done["output"][0]["content"]] == ["audio"]
            assert len(client.audio()) > 0
            kinds = [one for one in client.types() if not one.endswith(".delta")]
            assert kinds[-len(BETA_REPLY) :] == BETA_REPLY
            done = await client.answer(modalities=["text"], max_output_tokens=5)
            assert done["output"][0]["content"][0]["type"] == "text"
            assert "response.text.delta" in client.types()
            names = set(client.types())
            assert not names & {"conversation.item.added", "conversation.item.done"}
            assert not any("output_audio" in name or "output_text" in name for name in names)

    run(work())


def test_a_whole_update_is_echoed_as_it_takes_effect(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context, model="anything-at-all") as client:
            assert (await client.until("session.created"))["session"]["model"] == "anything-at-all"
            client.send("session.update", session=WHOLE_UPDATE, event_id="e1")
            echo = (await client.until("session.updated"))["session"]
            assert echo["model"] == "gpt-realtime-2.1"
            assert echo["audio"]["input"]["transcription"] is None
            assert (
                echo["audio"]["input"]["turn_detection"] == WHOLE_UPDATE["audio"]["input"]["turn_detection"]
            )
            assert echo["audio"]["output"]["voice"] == "default"
            assert echo["tools"] == WHOLE_UPDATE["tools"]
            client.send("session.update", session={"tracing": "auto"})
            assert (await client.until("session.updated"))["session"] == echo
            client.send("session.update", session={"turn_detection": None})
            await client.until("session.updated")
            client.say("hello")
            assert (await client.answer())["status"] in ("completed", "incomplete")
            assert client.of_type("error") == []

    run(work())


class Script:
    """A transcriber that knows its lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.seconds: list[float] = []

    async def transcribe(self, pcm: np.ndarray, rate: int, **hints: Any) -> Transcription:
        self.seconds.append(len(pcm) / rate)
        if not self.lines:
            raise TranscriptionFailed("the service is away")
        return Transcription(self.lines.pop(0), len(pcm) / rate)

    async def close(self) -> None:
        """Nothing is open."""


async def speak(client: RealtimeClient) -> str:
    client.append(np.full(12000, 900, dtype=np.int16))
    client.send("input_audio_buffer.commit")
    return str((await client.until("input_audio_buffer.committed"))["item_id"])


@pytest.mark.parametrize("dialect", ["ga", "beta"])
def test_the_users_words_come_when_they_are_known(context: ServerContext, dialect: str) -> None:
    script = Script("what is the time?")
    context.transcriber = script
    kind = "conversation.item.input_audio_transcription"

    async def work() -> None:
        async with connected(context, dialect) as client:
            await client.until("session.created")
            update = {"input_audio_transcription": {"model": "whisper-1"}, "turn_detection": None}
            client.send("session.update", session=update)
            session = (await client.until("session.updated"))["session"]
            sound = session["audio"]["input"] if dialect == "ga" else session
            assert (sound.get("transcription") or sound.get("input_audio_transcription")) == {
                "model": "whisper-1"
            }
            first = await speak(client)
            completed = await client.until(f"{kind}.completed")
            assert (completed["item_id"], completed["transcript"]) == (first, "what is the time?")
            assert script.seconds == [0.5]
            client.send("conversation.item.retrieve", item_id=first)
            item = (await client.until("conversation.item.retrieved"))["item"]
            assert item["content"][0]["transcript"] == "what is the time?"
            await speak(client)
            failed = await client.until(f"{kind}.failed")
            assert failed["error"]["message"] == "the service is away"
            assert None not in failed["error"].values()

    run(work())


def test_a_twin_answers_beside_a_reply_that_runs(context: ServerContext) -> None:
    async def work() -> None:
        async with connected(context) as client:
            await greeted(client)
            client.say("hello")
            client.send("response.create", response={"max_output_tokens": 400})
            await client.until("response.output_audio.delta")
            client.send("response.create", response={"conversation": "none", "max_output_tokens": 6})
            ends = [(await client.until("response.done"))["response"] for _ in range(2)]
            assert sorted(one["usage"]["output_tokens"] for one in ends)[0] == 6
            assert {one["status"] for one in ends} <= {"incomplete", "completed"}

    run(work())
