"""innervoice: the inference engine for spoken language models that think while they speak."""

from innervoice.codec.chunks import SteadySettings
from innervoice.codec.codec import Codec
from innervoice.codec.codes import Codes
from innervoice.engine import Engine
from innervoice.errors import EngineDead, OutOfCapacity, RequestFailed
from innervoice.plan import Plan
from innervoice.schedule import Schedule, ScheduleError, Segment
from innervoice.session import Session
from innervoice.stream import Stream
from innervoice.types import (
    Audio,
    AudioChunk,
    Done,
    End,
    Event,
    Ids,
    Reflection,
    Reply,
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
    "Done",
    "End",
    "Engine",
    "EngineDead",
    "Event",
    "Ids",
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
    "Usage",
]
