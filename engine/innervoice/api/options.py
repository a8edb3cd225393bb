"""EngineOptions: the options that an engine is loaded with.

Each option is written here once and nowhere else.

A field carries its name, type and default, the sentence that `--help` prints, and the values that it takes.
`Engine`, the loader, the memory plan and the command line all read this class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from os import PathLike
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, get_args

from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.model_config import DTYPE_BYTES
from innervoice.checkpoint.quantization import Format, Quantization
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.speech_codec import Streaming
from innervoice.fields import MOST_INT32, MOST_INT64, Choices, Limits, checked, read_fields
from innervoice.model.pages import Activations, Backend, PageFormat
from innervoice.runtime.scheduler import POLICIES, Policy, SchedulerSettings
from innervoice.runtime.scheduler.settings import Preempt
from innervoice.types import EventField, check_event_fields

DTYPE_CHOICES = ("auto", *DTYPE_BYTES)

P = ParamSpec("P")
T = TypeVar("T")


SHARE = Limits(above=0, most=1)
POSITIVE = Limits(above=0, is_finite=False)
AT_LEAST_0 = Limits(0, MOST_INT32)
AT_LEAST_1 = Limits(1, MOST_INT32)
MOST_THREADS = 256  # of a team of native threads; torch starts more until memory is out


def option(default: T, doc: str, *, choices: Sequence[str] = (), limits: Limits | None = None) -> T:
    """A field of `EngineOptions`.

    A value must be of the field's type. choices: the only strings that it takes; limits: of its numbers.
    """
    check = (Choices(tuple(choices)), *(() if limits is None else (limits,)))
    return field(default=default, metadata={"doc": doc, "choices": tuple(choices), "check": check})


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
        "auto",
        "Type of the weights and of the cache; auto: the checkpoint's own, but bfloat16 for quantised weights of "
        "a float32 one.",
        choices=DTYPE_CHOICES,
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
    activations: str = option(
        "auto",
        "How a CPU rounds the inputs of int8 and int4 weights: int8, by blocks of 32; native: to 16 bits, in "
        "float32 not at all; mixed: int8, but native for queries, keys and values; auto: in bfloat16 int8, or mixed "
        "where int8 costs too much.",
        choices=("auto", *get_args(Activations)),
    )
    memory_fraction: float = option(0.9, "Share of the device's memory to use.", limits=SHARE)
    max_sessions: int | None = option(
        None, "Sessions at once; default: as many as fit, up to 16 on a CPU, 256 on a GPU.", limits=AT_LEAST_1
    )
    max_model_len: int | None = option(
        None, "Longest sequence, prompt and reply together, in tokens.", limits=Limits(most=MOST_INT64)
    )
    threads: int | None = option(None, "CPU threads, for the whole process.", limits=Limits(1, MOST_THREADS))
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
    invariant: bool = option(
        False,
        "On a GPU: the same tokens whatever else runs, at the cost of speed with many rows and long prompts.",
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
        limits=POSITIVE,
    )
    max_waiting: int | None = option(
        None, "Replies that may wait; the next one is refused. Default: no limit.", limits=AT_LEAST_0
    )
    preempt: str = option(
        "recompute",
        "How a reply that lent its pages gets its keys and values back: recompute them, or swap them in.",
        choices=get_args(Preempt),
    )
    reader_timeout_s: float | None = option(
        None, "A reply whose full queue goes unread for so long ends with an error.", limits=POSITIVE
    )
    name: str = option("engine", "Name of the engine in its metrics.")
    warmup: bool | None = option(None, "Compile and calibrate before the first reply; default: on a GPU.")
    fusion: bool = option(
        False,
        "On a GPU: capture the steps of replies with several contexts before the first reply, not when one comes.",
    )
    template: Mapping[str, object] | None = option(
        None, "Variables of the chat template, such as enable_thinking; a request's go before them."
    )
    event_fields: tuple[EventField, ...] = option((), "Fields that are added to events; see EventField.")

    def __post_init__(self) -> None:
        read_fields(self)
        check_event_fields(self.event_fields)

    @checked
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
EngineOptions.__doc__ = f"{EngineOptions.__doc__}\n\n" + "\n".join(
    f"    {name}: {one.type} = {one.default!r}\n        {one.metadata['doc']}" for name, one in FIELDS.items()
)


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
