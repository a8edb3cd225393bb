"""Items as clients write them, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from innervoice.server.errors import ApiError
from innervoice.server.realtime.items import ConversationItem, ItemRole, Part
from innervoice.server.realtime.protocol.checked import convert
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.session_patch import FormatType
from innervoice.server.realtime.sound_format import decode

GivenPartType = Literal["input_text", "input_audio", "output_text", "output_audio", "text", "audio"]
ItemId = Annotated[str, Meta(min_length=1, max_length=256)]
MAX_CONTENT = 1024


class PartInput(Struct, frozen=True):
    """One part of a message's content."""

    type: GivenPartType
    text: str | None = None
    audio: bytes | None = None
    transcript: str | None = None


class MessageInput(Struct, tag_field="type", tag="message", frozen=True):
    """A message of a role; a system message may also come from the developer."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[PartInput], Meta(max_length=MAX_CONTENT)] | str
    id: ItemId | None = None


class CallInput(Struct, tag_field="type", tag="function_call", frozen=True):
    """A call of a function; arguments: JSON text."""

    name: str
    arguments: str
    call_id: str | None = None
    id: ItemId | None = None


class CallOutputInput(Struct, tag_field="type", tag="function_call_output", frozen=True):
    """The result of a call."""

    call_id: str
    output: str
    id: ItemId | None = None


class ReferenceInput(Struct, tag_field="type", tag="item_reference", frozen=True):
    """An item of the conversation, by its id."""

    id: ItemId


NewItem = MessageInput | CallInput | CallOutputInput
TYPES = ("message", "function_call", "function_call_output")


def read_item(
    given: Mapping[str, Any], path: str, max_text: int, sound: FormatType = "audio/pcm"
) -> ConversationItem:
    """Make an item of the JSON that a client sent.

    path: where it stands in its event; max_text: characters of its text; sound: format of its sound.

    Raises ApiError, which names the field.
    """
    found = _convert(given, NewItem, path, TYPES)
    if isinstance(found, MessageInput):
        item = _message(found, path, sound)
    elif isinstance(found, CallInput):
        call_id = found.call_id or new_id("call")
        item = ConversationItem(
            found.id or new_id("item"),
            "function_call",
            name=found.name,
            call_id=call_id,
            arguments=found.arguments,
        )
    else:
        item = ConversationItem(
            found.id or new_id("item"), "function_call_output", call_id=found.call_id, output=found.output
        )
    if item.num_characters > max_text:
        message = f"The item has {item.num_characters} characters, and at most {max_text} are allowed."
        raise ApiError("invalid_value", message, path)
    return item


def read_input(
    given: Mapping[str, Any], path: str, max_text: int, sound: FormatType = "audio/pcm"
) -> ConversationItem | str:
    """Make an item, or the id of an item that is referred to. Raises ApiError."""
    if given.get("type") == "item_reference":
        return convert(given, ReferenceInput, path).id
    return read_item(given, path, max_text, sound)


def _convert(given: Mapping[str, Any], kind: Any, path: str, types: tuple[str, ...]) -> Any:
    kinds = given.get("type", "message" if "role" in given else None)
    if kinds is not None and kinds not in types:
        raise ApiError(
            "invalid_value",
            f"An item cannot be of type {str(kinds)[:80]!r}: use {', '.join(types)}.",
            f"{path}.type",
        )
    return convert({**given, "type": kinds} if kinds else given, kind, path)


def _message(found: MessageInput, path: str, sound: FormatType) -> ConversationItem:
    role: ItemRole = "system" if found.role == "developer" else found.role
    given = [PartInput("input_text", found.content)] if isinstance(found.content, str) else found.content
    parts = [_part(role, part, f"{path}.content[{i}]", sound) for i, part in enumerate(given)]
    return ConversationItem(found.id or new_id("item"), "message", role=role, content=parts)


def _part(role: ItemRole, part: PartInput, path: str, sound: FormatType) -> Part:
    if part.type in ("input_text", "output_text", "text"):
        if part.text is None:
            raise _missing(f"{path}.text")
        return Part("output_text" if role == "assistant" else "input_text", text=part.text)
    if role == "assistant" and part.type in ("output_audio", "audio"):
        if part.transcript is None and part.text is None:
            raise _missing(f"{path}.transcript")
        return Part("output_audio", text=part.transcript or part.text or "")
    if role == "user" and part.type == "input_audio":
        if part.audio is None and part.transcript is None:
            raise _missing(f"{path}.audio")
        if part.audio is not None:
            decode(part.audio, sound, f"{path}.audio")
        return Part("input_audio", transcript=part.transcript, audio=part.audio, format=sound)
    raise ApiError("invalid_value", f"A {role} message has no part of type {part.type!r}.", f"{path}.type")


def _missing(param: str) -> ApiError:
    return ApiError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def read_metadata(given: Mapping[str, Any] | None, path: str) -> dict[str, str] | None:
    """Check the metadata of a response: at most 16 pairs, keys of 64 and values of 512 characters."""
    if given is None:
        return None
    if len(given) > 16:
        raise ApiError("invalid_value", f"'{path}' has {len(given)} pairs: use at most 16.", path)
    for key, value in given.items():
        if not isinstance(value, str) or len(value) > 512 or len(key) > 64:
            raise ApiError(
                "invalid_value",
                f"'{path}' needs keys of at most 64 and string values of at most 512 characters.",
                path,
            )
    return dict(given)
