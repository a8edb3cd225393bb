"""`training/` is no package of the wheel: its tests find it in the checkout, and keep its work in their own folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from paths import ROOT

# Only this package joins the path: the root also holds a folder `kernels`, a name that transformers looks for.
if "training" not in sys.modules:
    folder = ROOT / "training"
    found = importlib.util.spec_from_file_location(
        "training", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert found is not None and found.loader is not None, "training/ is not in this checkout"
    package = importlib.util.module_from_spec(found)
    sys.modules["training"] = package
    found.loader.exec_module(package)


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory for one test, in which nothing is made to wait."""
    monkeypatch.setenv("INNERVOICE_TRAINING", str(tmp_path))
    return tmp_path
