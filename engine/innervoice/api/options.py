"""EngineOptions: the options that an engine is loaded with.

Each option is written here once and nowhere else.

A field carries its name, type and default, the sentence that `--help` prints, and the values that it takes.
`Engine`, the loader, the memory plan and the command line all read this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from os import PathLike
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_args, get_type_hints

from innervoice.api.option_type import OptionType
from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.model_config import DTYPE_BYTES
from innervoice.checkpoint.quantization import Format, Quantization
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.speech_codec import Streaming
from innervoice.model.native import Backend
from innervoice.model.pages import PageFormat
from innervoice.runtime.admission import Preempt
from innervoice.runtime.scheduler import POLICIES, Policy, SchedulerSettings
from innervoice.types import EventField, check_event_fields

DTYPE_CHOICES = ("auto", *DTYPE_BYTES)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """The values that an option takes. remedy: the end of the sentence that refuses others."""

    holds: Callable[[Any], bool]
    remedy: str


def at_least(least: int) -> Rule:
    """Numbers from `least` up."""
    return Rule(lambda value: value >= least, f"it must be {least} or more")


SHARE = Rule(lambda value: 0 < value <= 1, "it must be above 0 and at most 1")
POSITIVE = Rule(lambda value: value > 0, "it must be above 0")


def option(default: T, doc: str, *, choices: Sequence[str] = (), rule: Rule | None = None) -> T:
    """A field of `EngineOptions`.

    A value must be of the field's type. choices: the only strings that it takes; rule: limits of its values,
    None excepted.
    """
    metadata = {"doc": doc, "choices": tuple(choices), "rule": rule}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The options that an engine is loaded with.

    Raises ValueError, which names the field, for a value of another type or outside its limits.
    """

    speech_tokenizer: str | PathLike[str] | None = option(
        None, "Directory of the speech tokenizer, if not beside the model."
    )
    decoder: str | PathLike[str] | None = option(
        None, "Directory of the speech decoder, if not beside the model."
    )
    revision: str | None = option(None, "Branch, tag or commit on the hub.")
    local_files_only: bool = option(False, "Download nothing.")
    load_format: str = option(
        "auto", "dummy: random weights, from the config files alone.", choices=("auto", "dummy")
    )
    device: str = option("auto", "auto (the first GPU, or else the CPU), cpu, cuda or cuda:N.")
    dtype: str = option(
        "auto", "Type of the weights and of the cache; auto: the checkpoint's own.", choices=DTYPE_CHOICES
    )
    quantization: str | Quantization | None = option(
        None,
        "Quantise the weights while they are read; default: keep them as they are in the file.",
        choices=get_args(Format),
    )
    codec_dtype: str = option(
        "auto",
        "Type of the codec's weights; auto: float32, and bfloat16 for the speech decoder on a GPU, unless "
        "dtype is float32.",
        choices=DTYPE_CHOICES,
    )
    kv_dtype: str = option(
        "auto", "Type of the cache; auto: the model's.", choices=("auto", *get_args(PageFormat))
    )
    memory_fraction: float = option(0.9, "Share of the device's memory to use.", rule=SHARE)
    max_sessions: int | None = option(
        None, "Sessions at once; default: as many as fit, up to 16 on a CPU, 256 on a GPU.", rule=at_least(1)
    )
    max_model_len: int | None = option(None, "Longest sequence, prompt and reply together, in tokens.")
    threads: int | None = option(None, "CPU threads, for the whole process.", rule=at_least(1))
    streaming: str | SteadySettings = option(
        "steady",
        "steady: chunks of fixed length at a fixed cost; offline: all sound at the end; reference: growing "
        "chunks, as GLM-4-Voice's demo cuts them.",
        choices=get_args(Streaming),
    )
    vocoder_noise: bool = option(True, "off: reproducible sound.")
    share_prefixes: bool = option(True, "Keep computed pages for prompts that begin with the same tokens.")
    backend: str = option(
        "auto",
        "Code that runs the language model on a CPU: native, or plain PyTorch; auto: native where it can.",
        choices=get_args(Backend),
    )
    policy: str | Policy = option(
        "slack",
        "Which replies take part in a step: slack (earliest playback deadline first), fixed (arrival order, "
        "reflections of fixed length) or fcfs (arrival order).",
        choices=tuple(POLICIES),
    )
    max_load: float = option(
        SchedulerSettings.max_load,
        "Under slack: a reply waits while the speech of all, with it, would take more than this share of "
        "the time.",
        rule=POSITIVE,
    )
    max_waiting: int | None = option(
        None, "Replies that may wait; the next one is refused. Default: no limit.", rule=at_least(0)
    )
    preempt: str = option(
        "recompute",
        "How a reply that lent its pages gets its keys and values back: recompute them, or swap them in.",
        choices=get_args(Preempt),
    )
    reader_timeout_s: float | None = option(
        None, "A reply whose full queue goes unread for so long ends with an error.", rule=POSITIVE
    )
    name: str = option("engine", "Name of the engine in its metrics.")
    warmup: bool | None = option(None, "Compile and calibrate before the first reply; default: on a GPU.")
    event_fields: tuple[EventField, ...] = option((), "Fields that are added to events; see EventField.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_fields", _read_event_fields(self.event_fields))
        for name, one in FIELDS.items():
            value, choices, rule = getattr(self, name), one.metadata["choices"], one.metadata["rule"]
            is_other_word = bool(choices) and isinstance(value, str) and value not in choices
            if is_other_word or not TYPES[name].holds(value):
                raise ValueError(f"{name} is {value!r}: {TYPES[name].remedy(choices)}")
            if value is not None and rule is not None and not rule.holds(value):
                raise ValueError(f"{name} is {value!r}: {rule.remedy}")

    def locate(self, model: str | PathLike[str]) -> CheckpointPaths:
        """Find or download the parts of a model. Raises FileNotFoundError, ValueError."""
        return locate(
            model,
            self.speech_tokenizer,
            self.decoder,
            revision=self.revision,
            local_files_only=self.local_files_only,
        )

    def changed(self, **changes: Any) -> EngineOptions:
        """A copy with some options changed.

        Raises TypeError for an unknown name, ValueError for a refused value.
        """
        return with_changes(self, changes, "engine option")


