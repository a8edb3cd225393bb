"""SessionConfig: the effective settings of a session, what an update changes in them, and their echo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from msgspec import UNSET, structs

from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.checked import convert
from innervoice.server.realtime.protocol.session_patch import (
    AudioFormat,
    AudioPatch,
    Extension,
    FormatType,
    InputPatch,
    OutputPatch,
    Reasoning,
    SessionPatch,
    TranscriptionPatch,
    TurnDetectionPatch,
    to_ga,
)

VOICE = "default"
MAX_TOOLS = 128
MAX_TEXT = 256_000
EVENTS = ("reflection", "timeline", "playback")
Turns = Mapping[str, Any]
SERVER_VAD: Turns = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
SEMANTIC_VAD: Turns = {
    "type": "semantic_vad",
    "eagerness": "auto",
    "create_response": True,
    "interrupt_response": True,
}
KINDS: Mapping[str, Turns] = {"server_vad": SERVER_VAD, "semantic_vad": SEMANTIC_VAD}


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session.

    turn_detection: all fields of its type, None: the client ends turns. can_transcribe: whether the server
    transcribes users. events: kinds of `innervoice.*` events that the client asked for.
    """

    model: str
    instructions: str = ""
    output_modality: Literal["audio", "text"] = "audio"
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: int | Literal["inf"] = "inf"
    temperature: float | None = None
    truncation: str | Mapping[str, Any] = "auto"
    effort: str | None = None
    input_format: FormatType = "audio/pcm"
    output_format: FormatType = "audio/pcm"
    turn_detection: Turns | None = field(default_factory=lambda: SERVER_VAD)
    transcription: Mapping[str, Any] | None = None
    schedule: str | None = None
    reflection_budget: int | None = None
    events: frozenset[str] = frozenset()
    can_transcribe: bool = False

    def merged(self, session: Mapping[str, Any], path: str = "session") -> SessionConfig:
        """Return the settings with the fields of an update, in the GA shape or with the beta's flat fields.

        path: where the update stands in its event. Raises ApiError, which names the field.
        """
        patch = convert(to_ga(session), SessionPatch, path)
        changed = self._with_text(patch, path)
        changed = changed._with_tools(patch, path)
        if isinstance(patch.audio, AudioPatch):
            changed = changed._with_input(patch.audio.input, f"{path}.audio.input")
            changed = changed._with_output(patch.audio.output, f"{path}.audio.output")
        if isinstance(patch.innervoice, Extension):
            changed = changed._with_extension(patch.innervoice)
        return changed

    def _with_text(self, patch: SessionPatch, path: str) -> SessionConfig:
        made = self
        if patch.model:
            made = replace(made, model=patch.model[:256])
        if patch.instructions is not UNSET:
            text = patch.instructions or ""
            if len(text) > MAX_TEXT:
                raise too_long(f"{path}.instructions", len(text), MAX_TEXT)
            made = replace(made, instructions=text)
        if patch.output_modalities is not UNSET:
            made = replace(made, output_modality=one_modality(patch.output_modalities))
        if patch.max_output_tokens is not UNSET:
            made = replace(made, max_output_tokens=patch.max_output_tokens or "inf")
        if patch.temperature is not UNSET:
            made = replace(made, temperature=patch.temperature)
        if patch.truncation is not UNSET:
            made = replace(made, truncation=_truncation(patch.truncation))
        if isinstance(patch.reasoning, Reasoning):
            made = replace(made, effort=patch.reasoning.effort)
        return made

    def _with_tools(self, patch: SessionPatch, path: str) -> SessionConfig:
        made = self
        if patch.tools is not UNSET:
            made = replace(made, tools=checked_tools(patch.tools or [], f"{path}.tools"))
        if patch.tool_choice is not UNSET:
            made = replace(made, tool_choice=checked_choice(patch.tool_choice, f"{path}.tool_choice"))
        if patch.parallel_tool_calls is not UNSET:
            made = replace(made, parallel_tool_calls=patch.parallel_tool_calls is not False)
        return made

    def _with_input(self, patch: Any, path: str) -> SessionConfig:
        made = self
        if not isinstance(patch, InputPatch):
            return made
        if patch.format is not UNSET:
            made = replace(made, input_format=checked_format(patch.format, f"{path}.format"))
        if patch.transcription is None:
            made = replace(made, transcription=None)
        if isinstance(patch.transcription, TranscriptionPatch) and self.can_transcribe:
            given = {k: v for k, v in structs.asdict(patch.transcription).items() if v is not UNSET}
            merged = {**(self.transcription or {}), **given}
            made = replace(made, transcription={k: v for k, v in merged.items() if v is not None})
        if patch.turn_detection is None:
            made = replace(made, turn_detection=None)
        if isinstance(patch.turn_detection, TurnDetectionPatch):
            made = replace(made, turn_detection=_merged_turns(self.turn_detection, patch.turn_detection))
        return made

    def _with_output(self, patch: Any, path: str) -> SessionConfig:
        if not isinstance(patch, OutputPatch) or patch.format is UNSET:
            return self
        return replace(self, output_format=checked_format(patch.format, f"{path}.format"))

    def _with_extension(self, patch: Extension) -> SessionConfig:
        made = self
        if patch.events is not UNSET:
            made = replace(made, events=frozenset(patch.events or ()))
        if patch.schedule is not UNSET:
            made = replace(made, schedule=patch.schedule)
        if patch.reflection_budget is not UNSET:
            made = replace(made, reflection_budget=patch.reflection_budget)
        return made

    def echo(self, session_id: str, expires_at: int) -> dict[str, Any]:
        """Return the session as GA shows it, with the values that are in effect."""
        beside = {} if self.temperature is None else {"temperature": self.temperature}
        return beside | {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": self.model,
            "output_modalities": [self.output_modality],
            "instructions": self.instructions,
            "tools": [dict(tool) for tool in self.tools],
            "tool_choice": self.tool_choice,
            "max_output_tokens": self.max_output_tokens,
            "tracing": None,
            "truncation": self.truncation,
            "prompt": None,
            "expires_at": expires_at,
            "include": None,
            "audio": {
                "input": {
                    "format": format_object(self.input_format),
                    "transcription": None if self.transcription is None else dict(self.transcription),
                    "noise_reduction": None,
                    "turn_detection": None if self.turn_detection is None else dict(self.turn_detection),
                },
                "output": {"format": format_object(self.output_format), "voice": VOICE, "speed": 1.0},
            },
        }


