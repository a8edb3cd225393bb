"""ReplyRequest: a `response.create` that was checked against the session, as the engine's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET

from innervoice.api.request_builder import TEXT_ONLY, RequestBuilder
from innervoice.schedule import PRESETS, Schedule
from innervoice.server.errors import ApiError
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.protocol.checked import convert
from innervoice.server.realtime.protocol.ids import new_id
from innervoice.server.realtime.protocol.item_input import read_input, read_metadata
from innervoice.server.realtime.protocol.response_events import ResponseHead
from innervoice.server.realtime.protocol.session_config import (
    MAX_TEXT,
    SessionConfig,
    checked_choice,
    checked_format,
    checked_tools,
    one_modality,
    rate_of,
    too_long,
)
from innervoice.server.realtime.protocol.session_patch import (
    AudioPatch,
    Extension,
    OutputPatch,
    ResponsePatch,
    to_ga,
)
from innervoice.types import Sampling

PATH = "response"
EFFORTS: Mapping[str, Schedule | str] = {
    "none": "interleaved",
    "minimal": "interleaved",
    "low": Schedule.preset("stitch_s", reflection_budget=25),
    "medium": "stitch_s",
    "high": "think_first",
    "xhigh": "think_first",
}
RETENTION_RATIO = 0.8


@dataclass(frozen=True)
class Defaults:
    """The server's part of a reply's settings.

    schedule: of a reply whose client asks for none; max_tokens: ceiling of a reply. system: in place of
    instructions that are empty.
    """

    schedule: Schedule | str | None = None
    max_tokens: int = 2000
    system: str | None = None


@dataclass(frozen=True)
class ReplyRequest:
    """A checked request for a reply.

    context: the items that it answers, None: the conversation. is_in_band: whether the reply becomes part of
    the conversation. options: for the engine.
    """

    head: ResponseHead
    options: Mapping[str, Any]
    context: tuple[ConversationItem, ...] | None
    is_in_band: bool

    @property
    def may_call(self) -> bool:
        """Whether the reply may call tools."""
        return bool(self.options.get("tools")) and self.options["tool_choice"] != "none"


def read_request(
    given: Mapping[str, Any] | None,
    config: SessionConfig,
    items: ItemList,
    conversation_id: str,
    builder: RequestBuilder,
    defaults: Defaults,
) -> ReplyRequest:
    """Check the overrides of a `response.create`, None: there are none. Raises ApiError."""
    patch = convert(to_ga(given or {}), ResponsePatch, PATH)
    tools = _tools(patch, config)
    if patch.instructions is not None and len(patch.instructions) > MAX_TEXT:
        raise too_long(f"{PATH}.instructions", len(patch.instructions), MAX_TEXT)
    is_in_band = patch.conversation != "none"
    modality = config.output_modality
    if patch.output_modalities is not None:
        modality = one_modality(patch.output_modalities)
    if builder.vocabulary.speech is None:
        modality = "text"
    tokens = patch.max_output_tokens or config.max_output_tokens
    head = ResponseHead(
        id=new_id("resp"),
        conversation_id=conversation_id if is_in_band else None,
        modality=modality,
        max_output_tokens=tokens,
        output_format=_format(patch, config),
        metadata=read_metadata(patch.metadata, f"{PATH}.metadata"),
    )
    return ReplyRequest(
        head=head,
        options=_options(patch, config, head, builder, defaults) | (tools if can_call(builder) else {}),
        context=_context(patch, items, config),
        is_in_band=is_in_band,
    )


def _format(patch: ResponsePatch, config: SessionConfig) -> Any:
    audio = patch.audio
    if isinstance(audio, AudioPatch) and isinstance(audio.output, OutputPatch) and audio.output.format:
        return checked_format(audio.output.format, f"{PATH}.audio.output.format")
    return config.output_format


def _context(
    patch: ResponsePatch, items: ItemList, config: SessionConfig
) -> tuple[ConversationItem, ...] | None:
    if patch.input is None:
        return None
    made = []
    for i, given in enumerate(patch.input):
        item = read_input(given, f"{PATH}.input[{i}]", MAX_TEXT, config.input_format)
        if isinstance(item, str):
            found = items.find(item)
            if found is None:
                raise ApiError(
                    "invalid_value", f"The conversation has no item {item[:80]!r}.", f"{PATH}.input[{i}].id"
                )
            item = found
        made.append(item)
    return tuple(made)


def can_call(builder: RequestBuilder) -> bool:
    """Whether the model's checkpoint names tokens of a call."""
    return builder.vocabulary.tool_open is not None


