"""Training is no package of the wheel: its tests find it in the checkout, and keep its work in a folder of
their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory for one test, in which nothing is made to wait."""
    monkeypatch.setenv("INNERVOICE_TRAINING", str(tmp_path))
    return tmp_path
