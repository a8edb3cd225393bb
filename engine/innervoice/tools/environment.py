"""The environment: versions, native module, processor, memory, GPUs.

Also runs by itself: `python environment.py`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

Report = dict[str, str]

_PACKAGES = (
    "innervoice",
    "torch",
    "triton",
    "flash-attn",
    "numpy",
    "safetensors",
    "soundfile",
    "soxr",
    "huggingface-hub",
)
_ISA = (
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "asimddp", "sve", "bf16"
)  # fmt: skip
_MEMORY = (("MemTotal", "in all"), ("MemAvailable", "free"))
_GIB = 2**30


def report() -> Report:
    """Name -> finding, in the order to print.

    Never raises: a finding says if something cannot be found out.
    """
    found = {"system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    found["python"] = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})"
    found |= {name: _version(name) for name in _PACKAGES}
    found |= {"torch build": _torch_build(), "native module": _native_module()}
    found |= {"cpu": _cpu(), "cores": _cores(), "memory": _memory(), "gpu": _gpus()}
    return found


def as_text(found: Report) -> str:
    """The report as aligned lines."""
    width = max(len(name) for name in found)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch_build() -> str:
    try:
        torch = importlib.import_module("torch")
        cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return f"{cuda}, {torch.get_num_threads()} threads"
    except Exception as error:  # a broken installation fails in many ways, and the report is to say in which
        return f"cannot be imported: {type(error).__name__}: {error}"


def _native_module() -> str:
    try:
        module = importlib.import_module("innervoice_kernels._C")
    except Exception as error:
        return f"cannot be imported: {type(error).__name__}: {error}"
    facts = [
        f"{name} {getattr(module, name)}"
        for name in ("__version__", "build", "compiler", "isa")
        if hasattr(module, name)
    ]
    return ", ".join([str(module.__file__), *facts])


def _cpu() -> str:
    info = _read("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip().lower(): value.strip() for name, value in fields.items()}
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return ", ".join([name, " ".join(flag for flag in _ISA if flag in flags) or "vector extensions unknown"])


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()} usable"


def _memory() -> str:
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    parts = [
        f"{int(fields[key].split()[0]) * 1024 / _GIB:.1f} GiB {word}"
        for key, word in _MEMORY
        if key in fields
    ]
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    parts += [f"limited to {int(limit) / _GIB:.1f} GiB"] if limit.isdigit() else []
    return ", ".join(parts) or "unknown"


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none (no nvidia-smi)"
    query = [tool, "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: nvidia-smi failed ({error})"
    rows = (line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 3)
    return (
        "; ".join(
            f"{name}, {memory}, sm {capability}, driver {driver}" for name, memory, capability, driver in rows
        )
        or "none"
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    print(as_text(report()))
