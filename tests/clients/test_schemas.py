"""The parsers of the clients take every event that the server sent to any of them.

The last of the clients' files to run: the record has what was sent in those before it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from driven_clients import judged, tapped
from small_servers import KEY
from transcribing import transcription_service
from websockets.sync.client import ClientConnection, connect

from innervoice import Engine

pytestmark = pytest.mark.clients
Event = dict[str, Any]

# All that the server sends to a client that asks for no extension, by the protocol's names.
SENT = {
    "conversation.created",
    "conversation.item.added",
    "conversation.item.deleted",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.completed",
    "conversation.item.input_audio_transcription.failed",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "error",
    "input_audio_buffer.cleared",
    "input_audio_buffer.committed",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.timeout_triggered",
    "response.content_part.added",
    "response.content_part.done",
    "response.created",
    "response.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.done",
    "session.created",
    "session.updated",
}

PARSERS = [
    ("validate.py", "openai"),
    ("validate.py", "openai-agents"),
    ("validate.py", "pipecat"),
    ("agents_validate.mjs",),
]
# Events of the protocol that a client has no parser for, and passes over.
UNKNOWN = {
    "pipecat": ("input_audio_buffer.timeout_triggered",),
    "agents_validate.mjs": ("input_audio_buffer.timeout_triggered",),
}


class Caller:
    """A client of few words, for events that the others do not cause."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send(self, type: str, **fields: Any) -> None:
        self._connection.send(json.dumps({"type": type, **fields}))

    def until(self, type: str) -> Event:
        while True:
            event: Event = json.loads(self._connection.recv(60))
            if event["type"] == type:
                return event

    def create(self, **item: Any) -> str:
        self.send("conversation.item.create", item=item)
        return str(self.until("conversation.item.done")["item"]["id"])

    def answer(self, **response: Any) -> Event:
        self.send("response.create", response=response)
        return dict(self.until("response.done")["response"])


def talk(caller: Caller, question: bytes) -> None:
    """Cause each event once, with the values of its fields that are rare."""
    tool = {"type": "function", "name": "weather", "description": "", "parameters": {"type": "object"}}
    audio = {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}
    caller.send(
        "session.update", session={"tools": [tool], "tool_choice": "auto", "audio": audio, "voice": "alloy"}
    )
    caller.until("session.updated")
    for sound in (question, bytes(48000)):
        caller.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())
    spoken = caller.until("input_audio_buffer.committed")["item_id"]
    caller.send("conversation.item.retrieve", item_id=spoken)
    caller.until("conversation.item.retrieved")
    caller.create(type="message", role="system", content=[{"type": "input_text", "text": "Be brief."}])
    caller.create(type="message", role="assistant", content=[{"type": "output_text", "text": "Yes?"}])
    caller.create(type="function_call", call_id="call_1", name="weather", arguments="{}")
    caller.create(type="function_call_output", call_id="call_1", output="sunny")
    text = caller.create(type="message", role="user", content=[{"type": "input_text", "text": "Hello"}])

    written = caller.answer(output_modalities=["text"], metadata={"a": "b"}, max_output_tokens=20)
    assert written["output"][0]["content"][0]["type"] == "output_text"
    asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    beside = caller.answer(conversation="none", input=[asked], max_output_tokens=12)
    assert beside["status"] in ("incomplete", "completed")
    ulaw = {"output": {"format": {"type": "audio/pcmu"}}}
    last = caller.answer(audio=ulaw, max_output_tokens=40)["output"][0]["id"]
    caller.send("conversation.item.truncate", item_id=last, content_index=0, audio_end_ms=0)
    caller.until("conversation.item.truncated")
    caller.send("conversation.item.delete", item_id=text)
    caller.until("conversation.item.deleted")
    caller.send("input_audio_buffer.clear")
    caller.until("input_audio_buffer.cleared")
    for bad in ({"type": "nothing.such"}, {"type": "conversation.item.delete", "item_id": "none"}):
        caller.send(**bad, event_id="mine")
        assert caller.until("error")["error"]["event_id"] == "mine"
    caller.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}})
    caller.until("session.updated")


def listen(caller: Caller, question: bytes) -> None:
    """Cause what follows speech: its words, words that fail, and a turn that the user leaves out."""
    for prompt, end in (("", "completed"), ("broken", "failed")):
        words = {"model": "whisper-1", "language": "en", "prompt": prompt}
        input = {"transcription": words, "turn_detection": None}
        caller.send("session.update", session={"audio": {"input": input}})
        caller.until("session.updated")
        caller.send("input_audio_buffer.append", audio=base64.b64encode(question).decode())
        caller.send("input_audio_buffer.commit")
        caller.until(f"conversation.item.input_audio_transcription.{end}")
    turns = {"type": "server_vad", "idle_timeout_ms": 1000}
    caller.send("session.update", session={"audio": {"input": {"turn_detection": turns}}})
    caller.until("session.updated")
    caller.answer(max_output_tokens=12)
    caller.send("input_audio_buffer.append", audio=base64.b64encode(bytes(48000)).decode())
    caller.until("input_audio_buffer.timeout_triggered")
    caller.until("response.done")


@pytest.fixture(scope="module")
def events(
    engine: Engine, calling_engine: Engine, tmp_path_factory: pytest.TempPathFactory, record: Path
) -> list[Event]:
    """All events that were recorded, those of the other tests' clients among them, with their dialects."""
    with (
        transcription_service() as url,
        tapped(engine, tmp_path_factory.mktemp("sound"), record, transcription_url=url) as place,
    ):
        place.drive("openai_ga.py")
        place.drive("openai_beta.py")
        address = place.server.base.replace("http", "ws") + "/v1/realtime"
        with connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as connection:
            talk(Caller(connection), place.question.read_bytes())
            listen(Caller(connection), place.question.read_bytes())
    with tapped(calling_engine, tmp_path_factory.mktemp("calls"), record) as place:
        place.drive("openai_tools.py")
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]


def of_dialect(events: list[Event], dialect: str) -> list[Event]:
    return [line["event"] for line in events if line["dialect"] == dialect]


def test_the_record_holds_every_kind_of_event(events: list[Event]) -> None:
    assert {event["type"] for event in of_dialect(events, "ga")} == SENT


@pytest.mark.parametrize("words", PARSERS, ids="-".join)
def test_parsers(events: list[Event], words: tuple[str, ...]) -> None:
    chosen = of_dialect(events, "ga")
    unknown = [event for event in chosen if event["type"] in UNKNOWN.get(words[-1], ())]
    lines = judged(*words, events=chosen)
    refused = [line for line in lines if line["kind"] == "refused"]
    assert [line for line in refused if line["event"] not in unknown] == []
    assert len(refused) == len(unknown), "the client has learnt an event: take it off the list"
    assert sum(lines[-1]["types"].values()) == len(chosen) - len(unknown)


def test_the_parser_of_the_beta(events: list[Event]) -> None:
    chosen = of_dialect(events, "beta")
    assert {"response.audio.delta", "conversation.item.created"} <= {event["type"] for event in chosen}
    lines = judged("validate.py", "beta", events=chosen)
    assert [line for line in lines if line["kind"] == "refused"] == []
    assert sum(lines[-1]["types"].values()) == len(chosen)


def test_a_wrong_event_is_refused_by_each_parser(events: list[Event]) -> None:
    delta = next(
        event for event in of_dialect(events, "ga") if event["type"] == "response.output_audio.delta"
    )
    wrong = {name: value for name, value in delta.items() if name != "delta"}
    for words in PARSERS:
        assert [line["kind"] for line in judged(*words, events=[wrong])] == ["refused", "taken"]
