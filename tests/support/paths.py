"""Folders of the checkout, for tests that read its files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINE = ROOT / "engine" / "innervoice"
KERNELS = ROOT / "kernels" / "innervoice_kernels"
TESTS = ROOT / "tests"
BENCH = ROOT / "bench"
DATA = TESTS / "data"
