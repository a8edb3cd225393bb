"""innervoice: the inference engine for spoken language models that think while they speak.

The public names are imported when they are first asked for, so that `import innervoice` is cheap.
"""

import gc
import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from innervoice.api.engine import Engine
    from innervoice.api.evaluator import Evaluator
    from innervoice.api.event_log import EventLog
    from innervoice.api.judge import Evaluation, ZeroShotJudge
    from innervoice.api.likelihood import Likelihood, Likelihoods
    from innervoice.api.memory_plan import MemoryPlan as Plan
    from innervoice.api.options import EngineOptions
    from innervoice.api.session import Session
    from innervoice.codec.glm_voice.chunks import SteadySettings
    from innervoice.codec.residual_vq.codec import Codec
    from innervoice.codec.residual_vq.codes import Codes
    from innervoice.model.rows import EmbeddingRows
    from innervoice.runtime.conversation import Delete, Insert, Item, Message, Truncate
    from innervoice.runtime.feed import Feed
    from innervoice.runtime.fusion import Fusion
    from innervoice.runtime.stream import Stream
    from innervoice.schedule import Schedule, ScheduleError, Segment
    from innervoice.types import (
        Audio,
        AudioChunk,
        Done,
        End,
        EngineDead,
        Event,
        EventField,
        FeedClosed,
        Heard,
        Ids,
        OutOfCapacity,
        Reflection,
        ReflectionBudget,
        Reply,
        RequestFailed,
        Sampling,
        Speech,
        Text,
        TokenEvent,
        Tool,
        ToolCall,
        Transcript,
        Usage,
    )

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioChunk",
    "Codec",
    "Codes",
    "Delete",
    "Done",
    "EmbeddingRows",
    "End",
    "Engine",
    "EngineDead",
    "EngineOptions",
    "Evaluation",
    "Evaluator",
    "Event",
    "EventField",
    "EventLog",
    "Feed",
    "FeedClosed",
    "Fusion",
    "Heard",
    "Ids",
    "Insert",
    "Item",
    "Likelihood",
    "Likelihoods",
    "Message",
    "OutOfCapacity",
    "Plan",
    "Reflection",
    "ReflectionBudget",
    "Reply",
    "RequestFailed",
    "Sampling",
    "Schedule",
    "ScheduleError",
    "Segment",
    "Session",
    "Speech",
    "SteadySettings",
    "Stream",
    "Text",
    "TokenEvent",
    "Tool",
    "ToolCall",
    "Transcript",
    "Truncate",
    "Usage",
    "ZeroShotJudge",
]

# The module that each public name comes from.
_HOMES = {
    "innervoice.api.engine": ("Engine",),
    "innervoice.api.evaluator": ("Evaluator",),
    "innervoice.api.event_log": ("EventLog",),
    "innervoice.api.judge": ("Evaluation", "ZeroShotJudge"),
    "innervoice.api.likelihood": ("Likelihood", "Likelihoods"),
    "innervoice.api.memory_plan": ("Plan",),
    "innervoice.api.options": ("EngineOptions",),
    "innervoice.api.session": ("Session",),
    "innervoice.codec.glm_voice.chunks": ("SteadySettings",),
    "innervoice.codec.residual_vq.codec": ("Codec",),
    "innervoice.codec.residual_vq.codes": ("Codes",),
    "innervoice.model.rows": ("EmbeddingRows",),
    "innervoice.runtime.conversation": ("Delete", "Insert", "Item", "Message", "Truncate"),
    "innervoice.runtime.feed": ("Feed",),
    "innervoice.runtime.fusion": ("Fusion",),
    "innervoice.runtime.stream": ("Stream",),
    "innervoice.schedule": (
        "Schedule",
        "ScheduleError",
        "Segment",
    ),
    "innervoice.types": (
        "Audio",
        "AudioChunk",
        "Done",
        "End",
        "EngineDead",
        "Event",
        "EventField",
        "FeedClosed",
        "Heard",
        "Ids",
        "OutOfCapacity",
        "Reflection",
        "ReflectionBudget",
        "Reply",
        "RequestFailed",
        "Sampling",
        "Speech",
        "Text",
        "TokenEvent",
        "Tool",
        "ToolCall",
        "Transcript",
        "Usage",
    ),
}
_RENAMED = {"Plan": "MemoryPlan"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_imported(_HOME_OF[name]), _RENAMED.get(name, name))


def _imported(home: str) -> ModuleType:
    """Import a module without garbage collections, which would walk the many objects of torch again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return _import(home)
    finally:
        if collects:
            gc.enable()


def _import(name: str) -> ModuleType:
    """Import a module, from elsewhere if the current directory was removed: of a torch that is imported in such a
    one MKL ends the process later.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY)
        os.chdir("/")
        try:
            return import_module(name)
        finally:
            os.fchdir(here)
            os.close(here)
    return import_module(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