FIELDS: Mapping[str, Field[Any]] = {one.name: one for one in fields(EngineOptions)}
TYPES: Mapping[str, OptionType] = {
    name: OptionType.of(hint) for name, hint in get_type_hints(EngineOptions).items()
}
EngineOptions.__doc__ = f"{EngineOptions.__doc__}\n\n" + "\n".join(
    f"    {name}: {one.type} = {one.default!r}\n        {one.metadata['doc']}" for name, one in FIELDS.items()
)


def _read_event_fields(given: Any) -> tuple[EventField, ...]:
    """Any iterable of event fields as a tuple. Raises ValueError for something else, and for two of one name."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"event_fields is {given!r}: use a tuple of EventField")
    made = tuple(given)
    for one in made:
        if not isinstance(one, EventField):
            raise ValueError(f"event_fields has {one!r}: use a tuple of EventField")
    check_event_fields(made)
    return made


def with_changes(options: T, changes: Mapping[str, Any], what: str) -> T:
    """A copy of a dataclass with some fields changed.

    Raises TypeError, which lists the fields, for an unknown name.
    """
    names = [one.name for one in fields(cast(Any, options))]
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise TypeError(f"unknown {what} {unknown[0]!r}; options are {', '.join(names)}")
    return cast(T, replace(cast(Any, options), **changes))


def keywords_of(
    options: Callable[P, object],
) -> Callable[[Callable[..., T]], Callable[Concatenate[Any, str | PathLike[str], P], T]]:
    """Give a method, for type checkers, a first argument `model` and the keywords that `options` is made
    with.
    """
    return lambda method: cast(Any, method)
