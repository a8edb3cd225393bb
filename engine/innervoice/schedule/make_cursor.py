"""The cursor of a program, guided or free, where a reply begins or goes on."""

from __future__ import annotations

from collections.abc import Sequence

from innervoice.schedule.compile import Program
from innervoice.schedule.cursor import Cursor
from innervoice.schedule.cursor_state import CursorState
from innervoice.schedule.free_cursor import FreeCursor


def make_cursor(
    program: Program,
    caps: Sequence[int] = (),
    *,
    ignore_eos: bool = False,
    state: CursorState | None = None,
) -> Cursor | FreeCursor:
    """The cursor for a program, guided or free, at its start or where `state` says.

    Raises ValueError for a state in which no cursor of this program can be.
    """
    if state is not None:
        state.check(program)
    if program.schedule.guided:
        return Cursor(program, caps, ignore_eos=ignore_eos, state=state)
    return FreeCursor(program, ignore_eos=ignore_eos, state=state)
