"""ChatBody: the JSON of a request for a chat completion. Fields that the server has no use for are ignored."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from innervoice.server.errors import ApiError

AnswerFormat = Literal["wav", "mp3", "flac", "opus", "pcm16"]


class Sound(Struct):
    """A recording within a message; the file says its format by itself."""

    data: bytes
    format: str = "wav"


class PartBody(Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    input_audio: Sound | None = None


class SoundId(Struct):
    """The sound of an earlier answer."""

    id: str


class FunctionBody(Struct):
    """The function that was called; arguments: JSON text."""

    name: str
    arguments: str


class CallBody(Struct):
    """A call of a tool by an earlier answer."""

    function: FunctionBody
    id: str = ""
    type: str = "function"


class MessageBody(Struct):
    """A message of the dialogue."""

    role: str
    content: str | list[PartBody] | None = None
    audio: SoundId | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None


class SoundWanted(Struct):
    """The sound that the client asks for; there is one voice, whatever its name."""

    format: AnswerFormat
    voice: Any = None


class StreamOptions(Struct):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatExtension(Struct):
    """Options that only this server has."""

    schedule: str | None = None


class ChatBody(Struct):
    """The request for a chat completion. Defaults are the API's own."""

    messages: list[MessageBody]
    model: str = ""
    modalities: list[Literal["text", "audio"]] | None = None
    audio: SoundWanted | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    innervoice: ChatExtension | None = None


_DECODER = msgspec.json.Decoder(ChatBody)


def read_chat_body(data: bytes) -> ChatBody:
    """Read a body. Raises ApiError, which names the field at fault."""
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        missing = re.search(r"missing required field `(\w+)`", message)
        if missing:
            param = f"{param}.{missing[1]}" if param else missing[1]
        code = "missing_required_parameter" if missing else "invalid_value"
        raise ApiError(code, f"{param or 'the body'} is wrong: {message}", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError("invalid_json", f"the body is no JSON: {error}") from None
