"""The schedule: which kind of token comes next, how many, what may be drawn, what is forced."""

from innervoice.schedule.ahead import OpenReflection, reflection_ahead, spoken_until
from innervoice.schedule.compile import Col, Kind, Program, compile_schedule
from innervoice.schedule.cursor import UNLIMITED, Cursor, Emission, FreeCursor, Mask, make_cursor
from innervoice.schedule.presets import PRESETS, preset
from innervoice.schedule.program import Schedule, ScheduleError, Segment
from innervoice.schedule.replay import replay

__all__ = [
    "PRESETS",
    "UNLIMITED",
    "Col",
    "Cursor",
    "Emission",
    "FreeCursor",
    "Kind",
    "Mask",
    "OpenReflection",
    "Program",
    "Schedule",
    "ScheduleError",
    "Segment",
    "compile_schedule",
    "make_cursor",
    "preset",
    "reflection_ahead",
    "replay",
    "spoken_until",
]
