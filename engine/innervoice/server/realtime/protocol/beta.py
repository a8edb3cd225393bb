"""The beta dialect: names and shapes of the GA dialect's server events as the beta has them.

What a client sends needs no translation of its own: flat session fields and the beta's content types are
understood on every connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from innervoice.server.realtime.protocol.server_events import ServerEvent
from innervoice.server.realtime.protocol.session_patch import BETA_FORMATS

RENAMED: Mapping[str, str] = {
    "conversation.item.added": "conversation.item.created",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
}
LEFT_OUT = frozenset({"conversation.item.done", "input_audio_buffer.timeout_triggered"})
CONTENT: Mapping[str, str] = {"output_text": "text", "output_audio": "audio"}
FORMATS: Mapping[str, str] = {ga: beta for beta, ga in BETA_FORMATS.items()}
DEFAULT_TEMPERATURE = 0.8


def to_beta(event: ServerEvent) -> ServerEvent | None:
    """Translate a server event, None: the beta has no such event."""
    if event["type"] in LEFT_OUT:
        return None
    made = {**event, "type": RENAMED.get(event["type"], event["type"])}
    if "item" in made:
        made["item"] = item(made["item"])
    if "session" in made:
        made["session"] = session(made["session"])
    if "response" in made:
        made["response"] = response(made["response"])
    return made


def item(ga: Mapping[str, Any]) -> dict[str, Any]:
    """Write an item with the beta's content types."""
    content = ga.get("content")
    if content is None:
        return dict(ga)
    return {**ga, "content": [{**part, "type": CONTENT.get(part["type"], part["type"])} for part in content]}


def session(ga: Mapping[str, Any]) -> dict[str, Any]:
    """Write a session with flat fields and without a type."""
    heard, spoken = ga["audio"]["input"], ga["audio"]["output"]
    choice = ga["tool_choice"]
    made = {
        "object": "realtime.session",
        "id": ga["id"],
        "model": ga["model"],
        "modalities": modalities(ga["output_modalities"]),
        "instructions": ga["instructions"],
        "voice": spoken["voice"],
        "speed": spoken["speed"],
        "input_audio_format": FORMATS[heard["format"]["type"]],
        "output_audio_format": FORMATS[spoken["format"]["type"]],
        "input_audio_transcription": heard["transcription"],
        "input_audio_noise_reduction": heard["noise_reduction"],
        "turn_detection": heard["turn_detection"],
        "tools": ga["tools"],
        "tool_choice": choice if isinstance(choice, str) else choice["name"],
        "temperature": ga.get("temperature", DEFAULT_TEMPERATURE),
        "max_response_output_tokens": ga["max_output_tokens"],
        "expires_at": ga["expires_at"],
    }
    return made | {key: ga[key] for key in ("innervoice",) if key in ga}


def response(ga: Mapping[str, Any]) -> dict[str, Any]:
    """Write a response with flat fields."""
    spoken = ga["audio"]["output"]
    made = {key: value for key, value in ga.items() if key not in ("audio", "output_modalities", "output")}
    return made | {
        "output": [item(one) for one in ga["output"]],
        "modalities": modalities(ga["output_modalities"]),
        "output_audio_format": FORMATS[spoken["format"]["type"]],
        "voice": spoken["voice"],
    }


def modalities(ga: list[str]) -> list[str]:
    """Write modalities as the beta does, which names the transcript of sound."""
    return ["text"] if ga == ["text"] else ["text", "audio"]
