"""The memory that is left: the machine's, each control group's above the process, the limit of addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

from innervoice import Engine, OutOfCapacity
from innervoice.api import loader
from innervoice.api.available_memory import available_bytes

CPU = torch.device("cpu")
MIB = 2**20
LIMITED = """
import json, resource, sys
from innervoice import Engine, OutOfCapacity
room = int(open("/proc/self/statm").read().split()[0]) * 4096 + 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    Engine.from_pretrained(sys.argv[1], threads=1, max_sessions=2000)
except OutOfCapacity as error:
    print(json.dumps(str(error)))
"""


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_without_any_figures_it_is_the_physical_memory(tmp_path: Path) -> None:
    assert available_bytes(CPU, tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_memory_in_use_by_others_is_not_available(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 2000 kB")
    assert available_bytes(CPU, tmp_path) == 2000 * 1024


def test_a_gpu_has_what_is_free_and_what_torch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's memory is not available, whatever the GPU has in all."""
    free, total, reserved, allocated = 20 * MIB, 100 * MIB, 9 * MIB, 6 * MIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    assert available_bytes(torch.device("cuda:1")) == 23 * MIB


@pytest.mark.parametrize("depth", ["", "slice", "slice/box", "elsewhere"])
def test_a_group_of_version_2_leaves_its_limit_less_its_use(tmp_path: Path, depth: str) -> None:
    """The group itself, one above it, the top one; cached files make room."""
    groups = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "0::/slice/box")
    for folder in ("", "slice", "slice/box"):
        write(groups / folder / "memory.max", "max")
        write(groups / folder / "memory.current", 5 * MIB)
    write(groups / depth / "memory.max", 100 * MIB)
    write(groups / depth / "memory.current", 30 * MIB)
    write(groups / depth / "memory.stat", f"anon 5\ninactive_file {10 * MIB}")
    found = available_bytes(CPU, tmp_path)
    assert (found == 80 * MIB) == (depth != "elsewhere")


def test_a_group_of_version_1_is_read_where_a_container_sees_it(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup/memory"
    write(tmp_path / "proc/self/cgroup", "9:cpu:/x\n4:hugetlb,memory:/docker/0123\n0::/")
    write(groups / "memory.limit_in_bytes", 64 * MIB)
    write(groups / "memory.usage_in_bytes", 20 * MIB)
    write(groups / "memory.stat", f"total_inactive_file {4 * MIB}")
    assert available_bytes(CPU, tmp_path) == 48 * MIB
    write(groups / "memory.usage_in_bytes", 200 * MIB)
    assert available_bytes(CPU, tmp_path) == 0


def test_a_limit_of_addresses_counts(tiny_dir: Path) -> None:
    folders = os.pathsep.join(str(ROOT / name) for name in ("engine", "kernels"))
    command = [sys.executable, "-c", LIMITED, str(tiny_dir)]
    made = subprocess.run(command, env={**os.environ, "PYTHONPATH": folders}, capture_output=True, text=True)
    assert "max_sessions is 2000" in json.loads(made.stdout) and "GiB left on cpu" in made.stdout


def test_more_sessions_than_fit_are_refused_before_they_are_made(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_load", None)
    with pytest.raises(OutOfCapacity, match=r"max_sessions is 1000000: .* sessions fit into the .* GiB left"):
        Engine.from_pretrained(tiny_dir, max_sessions=10**6)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_failed_allocation_is_a_lack_of_capacity(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(loader, "ModelRunner", fail)
    with pytest.raises(OutOfCapacity, match=r"needs .* GiB with 16 sessions .* GiB left on cpu .*: lower"):
        Engine.from_pretrained(tiny_dir, device="cpu")


def test_another_failure_stays_what_it_is(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loader, "ModelRunner", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        Engine.from_pretrained(tiny_dir, device="cpu")
