"""The JSON of chat completions and of their chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from innervoice.types import FinishReason, ToolCall, Usage

_REASONS: dict[FinishReason, str] = {"length": "length", "timeout": "length", "tool_calls": "tool_calls"}


@dataclass(frozen=True)
class Envelope:
    """The fields that stand around every completion and chunk of one answer."""

    model: str
    completion_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex[:24]}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Return one piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._around("chat.completion.chunk", [choice])

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the piece with the token counts, which stands behind all others."""
        return self._around("chat.completion.chunk", []) | {"usage": usage}

    def completion(
        self, message: dict[str, Any], finish_reason: str, usage: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a whole answer."""
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._around("chat.completion", [choice]) | {"usage": usage}

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def finish_reason_of(reason: FinishReason) -> str:
    """The API's name for the end of a reply."""
    return _REASONS.get(reason, "stop")


def call_of(call: ToolCall) -> dict[str, Any]:
    """Return a call of a tool, under a new id."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def usage_of(usage: Usage, *, is_spoken: bool) -> dict[str, Any]:
    """Return token counts. is_spoken: the prompt has recordings, so its tokens count as sound."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.total_new_tokens,
        "total_tokens": usage.prompt_tokens + usage.total_new_tokens,
        "prompt_tokens_details": {
            "audio_tokens": usage.prompt_tokens if is_spoken else 0,
            "cached_tokens": usage.cached_tokens,
        },
        "completion_tokens_details": {
            "audio_tokens": usage.speech_tokens,
            "reasoning_tokens": usage.reflection_tokens,
        },
    }
