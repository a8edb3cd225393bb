"""RequestBuilder: turns a prompt and options into a validated request."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from innervoice.api.fed_items import fed_ids, feeds_of
from innervoice.api.options import with_changes
from innervoice.api.prompt_ids import check_prompt_ids, context_ids
from innervoice.api.tool_choice import read_tool_choice
from innervoice.checkpoint.model_config import GenerationConfig
from innervoice.codec.audio import SampleRate, naming, read_audio
from innervoice.codec.speech_codec import SpeechEncoder
from innervoice.fields import MOST_INT64, Count, Encodable, Length, Limits, Seconds, read_fields
from innervoice.model.families import Family
from innervoice.model.text import (
    TOOLS,
    ChatMessage,
    TextTokenizer,
    asks_to_think,
    call_begin,
    call_ids,
    check_marks,
    function_of,
    ids_within,
    read_tools,
    reads_tools,
    result_role,
    with_tools,
)
from innervoice.model.text.dialogue import DialogueItem, DialogueRole, ItemPart, Role, SpokenCodes
from innervoice.runtime.conversation import ItemHandle, Message, check_item_id
from innervoice.runtime.edits import check_new_ids
from innervoice.runtime.feed import Feed
from innervoice.runtime.fusion import Fusion
from innervoice.runtime.request import PromptTooLong, Request, SessionTurn
from innervoice.schedule import Patterns, Program, Schedule, Segment, compile_schedule
from innervoice.types import EventField, Ids, OutputFormat, Prompt, Sampling, Text, ToolCall, Vocabulary

log = logging.getLogger("innervoice")

MOST_CAPS = 2**16
MOST_TOOLS = 1024
Truncation = Literal["disabled", "auto"]
TEXT_ONLY = Schedule(cycle=(Segment("transcript"),))
NO_SPEECH_TOKENIZER = (
    "a recording needs a speech tokenizer, and none was loaded: give speech_tokenizer=, or a Text prompt"
)


@dataclass(frozen=True)
class RequestOptions:
    """The options of `Engine.stream` and `Session.reply`, which `Engine.stream` explains.

    Raises ValueError, which names the field, for a value of another type or out of range.
    """

    schedule: Schedule | str | None = None
    sampling: Sampling | None = None
    system: Annotated[str | None, Encodable()] = None
    output_rate: SampleRate | None = None
    output_format: OutputFormat = "float32"
    reflection_caps: Annotated[Sequence[Count], Length(MOST_CAPS)] = ()
    timeout_s: Seconds | None = None
    priority: Annotated[int, Limits(-MOST_INT64, MOST_INT64)] = 0
    realtime: bool = True
    template: Mapping[str, object] | None = None
    instructions: Annotated[str | None, Encodable()] = None
    extra_system: Annotated[str | None, Encodable()] = None
    truncation: Truncation = "disabled"
    retention_ratio: Annotated[float, Limits(0, 1)] = 0.8
    item_id: ItemHandle | None = None
    tools: Annotated[Sequence[Mapping[str, object]], Length(MOST_TOOLS)] = ()
    tool_choice: str | Mapping[str, object] = "auto"
    parallel_tool_calls: bool = True
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    contexts: Annotated[Sequence[Any], Length(1024)] = ()
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        check_item_id(self.item_id)
        object.__setattr__(self, "tools", read_tools(self.tools))
        names = [function_of(tool)["name"] for tool in self.tools]
        object.__setattr__(self, "tool_choice", read_tool_choice(self.tool_choice, names))

    def changed(self, **changes: object) -> RequestOptions:
        """A copy with some options changed. Raises TypeError for a name that is none, ValueError."""
        return with_changes(self, changes, "request option")


@dataclass(frozen=True)
class RequestBuilder:
    """Checks and prepares requests for one model. Any thread may use it.

    template: variables of the chat template, where a request has none of that name. hidden_size: values of an
    embedding row, None: not known.
    """

    family: Family
    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    generation: GenerationConfig
    speech_tokenizer: SpeechEncoder | None
    max_model_len: int
    sample_rate: int
    event_fields: tuple[EventField, ...] = ()
    template: Mapping[str, object] = field(default_factory=dict)
    hidden_size: int | None = None
    _has_warned: threading.Event = field(default_factory=threading.Event, repr=False)
    _has_blocked: threading.Event = field(default_factory=threading.Event, repr=False)

    def free(self) -> None:
        """Drop the speech tokenizer with its weights: the engine has closed."""
        object.__setattr__(self, "speech_tokenizer", None)

    def default_sampling(self) -> Sampling:
        """The checkpoint's own."""
        generation = self.generation
        return Sampling(temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p)

    def request(
        self,
        prompt: Prompt | list[Message] | None,
        options: RequestOptions,
        submitted_s: float,
        *,
        session_id: str | None = None,
        turn: SessionTurn | None = None,
    ) -> Request:
        """A request for a prompt or a dialogue; prompt None: nothing is added. turn: of a session, whose prompt
        comes as Ids.

        Raises ValueError, FileNotFoundError.
        """
        program = self.compile(options.schedule) if prompt is None else self.program_of(options)
        for name in ("system", "instructions", "extra_system"):
            text = getattr(options, name)
            if text is not None:
                self.check_text(text, name)
        prompt_ids = () if prompt is None else self._checked(self._prompt_ids(prompt, options))
        is_rendered = turn.items[-1].role != "prompt" if turn and turn.items else not isinstance(prompt, Ids)
        if prompt is not None and is_rendered:
            self._warn_of_masked_thoughts(program, prompt_ids, self.variables_of(options))
        return Request(
            reply_id=uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            program=program,
            sampling=self.resolve(options.sampling or Sampling()),
            submitted_s=submitted_s,
            caps=tuple(options.reflection_caps),
            deadline_s=math.inf if options.timeout_s is None else submitted_s + options.timeout_s,
            session_id=session_id,
            output_rate=options.output_rate,
            priority=options.priority,
            is_live=options.realtime,
            output_format=options.output_format,
            event_fields=self.event_fields,
            turn=turn,
            contexts=self._contexts(options, session_id),
            fusion=options.fusion,
            feeds=feeds_of(program, options.feeds, partial(fed_ids, self)),
        )

    def _contexts(self, options: RequestOptions, session_id: str | None) -> tuple[tuple[int, ...], ...]:
        """The ids of a request's contexts beside its prompt. Raises ValueError."""
        contexts, fusion = list(options.contexts), options.fusion
        if fusion is None:
            if contexts:
                raise ValueError(
                    "contexts are given without fusion: give fusion=Fusion.pragmatic() or another"
                )
            return ()
        if session_id is not None:
            raise ValueError("a session's reply has one context: use Engine.stream for a reply of several")
        fusion.check(1 + len(contexts))
        return context_ids(contexts, lambda one: self._checked(self._prompt_ids(one, options)))

    def spoken_head(self, codes: Sequence[int], system: str | None, *, first: bool) -> list[int]:
        """The beginning of a turn's prompt whose recording begins with these codes.

        Raises ValueError.
        """
        return self.family.turn_head_ids(self.tokenizer, self.vocabulary, codes, system, first=first)

    def compile(self, schedule: Schedule | str | None) -> Program:
        """A schedule, a preset's name or a .json file, compiled for this vocabulary.

        Raises ValueError, FileNotFoundError.
        """
        default = TEXT_ONLY if self.vocabulary.speech is None else "interleaved"
        made = default if schedule is None else schedule
        if isinstance(made, str):
            made = Schedule.load(made) if made.endswith(".json") else Schedule.preset(made)
        spell = partial(ids_within, self.tokenizer)
        return compile_schedule(made, self.vocabulary, self.tokenizer.special, spell, self._patterns)

    def program_of(self, options: RequestOptions) -> Program:
        """The schedule of a request, with the tool calls that it allows or asks for.

        Raises ValueError, also for a checkpoint that names no tokens of a call.
        """
        program = self.compile(options.schedule)
        choice, schedule = options.tool_choice, program.schedule
        if choice == "none" and schedule.makes_calls:
            schedule = schedule.with_changes(
                tool="off",
                prologue=tuple(one for one in schedule.prologue if one.kind != "tool"),
                cycle=tuple(one for one in schedule.cycle if one.kind != "tool"),
            )
        elif options.tools and choice != "none":
            schedule = self._with_calls(schedule, options)
        if schedule is program.schedule:
            return program
        return self.compile(schedule)

    def _with_calls(self, schedule: Schedule, options: RequestOptions) -> Schedule:
        choice = options.tool_choice
        if choice == "auto":
            tool = "on" if schedule.tool == "off" else schedule.tool
            return schedule.with_changes(tool=tool, parallel_calls=options.parallel_tool_calls)
        names = [function_of(tool)["name"] for tool in options.tools]
        if isinstance(choice, Mapping):
            names = [choice["name"]]
        begin = call_begin(self.tokenizer, self.vocabulary, str(names[0])) if len(names) == 1 else []
        budget = schedule.tool if isinstance(schedule.tool, int) else None
        return schedule.with_changes(
            prologue=(*schedule.prologue, Segment("tool", budget, ids=tuple(begin))),
            parallel_calls=options.parallel_tool_calls,
        )

    def with_tools(self, system: str | None, options: RequestOptions) -> str | None:
        """A system text with the request's tools, where the checkpoint's template has no other place for them."""
        if not options.tools or reads_tools(self.tokenizer):
            return system
        return with_tools(system, options.tools)

    @cached_property
    def _patterns(self) -> Patterns:
        return Patterns(self.vocabulary, self.tokenizer.token_bytes)

    @cached_property
    def _result_role(self) -> Role:
        return result_role(self.tokenizer)

    def resolve(self, sampling: Sampling) -> Sampling:
        """Fill unset fields from the checkpoint, and draw a seed if there is none."""
        default = self.default_sampling()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        unset = {
            name: getattr(default, name)
            for name in ("temperature", "top_k", "top_p")
            if getattr(sampling, name) is None
        }
        return replace(sampling, **unset, seed=seed)

    def items(self, prompt: Prompt | list[Message]) -> list[DialogueItem]:
        """A prompt or messages as items, recordings as speech codes.

        Raises ValueError, FileNotFoundError.
        """
        if isinstance(prompt, list):
            wrong = [message for message in prompt if not isinstance(message, Message)]
            if wrong:
                raise ValueError(f"a dialogue holds a {type(wrong[0]).__name__}: it is a list of Message")
            made = [self._item(message) for message in prompt]
            check_new_ids((), made)
            return made
        role: DialogueRole = "prompt" if isinstance(prompt, Ids) else "user"
        return [DialogueItem(new_item_id(), role, (self.part(prompt),))]

    def _item(self, message: Message) -> DialogueItem:
        role, parts = message.role, tuple(map(self.part, message.parts))
        if role == "tool" and self._result_role != "tool":
            role, parts = self._result_role, ("Result of the function:", *parts)
        return DialogueItem(message.item_id or new_item_id(), role, parts)

    def part(self, content: Prompt | ToolCall) -> ItemPart:
        """One part of an item. Raises ValueError, FileNotFoundError."""
        if isinstance(content, Ids):
            check_prompt_ids(content.ids, self.vocabulary, self.hidden_size)
            return content
        if isinstance(content, ToolCall):
            self.check_text(content.arguments, "ToolCall.arguments")
            return call_ids(self.tokenizer, self.vocabulary, content)
        if isinstance(content, Text):
            if not content.text.strip():
                raise ValueError("the prompt's text is empty")
            self.check_text(content.text, "the prompt's text")
            return content.text
        if self.speech_tokenizer is None:
            raise ValueError(NO_SPEECH_TOKENIZER)
        self._warn_of_event_loop()
        with naming(content):
            codes = self.speech_tokenizer.encode(*read_audio(content, self._check_sound))
        return SpokenCodes(tuple(codes))

    def spoken(self, part: SpokenCodes) -> list[int]:
        """A recording's ids as they stand in a prompt. Raises ValueError for a model that hears by speech codes."""
        if self.vocabulary.heard is None:
            raise ValueError(
                "a whole prompt takes recordings as embedding rows alone: write it for the chat template"
            )
        before, _, behind = self.vocabulary.heard
        return [before, *part.codes, behind]

    def _warn_of_event_loop(self) -> None:
        """Log, once, that an event loop stands still while a recording is encoded on its thread."""
        if self._has_blocked.is_set() or not _has_event_loop():
            return
        self._has_blocked.set()
        log.warning(
            "a recording is encoded on the thread of an event loop, which stands still meanwhile: use "
            "Engine.astream or Session.areply there"
        )

    def turn_ids(
        self,
        item: DialogueItem,
        system: str | None,
        options: RequestOptions,
        *,
        first: bool,
        earlier: Sequence[ChatMessage] | None = None,
    ) -> list[int]:
        """The ids of a turn of one item, with one part; earlier: as for `Family.turn_ids`. Raises ValueError."""
        (part,) = item.parts
        if isinstance(part, Ids):
            return list(part.ids)
        user = part if isinstance(part, str) else list(part.codes)
        variables = self.variables_of(options)
        return self.family.turn_ids(
            self.tokenizer, self.vocabulary, user, system, first=first, variables=variables, earlier=earlier
        )

    def variables_of(self, options: RequestOptions) -> dict[str, object]:
        """The template variables of a request."""
        variables = {**self.template, **(options.template or {})}
        if options.tools and reads_tools(self.tokenizer):
            check_marks(self.tokenizer, options.tools)
            variables[TOOLS] = options.tools
        return variables

    def _warn_of_masked_thoughts(
        self, program: Program, prompt_ids: Sequence[int], variables: Mapping[str, object]
    ) -> None:
        """Say once that a prompt asks for thoughts that its schedule masks."""
        schedule = program.schedule
        hides = schedule.has("reflection") and schedule.reflection != "off"
        if hides or not schedule.guided or self._has_warned.is_set():
            return
        if asks_to_think(self.tokenizer, prompt_ids, variables):
            self._has_warned.set()
            log.warning(
                "the prompt asks the model to think between <think> and </think>, and the schedule, which has no "
                'reflection, masks that: give template={"enable_thinking": False} where the template has it, or a '
                'schedule with reflection and tokens={"open": "<think>", "close": "</think>", "done": None}'
            )

    def render(
        self,
        items: Sequence[DialogueItem],
        head: str | None,
        options: RequestOptions,
        *,
        opens: bool = True,
    ) -> list[list[int]]:
        """See `Family.dialogue_runs`."""
        return self.family.dialogue_runs(
            self.tokenizer, self.vocabulary, items, head, opens=opens, variables=self.variables_of(options)
        )

    def default_system(self, items: Sequence[DialogueItem]) -> str | None:
        """See `Family.default_system`."""
        return self.family.default_system(self.vocabulary, items)

    def _prompt_ids(self, prompt: Prompt | list[Message], options: RequestOptions) -> list[int]:
        if isinstance(prompt, Ids):
            return list(prompt.ids)
        items = self.items(prompt)
        system = options.system if options.instructions is None else options.instructions
        if not isinstance(prompt, list) and options.extra_system is None:
            is_plain = self.with_tools(system, options) == system
            head = system if is_plain else self._head(items, system, options)
            return self.turn_ids(items[0], head, options, first=True)
        items += extra_items(options)
        head = self._head(items, system, options)
        return [i for run in self.render(items, head, options) for i in run]

    def _head(self, items: Sequence[DialogueItem], system: str | None, options: RequestOptions) -> str | None:
        head = self.default_system(items) if system is None else system
        return self.with_tools(head, options)

    def check_text(self, text: str, name: str) -> None:
        """Raise ValueError for a text that is too long whatever its tokens are, before it is encoded."""
        if len(text) <= self.max_model_len:
            return
        num_bytes = len(text.encode())
        least = num_bytes // self._longest_token
        if least >= self.max_model_len:
            found = f"{name} has {num_bytes} bytes, at least {least} tokens,"
            raise PromptTooLong(found, least, self.max_model_len)

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest text token, at least those of a long added word."""
        return max(64, *(len(self.tokenizer.token_bytes(i)) for i in range(*self.vocabulary.text)))

    def _check_sound(self, num_samples: int, rate: int) -> None:
        """Raise ValueError for a recording whose speech tokens a prompt does not hold."""
        assert self.speech_tokenizer is not None, "a recording without a speech tokenizer"
        num = self.speech_tokenizer.count_codes(num_samples, rate)
        if num >= self.max_model_len:
            found = f"the recording lasts {num_samples / rate:.1f} s, {num} tokens,"
            raise PromptTooLong(found, num, self.max_model_len)

    def _checked(self, ids: list[int]) -> tuple[int, ...]:
        most = self.max_model_len
        if not ids:
            raise ValueError("the prompt has no ids")
        check_prompt_ids(ids, self.vocabulary, self.hidden_size)
        if len(ids) >= most:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens", len(ids), most)
        return tuple(ids)


def extra_items(options: RequestOptions) -> list[DialogueItem]:
    """The system message that stands before one reply alone, if there is one."""
    if options.extra_system is None:
        return []
    return [DialogueItem(new_item_id(), "system", (options.extra_system,), is_once=True)]


def new_item_id() -> str:
    """A handle that no other item has."""
    return f"item_{uuid.uuid4().hex[:24]}"


def _has_event_loop() -> bool:
    """Whether an event loop runs on this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
