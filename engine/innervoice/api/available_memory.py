"""Memory that this process can still get: the least that the machine, its container and its limits leave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # where there are no such limits
    resource = None  # type: ignore[assignment]

# The files of a control group's limit and use, and the line of memory.stat with cached files that nobody uses.
_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can be allocated on a device now.

    On a CPU the least of the physical memory, MemAvailable, what each control group above the process leaves
    (versions 1 and 2), and RLIMIT_AS less the address space in use. root: where proc and sys lie.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [physical, *_machine(root), *_groups(root), *_address_space(root)]
    return max(0, min(left))


def _machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _groups(root: Path) -> Iterator[int]:
    """What each control group of the process, and each above it, leaves."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, top = 2, root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            version, top = 1, root / "sys/fs/cgroup/memory"
        else:
            continue
        # A container often sees its own group as the top one, whatever path it is given.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield from _group(top.joinpath(*parts[:depth]), version)


def _group(folder: Path, version: int) -> Iterator[int]:
    limit_file, use_file, cached_line = _GROUP_FILES[version]
    with suppress(OSError, ValueError):  # no limit is the word max, or no file
        limit, used = (int((folder / name).read_text()) for name in (limit_file, use_file))
        cached = 0
        with suppress(OSError, ValueError):
            stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(stats.get(cached_line, 0))
        yield limit - max(0, used - cached)


def _address_space(root: Path) -> Iterator[int]:
    if resource is None:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        used = 0
        with suppress(OSError, ValueError):
            used = int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        yield limit - used
