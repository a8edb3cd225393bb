"""The scheduler under a virtual clock: what a machine that is described by its step times does for how many listeners."""

from innervoice.simulator.capacity import FIRST_AUDIO_S, is_carried, most_carried
from innervoice.simulator.device import H200_BF16, H200_FP8, Device, Measured, Roofline, read_profile
from innervoice.simulator.run import Run, SimReply
from innervoice.simulator.workload import Turn, Workload, constant, from_file, poisson
from innervoice.simulator.world import Spoken, World, simulate

__all__ = [
    "FIRST_AUDIO_S",
    "H200_BF16",
    "H200_FP8",
    "Device",
    "Measured",
    "Roofline",
    "Run",
    "SimReply",
    "Spoken",
    "Turn",
    "Workload",
    "World",
    "constant",
    "from_file",
    "is_carried",
    "most_carried",
    "poisson",
    "read_profile",
    "simulate",
]
