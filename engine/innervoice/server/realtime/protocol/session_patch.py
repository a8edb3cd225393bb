"""The fields that a client may set in a session, each with its type, and those of one response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MaxTokens = Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"]
Modality = Literal["text", "audio"]
Modalities = Annotated[list[Modality], Meta(min_length=1, max_length=2)]
FormatType = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
ToolChoice = str | dict[str, Any] | None
BETA_FORMATS: Mapping[str, FormatType] = {
    "pcm16": "audio/pcm",
    "g711_ulaw": "audio/pcmu",
    "g711_alaw": "audio/pcma",
}


class AudioFormat(Struct, frozen=True):
    """A format of sound, and its rate in Hz."""

    type: FormatType = "audio/pcm"
    rate: int | None = None


class TurnDetectionPatch(Struct, frozen=True):
    """The fields of turn detection that an update changes."""

    type: Literal["server_vad", "semantic_vad", "none"] | UnsetType = UNSET
    threshold: Annotated[float, Meta(ge=0, le=1)] | UnsetType | None = UNSET
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=10000)] | UnsetType | None = UNSET
    silence_duration_ms: Annotated[int, Meta(ge=0, le=60000)] | UnsetType | None = UNSET
    idle_timeout_ms: Annotated[int, Meta(ge=1000, le=600000)] | UnsetType | None = UNSET
    eagerness: Literal["low", "medium", "high", "auto"] | UnsetType | None = UNSET
    create_response: bool | UnsetType | None = UNSET
    interrupt_response: bool | UnsetType | None = UNSET


class TranscriptionPatch(Struct, frozen=True):
    """The fields of the user's transcription that an update changes."""

    model: str | UnsetType | None = UNSET
    language: str | UnsetType | None = UNSET
    prompt: str | UnsetType | None = UNSET


class InputPatch(Struct, frozen=True):
    """The fields of the user's sound that an update changes."""

    format: AudioFormat | FormatType | UnsetType | None = UNSET
    transcription: TranscriptionPatch | UnsetType | None = UNSET
    noise_reduction: Any = UNSET
    turn_detection: TurnDetectionPatch | UnsetType | None = UNSET


class OutputPatch(Struct, frozen=True):
    """The fields of the reply's sound that an update changes; a voice and a speed are accepted and unused."""

    format: AudioFormat | FormatType | UnsetType | None = UNSET
    voice: Any = UNSET
    speed: Any = UNSET


class AudioPatch(Struct, frozen=True):
    """The fields of sound in both directions that an update changes."""

    input: InputPatch | UnsetType | None = UNSET
    output: OutputPatch | UnsetType | None = UNSET


class Reasoning(Struct, frozen=True):
    """The effort with which the model reflects."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class Extension(Struct, frozen=True):
    """The innervoice object of a session or a response: events that are wanted, the schedule's name, and the most
    tokens that each of its reflections may have.
    """

    events: list[Literal["reflection", "timeline", "playback"]] | UnsetType | None = UNSET
    schedule: str | UnsetType | None = UNSET
    reflection_budget: Annotated[int, Meta(ge=1, le=4096)] | UnsetType | None = UNSET


class SessionPatch(Struct, frozen=True):
    """The fields of a session that an update changes, in the GA shape."""

    type: Literal["realtime"] | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    instructions: str | UnsetType | None = UNSET
    output_modalities: Modalities | UnsetType | None = UNSET
    tools: list[dict[str, Any]] | UnsetType | None = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    max_output_tokens: MaxTokens | UnsetType | None = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType | None = UNSET
    truncation: Any = UNSET
    reasoning: Reasoning | UnsetType | None = UNSET
    audio: AudioPatch | UnsetType | None = UNSET
    innervoice: Extension | UnsetType | None = UNSET


class ResponsePatch(Struct, frozen=True):
    """The overrides of `response.create`, in the GA shape."""

    instructions: str | None = None
    output_modalities: Modalities | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    conversation: Literal["auto", "none"] | None = None
    metadata: dict[str, Any] | None = None
    input: list[dict[str, Any]] | None = None
    reasoning: Reasoning | None = None
    audio: AudioPatch | None = None
    innervoice: Extension | None = None


def to_ga(session: Mapping[str, Any]) -> dict[str, Any]:
    """Move the flat fields of the beta, wherever they stand, to where GA has them.

    A field that is also given in the GA shape stays as it is there.
    """
    made = {key: value for key, value in session.items() if key not in _FLAT}
    for name, path in _FLAT.items():
        if name in session:
            _put(made, path, _renamed(name, session[name]))
    if isinstance(made.get("output_modalities"), list):
        made["output_modalities"] = spoken_modalities(made["output_modalities"])
    return made


def spoken_modalities(given: list[Any]) -> list[Any]:
    """Write text and audio together as GA does: sound, which always has a transcript."""
    return ["audio"] if set(map(str, given)) == {"text", "audio"} else given


_FLAT: Mapping[str, tuple[str, ...]] = {
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_format": ("audio", "input", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
}


def _renamed(name: str, value: Any) -> Any:
    if name.endswith("audio_format") and isinstance(value, str):
        return {"type": BETA_FORMATS.get(value, value)}
    return value


def _put(made: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inner = made.get(name)
        if inner is not None and not isinstance(inner, dict):
            return  # of a wrong type: the check of the whole refuses it
        made[name] = dict(inner or {})
        made = made[name]
    made.setdefault(path[-1], value)
