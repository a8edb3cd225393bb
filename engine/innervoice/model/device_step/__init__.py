"""A decode step that lives on the device: rows, schedules, layers, draws and cursors;
the host reads one step late.

fused.py     logits of contexts of one reply, before they are combined
graphs.py    the graphs of a step, dependent launches measured
layers.py    the layers of a decode step by the fused kernels
programs.py  compiled schedules in device memory
rows.py      what the device keeps of its rows, and how the host writes it
step.py      the step: a graph a batch bucket, read one step late
"""

from innervoice.model.device_step.programs import ProgramStore
from innervoice.model.device_step.rows import RowStart
from innervoice.model.device_step.step import Buffers, DeviceStep, Emitted, Pending, StepStats

__all__ = ["Buffers", "DeviceStep", "Emitted", "Pending", "ProgramStore", "RowStart", "StepStats"]
