"""Half an hour of a page that talks: memory of page and server stays flat, and all sound that is sent is played."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from driven_clients import RATE, Place, command, lines_of, surroundings
from small_servers import running_server

from innervoice import Engine

pytestmark = [pytest.mark.slow, pytest.mark.long]
MINUTES = float(os.environ.get("PAGE_MINUTES", "30"))
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """The memory of this process, which runs the server."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE / 2**20


@pytest.fixture(scope="module")
def talk(
    engine: Engine, place: Place, drivers: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Samples of page and server.

    The microphone's recording: a question, another one that cuts the reply to it, and silence in which the second
    reply ends.
    """
    spoken = tmp_path_factory.mktemp("talk") / "spoken.wav"
    question = np.frombuffer(place.question.read_bytes(), "<i2")
    silences = [np.zeros(seconds * RATE, np.int16) for seconds in (6, 20)]
    soundfile.write(spoken, np.concatenate([question, silences[0], question, silences[1]]), RATE)
    server_mb: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(15):
            server_mb.append(resident_mb())

    options = {"vad": "silero", "api_keys": (), "schedule": "stitch_s"}
    with running_server(engine, **options, max_output_tokens=240) as server:
        environment = surroundings(server.base, place.question)
        environment |= {"REALTIME_SPOKEN": str(spoken), "PAGE_MINUTES": str(MINUTES)}
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        done = subprocess.run(
            command(str(drivers / "talk.mjs"), ()),
            env=environment,
            capture_output=True,
            text=True,
            timeout=90 * MINUTES + 120,
        )
        over.set()
    assert done.returncode == 0, done.stderr[-3000:]
    lines = lines_of(done.stdout)
    if "PAGE_TALK" in os.environ:
        Path(os.environ["PAGE_TALK"]).write_text(done.stdout + f"\n{server_mb}\n")
    return {
        "samples": [one for one in lines if one["kind"] == "sample"],
        "lines": lines,
        "server_mb": server_mb,
    }


def growth(values: list[float]) -> float:
    """The last fifth over the one after 40%: by then the recording that the page keeps is full."""
    num = max(1, len(values) // 5)
    return statistics.median(values[-num:]) / statistics.median(values[2 * num : 3 * num])


def test_it_talked_all_the_time(talk: dict[str, Any]) -> None:
    last = talk["samples"][-1]
    assert last["state"] == "open"
    assert last["faults"] == []
    assert last["replies"] > MINUTES
    assert last["cuts"] > MINUTES
    assert [one for one in talk["lines"] if one["kind"] in ("error", "failed")] == []


def test_memory_is_flat(talk: dict[str, Any]) -> None:
    samples = talk["samples"]
    for name in ("heapMb", "residentMb", "nodes"):
        assert growth([one[name] for one in samples]) < 1.15, name
    assert growth(talk["server_mb"]) < 1.05


def test_sent_and_played_sound_stay_together(talk: dict[str, Any]) -> None:
    """A reply that was not cut has been played by as much as was sent when the next one begins."""
    assert talk["samples"][-1]["lagMs"] < 50


CALLBACK_MS = 1000 * 256 / 48_000  # the clocks of a browser go on by so much at a time


def test_the_clocks_of_microphone_and_loudspeaker_stay_together(talk: dict[str, Any]) -> None:
    """Neither clock gains on the other, but for the steps of one that a busy machine did not call in time."""
    apart = [one["playClockMs"] - one["captureClockMs"] for one in talk["samples"]]
    changes = [later - one for one, later in pairwise(apart)]
    steady = [change for change in changes if abs(change) <= 2 * CALLBACK_MS + 0.5]
    assert len(steady) > 0.8 * len(changes)
    assert abs(sum(steady)) < 50
