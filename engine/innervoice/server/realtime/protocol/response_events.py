"""The events of one response, in the GA dialect: made from its ids, without event_id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from innervoice.server.realtime.items import ConversationItem
from innervoice.server.realtime.protocol.server_events import ServerEvent
from innervoice.server.realtime.protocol.session_config import VOICE, format_object
from innervoice.server.realtime.protocol.session_patch import FormatType

ResponseStatus = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]


@dataclass(frozen=True)
class ResponseHead:
    """The fields of a response that do not change while it runs."""

    id: str
    conversation_id: str | None
    modality: Literal["audio", "text"]
    max_output_tokens: int | Literal["inf"]
    output_format: FormatType
    metadata: dict[str, str] | None


@dataclass(frozen=True)
class ReplyEnding:
    """The way a response ended; reason: of a cancelled or incomplete one; error: type, code and message."""

    status: ResponseStatus
    reason: str | None = None
    error: dict[str, Any] | None = None

    def details(self) -> dict[str, Any] | None:
        """Return the response's `status_details`."""
        if self.status in ("in_progress", "completed"):
            return None
        made: dict[str, Any] = {"type": self.status}
        if self.reason is not None:
            made["reason"] = self.reason
        if self.error is not None:
            made["error"] = self.error
        return made


RUNNING = ReplyEnding("in_progress")


def response(
    head: ResponseHead, ending: ReplyEnding, output: list[ConversationItem], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a response as GA shows it."""
    return {
        "object": "realtime.response",
        "id": head.id,
        "status": ending.status,
        "status_details": ending.details(),
        "output": [item.to_json() for item in output],
        "conversation_id": head.conversation_id,
        "output_modalities": [head.modality],
        "max_output_tokens": head.max_output_tokens,
        "audio": {"output": {"format": format_object(head.output_format), "voice": VOICE}},
        "usage": usage,
        "metadata": head.metadata,
    }


def created(head: ResponseHead) -> ServerEvent:
    """Begin a response."""
    return {"type": "response.created", "response": response(head, RUNNING, [], None)}


def done(
    head: ResponseHead, ending: ReplyEnding, output: list[ConversationItem], usage: dict[str, Any] | None
) -> ServerEvent:
    """End a response."""
    return {"type": "response.done", "response": response(head, ending, output, usage)}


@dataclass(frozen=True)
class OutputEvents:
    """The events of one output item of a response."""

    response_id: str
    item_id: str
    output_index: int = 0

    def item_added(self, item: ConversationItem) -> ServerEvent:
        """Announce the item."""
        return self._of_item("response.output_item.added", item)

    def item_done(self, item: ConversationItem) -> ServerEvent:
        """Show the whole item."""
        return self._of_item("response.output_item.done", item)

    def part_added(self, modality: str) -> ServerEvent:
        """Announce the item's only part, still empty."""
        return self._of_part("response.content_part.added", part=_part(modality, ""))

    def part_done(self, modality: str, text: str) -> ServerEvent:
        """Show the whole part."""
        return self._of_part("response.content_part.done", part=_part(modality, text))

    def text_delta(self, modality: str, text: str, start_s: float) -> ServerEvent:
        """Add text; start_s: seconds into the reply's sound at which it begins to be spoken."""
        name = (
            "response.output_text.delta" if modality == "text" else "response.output_audio_transcript.delta"
        )
        return self._of_part(name, delta=text, start_time=round(start_s, 3))

    def text_done(self, modality: str, text: str) -> ServerEvent:
        """Show the whole text or transcript."""
        if modality == "text":
            return self._of_part("response.output_text.done", text=text)
        return self._of_part("response.output_audio_transcript.done", transcript=text)

    def audio_delta(self, sound: bytes) -> ServerEvent:
        """Add sound in the response's output format; it is base64 in JSON."""
        return self._of_part("response.output_audio.delta", delta=sound)

    def audio_done(self) -> ServerEvent:
        """End the sound."""
        return self._of_part("response.output_audio.done")

    def arguments_delta(self, call_id: str, text: str) -> ServerEvent:
        """Add to the arguments of a function call."""
        return self._of_call("response.function_call_arguments.delta", call_id, delta=text)

    def arguments_done(self, call_id: str, name: str, arguments: str) -> ServerEvent:
        """Show the whole arguments of a function call."""
        return self._of_call("response.function_call_arguments.done", call_id, name=name, arguments=arguments)

    def _of_item(self, type: str, item: ConversationItem) -> ServerEvent:
        return {
            "type": type,
            "response_id": self.response_id,
            "output_index": self.output_index,
            "item": item.to_json(),
        }

    def _of_part(self, type: str, **fields: Any) -> ServerEvent:
        return {
            "type": type,
            "response_id": self.response_id,
            "item_id": self.item_id,
            "output_index": self.output_index,
            "content_index": 0,
            **fields,
        }

    def _of_call(self, type: str, call_id: str, **fields: Any) -> ServerEvent:
        return {
            "type": type,
            "response_id": self.response_id,
            "item_id": self.item_id,
            "output_index": self.output_index,
            "call_id": call_id,
            **fields,
        }


def _part(modality: str, text: str) -> dict[str, str]:
    return {"type": "text", "text": text} if modality == "text" else {"type": "audio", "transcript": text}
