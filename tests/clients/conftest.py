"""Fixtures of the clients' tests: one tapped server, and the record of all that it sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from driven_clients import CACHE, Place, tapped
from tool_models import CALLS_ONCE, make_tool_model

from innervoice import Engine


@pytest.fixture(scope="session")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", dtype="float32", max_sessions=4) as made:
        yield made


@pytest.fixture(scope="session")
def calling_engine(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine whose model calls the tool `weather` and speaks once it has the result."""
    folder = make_tool_model(tiny_dir, tmp_path_factory.mktemp("model"), CALLS_ONCE, greedy=True)
    with Engine.from_pretrained(folder, device="cpu", dtype="float32", max_sessions=4) as made:
        yield made


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of all events that the server sent to clients whose tests are over."""
    return tmp_path_factory.mktemp("record") / "events.jsonl"


@pytest.fixture(scope="module")
def place(engine: Engine, tmp_path_factory: pytest.TempPathFactory, record: Path) -> Iterator[Place]:
    for name in ("py", "agents", "node"):
        assert (CACHE / name).exists(), (
            f"{CACHE / name} is missing: run `make clients`, which installs the clients"
        )
    with tapped(engine, tmp_path_factory.mktemp("sound"), record) as made:
        yield made
