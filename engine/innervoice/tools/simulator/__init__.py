"""The scheduler under a virtual clock: how many listeners a machine carries that is described by its step times.

capacity.py  the most listeners that are carried
cluster.py   replicas under one clock, and sessions that are placed on them
device.py    step times: from the limits of a machine, or measured
run.py       the replies of a run, and their figures
workload.py  listeners: always there, arriving at random, or from a file
world.py     players and an engine of numbers under a virtual clock; the scheduler's own planner decides
"""

from innervoice.tools.simulator.capacity import FIRST_AUDIO_S, is_carried, most_carried
from innervoice.tools.simulator.cluster import PLACEMENTS, Cluster
from innervoice.tools.simulator.device import (
    H200_BF16,
    H200_FP8,
    Measured,
    Roofline,
    SimulatedDevice,
    read_profile,
)
from innervoice.tools.simulator.run import SimReply, SimulatedRun
from innervoice.tools.simulator.workload import Turn, Workload, constant, from_file, poisson
from innervoice.tools.simulator.world import Spoken, World, simulate

__all__ = [
    "FIRST_AUDIO_S",
    "H200_BF16",
    "H200_FP8",
    "PLACEMENTS",
    "Cluster",
    "Measured",
    "Roofline",
    "SimReply",
    "SimulatedDevice",
    "SimulatedRun",
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
