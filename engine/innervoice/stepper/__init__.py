"""A decode step that lives on the device: rows, schedules, layers, draws and cursors; the host reads one step late."""

from innervoice.stepper.programs import ProgramStore
from innervoice.stepper.rows import RowStart
from innervoice.stepper.stepper import Buffers, Emitted, Pending, Stats, Stepper

__all__ = ["Buffers", "Emitted", "Pending", "ProgramStore", "RowStart", "Stats", "Stepper"]
