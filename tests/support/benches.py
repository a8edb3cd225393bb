"""Modules of bench/, which is no package of the project and not on its path: `bench("record")` is bench/record.py."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from paths import BENCH


def bench(name: str) -> ModuleType:
    """The module bench.NAME, which may import others as bench.OTHER."""
    if "bench" not in sys.modules:
        package = ModuleType("bench")
        package.__path__ = [str(BENCH)]
        sys.modules["bench"] = package
    return importlib.import_module(f"bench.{name}")
