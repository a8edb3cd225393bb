"""innervoice: the inference engine for spoken language models that think while they speak."""

from innervoice.api.engine import Engine
from innervoice.api.event_log import EventLog
from innervoice.api.memory_plan import MemoryPlan as Plan
from innervoice.api.options import EngineOptions
from innervoice.api.session import Session
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes
from innervoice.runtime.conversation import Delete, Insert, Item, Message, Truncate
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
    Heard,
    Ids,
    OutOfCapacity,
    Reflection,
    Reply,
    RequestFailed,
    Sampling,
    Speech,
    Text,
    TokenEvent,
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
    "End",
    "Engine",
    "EngineDead",
    "EngineOptions",
    "Event",
    "EventField",
    "EventLog",
    "Heard",
    "Ids",
    "Insert",
    "Item",
    "Message",
    "OutOfCapacity",
    "Plan",
    "Reflection",
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
    "Transcript",
    "Truncate",
    "Usage",
]
