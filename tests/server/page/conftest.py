"""Fixtures of the page's tests: a browser with its driver, one engine, and a tapped server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from driven_clients import BROWSERS, CACHE, RATE, Place, tapped

from innervoice import Engine

DRIVERS = Path(__file__).parent / "drivers"


@pytest.fixture(scope="session", autouse=True)
def browser() -> None:
    """Skip where no browser or driver is installed, but fail where `make page-test` has asked for them."""
    named = os.environ.get("CHROMIUM")
    lacks = [] if named or any(map(shutil.which, BROWSERS)) else ["Chromium"]
    lacks += [] if shutil.which("node") else ["Node.js"]
    lacks += [] if (CACHE / "node" / "node_modules" / "playwright-core").exists() else ["playwright-core"]
    if lacks:
        (pytest.fail if os.environ.get("PAGE_TEST") else pytest.skip)(
            f"the page's tests lack {' and '.join(lacks)}: install them and run `make page-test`"
        )


@pytest.fixture(scope="session")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", dtype="float32", max_sessions=1) as made:
        made.warmup()
        yield made


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of all events that the server sent."""
    return tmp_path_factory.mktemp("page") / "events.jsonl"


@pytest.fixture(scope="module")
def place(engine: Engine, tmp_path_factory: pytest.TempPathFactory, record: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sound")
    with tapped(engine, folder, record, ignore_eos=True, max_output_tokens=120) as made:
        made.environment["REALTIME_SPOKEN"] = str(spoken(made, folder))
        yield made


def spoken(place: Place, folder: Path) -> Path:
    """The microphone's recording: a question between silence. A browser may take seconds to open the microphone."""
    samples = np.frombuffer(place.question.read_bytes(), "<i2")
    silence = np.zeros(4 * RATE, np.int16)
    soundfile.write(folder / "spoken.wav", np.concatenate([silence, samples, silence]), RATE)
    return folder / "spoken.wav"


@pytest.fixture(scope="session")
def drivers() -> Path:
    """The folder of the drivers."""
    return DRIVERS
