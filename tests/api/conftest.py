"""Fixtures of the tests on the tiny checkpoint: prompts, and the expected results of the original modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from innervoice import Text


@pytest.fixture(scope="module")
def expected(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "tiny" / "expected.json").read_text())


@pytest.fixture(scope="module")
def prompts(assets_dir: Path, expected: dict[str, Any]) -> dict[str, Any]:
    return {
        "case0": assets_dir / "reading.wav",
        "case1": assets_dir / "question.wav",
        "text": Text(expected["text"]["text"]),
    }
