"""Issue slots of a launch, counted in the machine code for sm_90: what bounds a kernel whose memory traffic does not.

A scheduler issues one instruction of one warp a cycle. A launch's slots are those of the busiest scheduler: its warps' share of
the programs that its multiprocessor gets, each with all instructions of the kernel, those of loops as often as they run. At
1.98 GHz an H200 needs at least slots / 1980 microseconds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from innervoice_kernels.jit import Launch, cdiv

MULTIPROCESSORS, SCHEDULERS = 132, 4
# How often a kernel's loops run, for those whose slots are counted.
TRIPS: dict[str, Callable[[dict[str, Any]], int]] = {
    "flow_linear": lambda given: cdiv(given["DEPTHS"], given["DEPTH"]),
    "flow_attend": lambda given: cdiv(given["T"], given["KEYS"]),
}
_LABEL = re.compile(r"^(\.L_x?_?\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"BRA.*`\((\.L_x?_?\d+)\)")


def count(name: str, launch: Launch, cubin: bytes) -> dict[str, int]:
    """Programs of a launch and the slots of its busiest scheduler; nothing for a kernel whose loops are not known."""
    if name not in TRIPS:
        return {}
    programs = prod(launch.grid)
    busiest = cdiv(programs, MULTIPROCESSORS) * cdiv(launch.options["num_warps"], SCHEDULERS)
    return {
        "programs": programs,
        "slots": busiest * instructions(assembly(cubin), TRIPS[name](launch.arguments)),
    }


def instructions(text: str, trips: int) -> int:
    """Instructions that a warp issues, by a listing whose loops all run so often and lie beside each other."""
    places: dict[str, int] = {}
    loops, total = [], 0
    for line in text.splitlines():
        label, instruction = _LABEL.match(line.strip()), _INSTRUCTION.search(line)
        if label:
            places[label[1]] = total
        elif instruction:
            branch = _BRANCH.search(instruction[1])
            # A branch to itself is the filling behind the end.
            if branch and branch[1] in places and places[branch[1]] < total:
                loops.append(total + 1 - places[branch[1]])
            total += 1
    return total + (trips - 1) * sum(loops)


def assembly(cubin: bytes) -> str:
    """The machine code, as nvdisasm lists it."""
    return listing("nvdisasm", cubin, "-c")


def listing(tool: str, cubin: bytes, option: str) -> str:
    """What a tool of Triton's package says of a kernel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], capture_output=True, text=True, check=True).stdout
