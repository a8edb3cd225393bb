"""No file grows beyond what one can read in one sitting."""

from __future__ import annotations

from paths import ROOT

FOLDERS = ("engine", "kernels", "csrc", "bench", "tests")
ENDINGS = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
MAX_LINES = 430


def test_files_are_short() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS]
    lengths = {
        path: sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for path in files
    }
    assert len(lengths) > 20
    assert {
        str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MAX_LINES
    } == {}
