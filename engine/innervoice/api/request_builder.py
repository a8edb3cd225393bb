"""RequestBuilder: turns a prompt and options into a validated request."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from innervoice.api.options import with_changes
from innervoice.checkpoint.model_config import GenerationConfig
from innervoice.codec.audio import SampleRate, read_audio
from innervoice.codec.speech_codec import SpeechEncoder
from innervoice.fields import MOST_INT64, Count, Encodable, Length, Limits, Seconds, read_fields
from innervoice.model.families import Family
from innervoice.model.text import TextTokenizer, asks_to_think
from innervoice.runtime.request import Request
from innervoice.schedule import Program, Schedule, Segment, compile_schedule
from innervoice.types import EventField, Ids, OutputFormat, Prompt, Sampling, Text, Vocabulary

log = logging.getLogger("innervoice")

MOST_CAPS = 2**16
TEXT_ONLY = Schedule(cycle=(Segment("transcript"),))
NO_SPEECH_TOKENIZER = (
    "a recording needs a speech tokenizer, and none was loaded: give speech_tokenizer=, or a Text prompt"
)


@dataclass(frozen=True)
class SpokenCodes:
    """A recording that was encoded while it was spoken."""

    codes: tuple[int, ...]


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

    def __post_init__(self) -> None:
        read_fields(self)

    def changed(self, **changes: object) -> RequestOptions:
        """A copy with some options changed. Raises TypeError for a name that is none, ValueError."""
        return with_changes(self, changes, "request option")


@dataclass(frozen=True)
class RequestBuilder:
    """Checks and prepares requests for one model. Any thread may use it.

    template: variables of the chat template, where a request has none of that name.
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
    _has_warned: threading.Event = field(default_factory=threading.Event, repr=False)

    def default_sampling(self) -> Sampling:
        """The checkpoint's own."""
        generation = self.generation
        return Sampling(temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p)

    def request(
        self,
        prompt: Prompt | SpokenCodes | None,
        options: RequestOptions,
        submitted_s: float,
        *,
        first: bool = True,
        session_id: str | None = None,
    ) -> Request:
        """A request for one turn; prompt None: nothing is added. Raises ValueError, FileNotFoundError."""
        program = self.compile(options.schedule)
        prompt_ids = () if prompt is None else self._checked(self._prompt_ids(prompt, options, first))
        if not isinstance(prompt, Ids | None):
            self._warn_of_masked_thoughts(program, prompt_ids, self._variables(options))
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
        )

    def spoken_head(self, codes: Sequence[int], system: str | None, *, first: bool) -> list[int]:
        """The beginning of a turn's prompt whose recording begins with these codes.

        Raises ValueError.
        """
        return self.family.turn_head_ids(self.tokenizer, self.vocabulary, codes, system, first=first)

    def compile(self, schedule: Schedule | str | None) -> Program:
        """A schedule, a preset's name or a .json file, compiled for this vocabulary.

        Raises ValueError, FileNotFoundError.
        """
        made = schedule
        if made is None:
            made = TEXT_ONLY if self.vocabulary.speech is None else "interleaved"
        if isinstance(made, str):
            made = Schedule.load(made) if made.endswith(".json") else Schedule.preset(made)
        return compile_schedule(made, self.vocabulary, self.tokenizer.special)

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

    def _prompt_ids(self, prompt: Prompt | SpokenCodes, options: RequestOptions, first: bool) -> list[int]:
        if isinstance(prompt, Ids):
            return list(prompt.ids)
        user: str | list[int]
        if isinstance(prompt, Text):
            if not prompt.text.strip():
                raise ValueError("the prompt's text is empty")
            user = prompt.text
        elif isinstance(prompt, SpokenCodes):
            user = list(prompt.codes)
        elif self.speech_tokenizer is None:
            raise ValueError(NO_SPEECH_TOKENIZER)
        else:
            user = self.speech_tokenizer.encode(*read_audio(prompt))
        return self.family.turn_ids(
            self.tokenizer,
            self.vocabulary,
            user,
            options.system,
            first=first,
            variables=self._variables(options),
        )

    def _variables(self, options: RequestOptions) -> dict[str, object]:
        """The template variables of a request."""
        return {**self.template, **(options.template or {})}

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

    def _checked(self, ids: list[int]) -> tuple[int, ...]:
        size, most = self.vocabulary.size, self.max_model_len
        if not ids:
            raise ValueError("the prompt has no ids")
        wrong = [i for i in ids if not 0 <= i < size]
        if wrong:
            raise ValueError(f"prompt id {wrong[0]} is outside the vocabulary of {size}")
        if len(ids) >= most:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the cache holds {most}, reply included: shorten it or raise max_model_len"
            )
        return tuple(ids)
