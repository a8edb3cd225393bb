"""Shared fixtures: where the golden vectors, the tiny checkpoint and the recordings are."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# The root holds a folder named kernels, which transformers would take for a package of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread for small tensors, which more only slow down, most of all beside other work; slow tests share all of them."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(
        max(1, (os.cpu_count() or 1) // workers)
        if item.get_closest_marker("slow") or item.get_closest_marker("long")
        else 1
    )


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Golden vectors of the original modules."""
    return Path(__file__).resolve().parent / "data"


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """What the package carries for its demo: a tiny checkpoint and two recordings."""
    return Path(str(resources.files("innervoice"))) / "assets"


@pytest.fixture(scope="session")
def tiny_dir(assets_dir: Path) -> Path:
    """The tiny checkpoint in the shipped on-disk format."""
    return assets_dir / "tiny"
