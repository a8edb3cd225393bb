"""ChatRequest: a body that was checked, as messages and options of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from innervoice.api.request_builder import TEXT_ONLY, RequestBuilder, RequestOptions
from innervoice.model.text.dialogue import Role
from innervoice.runtime.conversation import Message
from innervoice.schedule import PRESETS, Schedule
from innervoice.server.chat.body import AnswerFormat, ChatBody, MessageBody, PartBody
from innervoice.server.chat.formats import RATE
from innervoice.server.chat.kept import KeptAnswer, KeptAnswers
from innervoice.server.errors import ApiError
from innervoice.types import Sampling, Text, ToolCall

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "system",
    "function": "system",
}
EFFORTS: Mapping[str, Schedule | str] = {
    "none": "interleaved",
    "minimal": "interleaved",
    "low": Schedule.preset("stitch_s", reflection_budget=25),
    "medium": "stitch_s",
    "high": "think_first",
    "xhigh": "think_first",
}


@dataclass(frozen=True)
class ChatRequest:
    """A request as the engine takes it.

    messages: behind those of the session that `goes_on` stands for, or all without one. options: of the reply.
    sound: the format of the answer's sound, None: text alone. dialogue: a digest of all messages.
    """

    messages: Sequence[Message]
    goes_on: KeptAnswer | None
    options: Mapping[str, Any]
    sound: AnswerFormat | None
    is_streamed: bool
    with_usage: bool
    is_spoken: bool
    dialogue: bytes


@dataclass(frozen=True)
class ChatLimits:
    """The server's part of a reply's settings."""

    schedule: Schedule | str | None
    max_tokens: int


def read_chat_request(
    body: ChatBody, kept: KeptAnswers, builder: RequestBuilder, limits: ChatLimits
) -> ChatRequest:
    """Check a body against the model. Raises ApiError, which names the field at fault."""
    _refuse_unsupported(body)
    sound = _read_sound(body, builder)
    earlier = [_find_kept(message, i, kept) for i, message in enumerate(body.messages)]
    last = max((i for i, one in enumerate(earlier) if one is not None), default=None)
    goes_on = None if last is None else earlier[last]
    rest = 0
    if last is not None and goes_on is not None and goes_on.dialogue == _digest(body.messages[:last]):
        rest = last + 1
    else:
        goes_on = None

    # The first system message stands in place of the model's own, and is no message of the dialogue.
    options = _read_options(body, sound, builder, limits)
    first = body.messages[0] if body.messages else None
    if first is not None and ROLES.get(first.role) == "system":
        options["system"] = _text_of(first, 0)
        rest = max(rest, 1)
    tools = _read_tools(body)
    can_call = builder.vocabulary.tool_open is not None
    if can_call:
        options |= tools
    made = [
        _read_message(message, i, earlier[i], can_call=can_call)
        for i, message in enumerate(body.messages)
        if i >= rest
    ]
    if not any(made) and goes_on is None:
        raise ApiError("invalid_value", "messages has nothing to answer: add a message of a user", "messages")
    return ChatRequest(
        messages=[message for message in made if message is not None],
        goes_on=goes_on,
        options=options,
        sound=sound,
        is_streamed=body.stream,
        with_usage=body.stream_options is not None and body.stream_options.include_usage,
        is_spoken=any(_has_sound(message) for message in body.messages),
        dialogue=_digest(body.messages),
    )


def _refuse_unsupported(body: ChatBody) -> None:
    if body.n not in (None, 1):
        raise ApiError("invalid_value", f"n is {body.n}: the server makes 1 answer a request", "n")
    if body.stop:
        raise ApiError("unsupported_parameter", "stop is not supported: leave it out", "stop")
    if body.logprobs:
        raise ApiError("unsupported_parameter", "logprobs are not supported: leave it out", "logprobs")
    if body.response_format is not None and body.response_format.get("type") != "text":
        kind = str(body.response_format.get("type"))[:80]
        raise ApiError(
            "unsupported_parameter",
            f"response_format is of type {kind!r}: use 'text' or leave it out",
            "response_format",
        )
    for name in ("max_completion_tokens", "max_tokens"):
        asked = getattr(body, name)
        if asked is not None and asked < 1:
            raise ApiError("invalid_value", f"{name} is {asked}: it must be 1 or more", name)


def _read_sound(body: ChatBody, builder: RequestBuilder) -> AnswerFormat | None:
    if "audio" not in (body.modalities or ("text",)):
        return None
    if builder.vocabulary.speech is None:
        raise ApiError("invalid_value", "the model does not speak: ask for modalities ['text']", "modalities")
    if body.audio is None:
        raise ApiError("missing_required_parameter", "modalities has audio: give audio.format too", "audio")
    if body.stream and body.audio.format != "pcm16":
        raise ApiError(
            "invalid_value",
            f"audio.format is {body.audio.format!r}: a streamed answer is pcm16",
            "audio.format",
        )
    return body.audio.format


def _read_options(
    body: ChatBody, sound: AnswerFormat | None, builder: RequestBuilder, limits: ChatLimits
) -> dict[str, Any]:
    asked = body.max_completion_tokens or body.max_tokens or limits.max_tokens
    try:
        sampling = Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            seed=None if body.seed is None else body.seed % 2**63,
            max_new_tokens=min(asked, limits.max_tokens),
        )
    except ValueError as error:
        raise ApiError("invalid_value", str(error), str(error).split()[0].removeprefix("Sampling.")) from None
    schedule = _read_schedule(body, builder, limits, can_speak=sound is not None)
    return {
        "sampling": sampling,
        "schedule": TEXT_ONLY if sound is None else schedule,
        "output_rate": RATE,
        "output_format": "int16",
        "realtime": False,  # so that the same request with the same seed has the same answer
    }


def _read_schedule(
    body: ChatBody, builder: RequestBuilder, limits: ChatLimits, *, can_speak: bool
) -> Schedule | str | None:
    """The schedule that the client named, or that stands for its effort, or else the server's.

    Only a name is checked where the answer is text alone, which has no schedule.
    """
    named = body.innervoice.schedule if body.innervoice is not None else None
    if named is not None and named not in PRESETS:
        raise ApiError(
            "invalid_value",
            f"there is no schedule {named[:80]!r}: use {', '.join(PRESETS)}",
            "innervoice.schedule",
        )
    if not can_speak:
        return None
    wanted = named or EFFORTS.get(body.reasoning_effort or "") or limits.schedule
    try:
        builder.compile(wanted)
    except ValueError as error:
        if named is None and wanted is not limits.schedule:
            return limits.schedule  # an effort that the model cannot make
        raise ApiError("invalid_value", str(error), "innervoice.schedule") from None
    return wanted


def _read_tools(body: ChatBody) -> dict[str, Any]:
    """The tools of a request and the choice among them. Raises ApiError."""
    made: dict[str, Any] = {"tools": body.tools or [], "tool_choice": body.tool_choice or "auto"}
    made["parallel_tool_calls"] = body.parallel_tool_calls is not False
    try:
        RequestOptions(**made)
    except ValueError as error:
        param = "tool_choice" if str(error).startswith("tool_choice") else "tools"
        raise ApiError("invalid_value", str(error), param) from None
    return made


def _read_calls(message: MessageBody, index: int) -> list[ToolCall]:
    made = []
    for i, call in enumerate(message.tool_calls or ()):
        if call.type != "function":
            raise _wrong_part(call.type, f"messages[{index}].tool_calls[{i}]", "function")
        try:
            is_object = isinstance(json.loads(call.function.arguments), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ApiError(
                "invalid_value",
                f"messages[{index}].tool_calls[{i}].function.arguments is no JSON object: send what was answered",
                f"messages[{index}].tool_calls[{i}].function.arguments",
            )
        made.append(ToolCall(call.function.name, call.function.arguments))
    return made


def _find_kept(message: MessageBody, index: int, kept: KeptAnswers) -> KeptAnswer | None:
    if message.role != "assistant" or message.audio is None:
        return None
    found = kept.find(message.audio.id)
    if found is None:
        raise ApiError(
            "audio_not_found",
            f"audio {message.audio.id[:80]!r} was not found: answers are kept for an hour; send its transcript "
            "as content instead",
            f"messages[{index}].audio.id",
        )
    return found


def _read_message(
    message: MessageBody, index: int, earlier: KeptAnswer | None, *, can_call: bool
) -> Message | None:
    """The message as the engine takes it, None for an empty one of the assistant."""
    if message.role not in ROLES:
        raise ApiError(
            "invalid_value",
            f"messages[{index}].role is {message.role[:80]!r}: use {', '.join(ROLES)}",
            f"messages[{index}].role",
        )
    role = ROLES[message.role]
    if role != "user":
        text = earlier.transcript if earlier is not None else _text_of(message, index)
        if can_call and message.role in ("tool", "function"):
            return Message("tool", Text(text if text.strip() else "null"))
        calls = _read_calls(message, index) if can_call and role == "assistant" else []
        content: list[Text | ToolCall] = [Text(text)] if text.strip() else []
        content += calls
        return Message(role, content) if content else None
    parts: list[Text | bytes] = []
    for i, part in enumerate(_parts_of(message)):
        if part.type == "input_audio" and part.input_audio is not None:
            parts.append(part.input_audio.data)
        elif part.type == "text" and part.text is not None:
            parts.append(Text(part.text))
        else:
            raise _wrong_part(part.type, f"messages[{index}].content[{i}]", "text or input_audio")
    if not parts:
        raise ApiError("invalid_value", "a message of a user is empty", f"messages[{index}].content")
    return Message(role, parts)


def _text_of(message: MessageBody, index: int) -> str:
    texts = []
    for i, part in enumerate(_parts_of(message)):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal") or text is None:
            raise _wrong_part(part.type, f"messages[{index}].content[{i}]", "text")
        texts.append(text)
    return "\n".join(texts)


def _parts_of(message: MessageBody) -> Sequence[PartBody]:
    if message.content is None:
        return ()
    if isinstance(message.content, str):
        return (PartBody(type="text", text=message.content),)
    return message.content


def _wrong_part(kind: str, param: str, remedy: str) -> ApiError:
    return ApiError(
        "invalid_value", f"{param} is of type {kind[:80]!r} or has no content: use {remedy}", param
    )


def _has_sound(message: MessageBody) -> bool:
    return isinstance(message.content, list) and any(part.type == "input_audio" for part in message.content)


def _digest(messages: Sequence[MessageBody]) -> bytes:
    return sha256(msgspec.json.encode(messages, order="sorted")).digest()
