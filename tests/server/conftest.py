"""Fixtures of the server's tests: an engine with the tiny checkpoint and two places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from innervoice import Engine


@pytest.fixture(scope="session")
def small_engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", dtype="float32", max_sessions=2) as made:
        yield made
