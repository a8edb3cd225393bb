"""The schedule: which kind of token comes next, how many, what may be drawn, what is forced.

ahead.py    what is to come of a reply, as its schedule has it
compile.py  schedule and vocabulary to a table of states; refusals
cursor.py   where a reply stands in that table; the cursor of free decoding
pack.py     a program and a request as the device's cursor holds them
program.py  Segment and Schedule, from Python or JSON
replay.py   a schedule over scripted logits
"""

from innervoice.schedule.ahead import OpenReflection, reflection_ahead, spoken_until
from innervoice.schedule.compile import Program, compile_schedule
from innervoice.schedule.cursor import Cursor, Emission, FreeCursor, Mask, make_cursor
from innervoice.schedule.program import PRESETS, Schedule, ScheduleError, Segment, preset
from innervoice.schedule.replay import replay
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, ProgramColumn, TokenKind

__all__ = [
    "PRESETS",
    "UNLIMITED",
    "Cursor",
    "Emission",
    "FreeCursor",
    "Mask",
    "OpenReflection",
    "Program",
    "ProgramColumn",
    "Schedule",
    "ScheduleError",
    "Segment",
    "TokenKind",
    "compile_schedule",
    "make_cursor",
    "preset",
    "reflection_ahead",
    "replay",
    "spoken_until",
]
