"""Items of a conversation as messages of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterable

from innervoice.runtime.conversation import Content, Message
from innervoice.server.realtime.items import ConversationItem, Part
from innervoice.server.realtime.protocol.session_config import rate_of
from innervoice.server.realtime.sound_format import decode
from innervoice.types import Text, ToolCall


def to_message(
    item: ConversationItem, calls: Iterable[ConversationItem] = (), *, can_call: bool = False
) -> Message | None:
    """Write an item as a message, None: it has nothing that the model could read.

    calls: function calls of the conversation. can_call: whether the model calls tools; of one that does not, a
    call's output is a system message that names the call, and the call itself is silent.
    """
    if item.type == "function_call":
        if not can_call or not _is_object(item.arguments):
            return None
        return Message("assistant", ToolCall(item.name, item.arguments), item_id=item.id)
    if item.type == "function_call_output" and can_call:
        return Message("tool", Text(item.output if item.output.strip() else "null"), item_id=item.id)
    if item.type == "function_call_output":
        return Message("system", Text(_outcome(item, calls)), item_id=item.id)
    assert item.role is not None, "a message has a role"
    parts = [made for part in item.content if (made := _content(part)) is not None]
    return Message(item.role, parts, item_id=item.id) if parts else None


def _content(part: Part) -> Content | None:
    if part.type == "input_audio" and part.audio is not None:
        samples = decode(part.audio, part.format)
        return (samples, rate_of(part.format)) if len(samples) else None
    text = part.transcript if part.type == "input_audio" else part.text
    return Text(text) if text and text.strip() else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _outcome(output: ConversationItem, calls: Iterable[ConversationItem]) -> str:
    for call in calls:
        if call.type == "function_call" and call.call_id == output.call_id:
            return f"Result of {call.name}({call.arguments}): {output.output}"
    return f"Result of a function: {output.output}"