def _tools(patch: ResponsePatch, config: SessionConfig) -> dict[str, Any]:
    """The tools of a reply and the choice among them. A session's choice of a tool that is not there is none.

    Raises ApiError for a response's.
    """
    own = checked_tools(patch.tools or [], f"{PATH}.tools")
    tools = config.tools if patch.tools is None else own
    choice = checked_choice(patch.tool_choice, f"{PATH}.tool_choice")
    if patch.tool_choice is None:
        choice = config.tool_choice
    names = [tool["name"] for tool in tools]
    if isinstance(choice, Mapping) and choice["name"] not in names:
        if patch.tool_choice is not None:
            raise ApiError(
                "invalid_value", f"There is no tool {choice['name'][:80]!r} to choose.", f"{PATH}.tool_choice"
            )
        choice = "auto"
    if choice == "required" and not tools:
        choice = "auto"
    parallel = patch.parallel_tool_calls
    return {
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": config.parallel_tool_calls if parallel is None else parallel,
    }


def _options(
    patch: ResponsePatch,
    config: SessionConfig,
    head: ResponseHead,
    builder: RequestBuilder,
    defaults: Defaults,
) -> dict[str, Any]:
    most = defaults.max_tokens if head.max_output_tokens == "inf" else head.max_output_tokens
    temperature = config.temperature if patch.temperature is None else patch.temperature
    made: dict[str, Any] = {
        "sampling": Sampling(temperature=temperature, max_new_tokens=min(most, defaults.max_tokens)),
        "schedule": _limited(_schedule(patch, config, head.modality, builder, defaults), patch, config),
        "system": config.instructions.strip() or defaults.system,
        "output_rate": rate_of(head.output_format),
        "output_format": "int16",
    }
    if patch.instructions is not None and patch.instructions.strip():
        made["instructions"] = patch.instructions
    return made


def truncation_options(config: SessionConfig) -> dict[str, Any]:
    """Options for a history that has become too long."""
    if config.truncation == "disabled":
        return {"truncation": "disabled"}
    ratio = config.truncation.get("retention_ratio") if isinstance(config.truncation, Mapping) else None
    return {"truncation": "auto", "retention_ratio": RETENTION_RATIO if ratio is None else ratio}


def check_schedule(name: str, builder: RequestBuilder, param: str) -> str:
    """Check a schedule that a client named. Raises ApiError for an unknown one, and one the model lacks."""
    if name not in PRESETS:
        raise ApiError(
            "invalid_value", f"There is no schedule {name[:80]!r}: use {', '.join(PRESETS)}.", param
        )
    try:
        builder.compile(name)
    except ValueError as error:
        raise ApiError("invalid_value", f"{error}.", param) from None
    return name


def _schedule(
    patch: ResponsePatch,
    config: SessionConfig,
    modality: Literal["audio", "text"],
    builder: RequestBuilder,
    defaults: Defaults,
) -> Schedule | str | None:
    """The schedule that was asked for, by name or by effort; text alone has neither speech nor its budgets."""
    if modality == "text":
        return TEXT_ONLY
    named = patch.innervoice.schedule if isinstance(patch.innervoice, Extension) else None
    if isinstance(named, str):
        return check_schedule(named, builder, f"{PATH}.innervoice.schedule")
    effort = patch.reasoning.effort if patch.reasoning else None
    if effort is None and config.schedule is not None:
        return config.schedule
    wanted = EFFORTS.get(effort or config.effort or "")
    return defaults.schedule if wanted is None or not _runs(wanted, builder) else wanted


def _limited(
    schedule: Schedule | str | None, patch: ResponsePatch, config: SessionConfig
) -> Schedule | str | None:
    """The schedule with the budget that was asked for each of its reflections, which it only ever lowers."""
    budget = config.reflection_budget
    if isinstance(patch.innervoice, Extension) and patch.innervoice.reflection_budget is not UNSET:
        budget = patch.innervoice.reflection_budget
    if budget is None or schedule is None:
        return schedule
    made = Schedule.preset(schedule) if isinstance(schedule, str) else schedule
    if isinstance(made.reflection, int):
        budget = min(budget, made.reflection)
    return made if made.reflection == "off" else made.with_changes(reflection=budget)


def _runs(schedule: Schedule | str, builder: RequestBuilder) -> bool:
    try:
        builder.compile(schedule)
    except ValueError:
        return False
    return True