def too_long(param: str, found: int, most: int) -> ApiError:
    """Return the refusal of a text, in characters, or a list, in entries."""
    return ApiError("invalid_value", f"'{param}' has {found}, and at most {most} are allowed.", param)


def one_modality(given: Any) -> Literal["audio", "text"]:
    """Choose between text alone and sound, which always has a transcript."""
    return "text" if given == ["text"] else "audio"


def checked_format(given: Any, param: str) -> FormatType:
    """Return the type of a format. Raises ApiError for a rate that no client of the protocol uses."""
    if given is None:
        return "audio/pcm"
    if not isinstance(given, AudioFormat):
        return cast(FormatType, given)
    rate = rate_of(given.type)
    if given.rate not in (None, rate):
        raise ApiError(
            "invalid_value", f"{given.type} has {rate} Hz: '{param}.rate' is {given.rate}.", f"{param}.rate"
        )
    return given.type


def rate_of(kind: FormatType) -> int:
    """Return the rate of a format in Hz."""
    return 24000 if kind == "audio/pcm" else 8000


def format_object(kind: FormatType) -> dict[str, Any]:
    """Return a format as GA shows it: G.711 has no rate field."""
    return {"type": kind, "rate": 24000} if kind == "audio/pcm" else {"type": kind}


def checked_tools(given: list[dict[str, Any]], param: str) -> tuple[Mapping[str, Any], ...]:
    """Check a list of tools. Raises ApiError for other types than functions, and for a tool without a name."""
    if len(given) > MAX_TOOLS:
        raise too_long(param, len(given), MAX_TOOLS)
    for i, tool in enumerate(given):
        if tool.get("type", "function") != "function":
            raise ApiError(
                "invalid_value",
                f"Tools of type {tool['type']!r} are not supported: use 'function'.",
                f"{param}[{i}].type",
            )
        _check_function(tool, f"{param}[{i}]")
    return tuple({**tool, "type": "function"} for tool in given)


def _check_function(tool: Mapping[str, Any], param: str) -> None:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise ApiError(
            "invalid_value", f"A function's name is {name!r}: use 1 to 128 characters.", f"{param}.name"
        )
    if not isinstance(tool.get("description", ""), str | None):
        raise ApiError("invalid_value", "A function's description must be a string.", f"{param}.description")


def checked_choice(given: Any, param: str) -> str | Mapping[str, Any]:
    """Check a choice of tools: a mode, or an object with a type and a name."""
    if given is None:
        return "auto"
    if isinstance(given, str) and given in ("auto", "none", "required"):
        return given
    if isinstance(given, dict) and given.get("type") == "function" and isinstance(given.get("name"), str):
        return {"type": "function", "name": given["name"]}
    raise ApiError("invalid_value", f"{str(given)[:80]!r} is no choice of tools.", param)


def _truncation(given: Any) -> str | Mapping[str, Any]:
    """Truncation as it is in effect: automatic for all that is neither "disabled" nor a ratio from 0 to 1."""
    if given == "disabled":
        return "disabled"
    ratio = given.get("retention_ratio") if isinstance(given, dict) else None
    if isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 <= ratio <= 1:
        return {"type": "retention_ratio", "retention_ratio": float(ratio)}
    return "auto"


def _merged_turns(current: Turns | None, patch: TurnDetectionPatch) -> Turns | None:
    """Merge a part of turn detection: other fields stay while the type does."""
    if patch.type == "none":
        return None
    kind = patch.type if patch.type is not UNSET else (current or SERVER_VAD)["type"]
    base = current if current is not None and current["type"] == kind else KINDS[kind]
    given = {key: value for key, value in structs.asdict(patch).items() if value is not UNSET}
    merged = dict(base)
    for key in base:
        if key != "type" and key in given:
            merged[key] = KINDS[kind][key] if given[key] is None else given[key]
    return merged
