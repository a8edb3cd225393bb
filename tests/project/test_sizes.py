"""Files are short, lines are narrow, assignments set one thing, a type name means one thing, tests stand on their own."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from paths import ENGINE, KERNELS, ROOT
from source_tree import imports, modules, packed_assignments, type_names

FOLDERS = ("engine", "kernels", "csrc", "bench", "tests")
ENDINGS = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
MAX_LINES = 400
MAX_SEAM_LINES = 60
MAX_MEDIAN = 130
MAX_COLUMNS = 110
MAX_WIDE_SHARE = 0.02
MAX_PACKED_PER_1000 = 3
MAX_SHARED_NAMES = 5


def lines_of(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sources() -> dict[Path, list[str]]:
    """The Python of engine and kernels, file by file, without blank lines."""
    return {path: lines_of(path) for path in modules(ENGINE) + modules(KERNELS)}


def test_files_are_short() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS]
    lengths = {path: len(lines_of(path)) for path in files}
    assert len(lengths) > 20
    assert {
        str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MAX_LINES
    } == {}


def test_the_median_file_is_read_in_one_sitting(sources: dict[Path, list[str]]) -> None:
    assert statistics.median(map(len, sources.values())) < MAX_MEDIAN


def test_lines_are_narrow(sources: dict[Path, list[str]]) -> None:
    wide = {
        str(path.relative_to(ROOT)): num
        for path, lines in sources.items()
        if (num := sum(len(line) > MAX_COLUMNS for line in lines))
    }
    total = sum(map(len, sources.values()))
    assert sum(wide.values()) < MAX_WIDE_SHARE * total, sorted(wide.items(), key=lambda pair: -pair[1])


def test_an_assignment_sets_one_thing(sources: dict[Path, list[str]]) -> None:
    packed = {str(path.relative_to(ROOT)): found for path in sources if (found := packed_assignments(path))}
    total = sum(map(len, sources.values()))
    assert sum(map(len, packed.values())) < MAX_PACKED_PER_1000 * total / 1000, packed


def test_a_type_name_means_one_thing() -> None:
    shared = {name: files for name, files in type_names().items() if len(files) > 1}
    assert len(shared) <= MAX_SHARED_NAMES, shared


def test_additions_through_the_seams_are_small() -> None:
    seams = sorted((ROOT / "tests").rglob("test_seam_*.py"))
    # A policy, an event field, a residual codec, a codec that the engine speaks through.
    assert len(seams) == 4
    assert {path.name: len(lines_of(path)) for path in seams if len(lines_of(path)) > MAX_SEAM_LINES} == {}


def test_no_test_imports_a_test() -> None:
    tests = ROOT / "tests"
    found = {
        str(path.relative_to(ROOT)): names
        for path in modules(tests)
        if (names := [name for name in imports(path, tests) if name.split(".")[0].startswith("test_")])
    }
    assert found == {}
