"""The schedule: kinds of tokens in order, their budgets, and the cursor that enforces them.

ahead.py         how much of a reply is still to come, by its schedule
check_parts.py   refusals of listening, and of a segment's name, tags, stop ids, choices and feed
compile.py       a schedule and a vocabulary become a table of states; refusals
cursor.py        a reply's walk through that table, guided
cursor_state.py  the walk's position as a value, checked when it comes from outside
emission.py      a mask and an emitted token
free_cursor.py   the cursor of free decoding, which only labels
guide.py         a pattern as an automaton over ids, and a reply's walk through it
json_schema.py   refusals of JSON schemas that the library does not hold
layout.py        segments become rows of states
make_cursor.py   the cursor of a program, guided or free
pack.py          programs, requests and positions as the numbers of the device's cursor
patterns.py      regular expressions and JSON schemas become guides, by outlines-core
program.py       Segment and Schedule, from Python or JSON
regex_parts.py   the length of a regular expression, and what no automaton can hold
replay.py        a schedule over scripted logits
spelling.py      the ids of tags and texts, and tags of several ids among drawn ones
"""

from innervoice.schedule.ahead import ComingFeed, OpenReflection, next_feed, reflection_ahead, spoken_until
from innervoice.schedule.compile import Program, compile_schedule
from innervoice.schedule.cursor import Cursor
from innervoice.schedule.cursor_state import CursorState
from innervoice.schedule.emission import Emission, Mask
from innervoice.schedule.free_cursor import FreeCursor
from innervoice.schedule.make_cursor import make_cursor
from innervoice.schedule.patterns import Patterns
from innervoice.schedule.program import PRESETS, Schedule, ScheduleError, Segment, preset
from innervoice.schedule.replay import replay
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, ProgramColumn, TokenKind

__all__ = [
    "PRESETS",
    "UNLIMITED",
    "ComingFeed",
    "Cursor",
    "CursorState",
    "Emission",
    "FreeCursor",
    "Mask",
    "OpenReflection",
    "Patterns",
    "Program",
    "ProgramColumn",
    "Schedule",
    "ScheduleError",
    "Segment",
    "TokenKind",
    "compile_schedule",
    "make_cursor",
    "next_feed",
    "preset",
    "reflection_ahead",
    "replay",
    "spoken_until",
]
