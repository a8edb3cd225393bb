"""Products with inputs of 8 bits by instructions that this processor may lack, bit by bit against the reference.

The kernels run in a program of their own, without Python: AVX-VNNI's by AVX-512's form of the same instruction, all by
SIMDe where its headers are (a folder in INNERVOICE_SIMDE, or the system's), NEON's in QEMU where a cross compiler and
qemu-aarch64 are. What cannot run is compiled as far as a compiler is there, and skipped then.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lane_cases import LANED, SIZES, made, reference
from paths import ROOT
from torch import Tensor

from innervoice.model.lanes import LanedWeight
from innervoice.model.quant import Int8Weight, in_lanes

pytestmark = pytest.mark.slow

SYSTEM = ("/usr/include", "/usr/local/include")
CROSS, QEMU = "aarch64-linux-gnu-g++", ("qemu-aarch64", "qemu-aarch64-static")
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-Wno-psabi")
BY_AVX512 = "#include <immintrin.h>\n#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32\n"
BY_SIMDE = "#include <simde/x86/avx512.h>\n#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32\n"


@dataclass(frozen=True)
class Way:
    """How a file of lanes is compiled and run. before: lines ahead of it; needs: flags in /proc/cpuinfo that running it takes."""

    isa: str
    flags: tuple[str, ...]
    before: str = ""
    needs: frozenset[str] = frozenset()
    by_simde: bool = False
    is_cross: bool = False


WAYS = {
    "plain": Way("plain", ()),
    "avxvnni": Way("avxvnni", (*AVX2, "-mavxvnni"), needs=frozenset({"avx_vnni"})),
    "avxvnni by avx512": Way(
        "avxvnni", (*AVX2, "-mavx512vl", "-mavx512vnni"), BY_AVX512, frozenset({"avx512vl", "avx512_vnni"})
    ),
    "avxvnni by simde": Way("avxvnni", AVX2, BY_SIMDE, frozenset({"avx2"}), by_simde=True),
    "avx512 by simde": Way("avx512", AVX2, needs=frozenset({"avx2"}), by_simde=True),
    "neon by simde": Way("neon", AVX2, needs=frozenset({"avx2"}), by_simde=True),
    "neon": Way("neon", ("-march=armv8.2-a+dotprod", "-static"), is_cross=True),
}


def simde_folder() -> Path | None:
    """The folder that holds a simde/ with what lanes of AVX-512 need (0.8 has it), if there is one."""
    for folder in (os.environ.get("INNERVOICE_SIMDE"), *SYSTEM):
        conversions = Path(folder or "/") / "simde" / "x86" / "avx512" / "cvt.h"
        if conversions.exists() and "simde_mm512_cvtepi32_ps" in conversions.read_text(encoding="utf-8"):
            return Path(folder or "/")
    return None


def processor_flags() -> set[str]:
    """Those that Linux names, of an x86; of others none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def compiled(way: Way, folder: Path) -> Path:
    """The program, linked; skips where no compiler or no headers are."""
    is_here = way.isa == "plain" or way.is_cross or platform.machine() in ("x86_64", "AMD64")
    compiler = CROSS if way.is_cross else os.environ.get("CXX", "g++")
    if not is_here or shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} for {way.isa}")
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror", *way.flags]
    command += ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "include"), f"-DLANES={way.isa}"]
    if way.by_simde:
        simde = simde_folder()
        if simde is None:
            pytest.skip("no headers of SIMDe 0.8 or newer: name their folder in INNERVOICE_SIMDE")
        # A folder of the system's is searched anyway; named, it would hide from C++ the headers of C behind its own.
        command += ["-DINNERVOICE_SIMDE", *([] if str(simde) in SYSTEM else ["-isystem", str(simde)])]
    source, program = folder / "lanes.cpp", folder / "lanes"
    source.write_text(f'{way.before}#include "cpu/lanes/{way.isa}.cpp"\n', encoding="utf-8")
    files = [str(source), str(ROOT / "tests" / "native" / "lane_check.cpp")]
    subprocess.run([*command, *files, "-o", str(program)], check=True, timeout=300)
    return program


def runner(way: Way) -> list[str]:
    """The words before the program; skips where nothing runs it."""
    if way.is_cross and platform.machine() != "aarch64":
        found = [name for name in QEMU if shutil.which(name)]
        if not found:
            pytest.skip("compiled only: no qemu-aarch64")
        return found[:1]
    missing = way.needs - processor_flags()
    if missing:
        pytest.skip(f"compiled only: this processor has no {', '.join(sorted(missing))}")
    return []


def case(x: Tensor, weight: LanedWeight, first: int) -> bytes:
    """As lane_check.cpp reads it."""
    sizes = (len(x), *weight.shape, weight.group or 0, int(weight.minimum is not None), first)
    parts = [x, weight.codes, weight.scale, *([] if weight.minimum is None else [weight.minimum])]
    return np.array(sizes, np.int64).tobytes() + b"".join(
        part.contiguous().numpy().tobytes() for part in parts
    )


@pytest.mark.parametrize("name", WAYS)
def test_every_set_of_instructions_has_the_bits_of_the_reference(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    program = compiled(way, tmp_path)
    run = [*runner(way), str(program)]
    generator = torch.Generator().manual_seed(4)
    given, right = [], []
    for kind in LANED:
        for rows, outputs, columns in SIZES:
            x = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 3, columns)
            if rows > 2:
                x[0], x[1, columns // 2] = 0.0, float("inf")
            weight = made(kind, outputs, columns, generator)
            if isinstance(weight, Int8Weight):
                weight.codes[-1] = -128
            laned, first = in_lanes(weight), outputs // 3
            assert isinstance(laned, LanedWeight)
            given.append(case(x, laned, first))
            right.append(reference(x, weight)[:, first:].flatten())
    done = subprocess.run(run, input=b"".join(given), capture_output=True, timeout=300, check=True)
    got, expected = torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()), torch.cat(right)
    assert len(got) == len(expected)
    same = (got == expected) | (got.isnan() & expected.isnan())
    assert same.all() and expected.isfinite().any() and expected.isnan().any(), f"{int((~same).sum())} differ"
