"""Clients of other projects, each run as a program of its own against a tapped server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr
from paths import ROOT, TESTS
from small_servers import KEY, RunningServer, running_server
from wire_tap import Wire, WireTap

from innervoice import Engine, Sampling
from innervoice.server.realtime import reply_request

CACHE = ROOT / ".cache" / "clients"
DRIVERS = TESTS / "clients" / "drivers"
RATE = 24000
TIMEOUT_S = 240.0
SEED = 5  # the first reply to "How are you?" has seven seconds of sound, so that it can be interrupted
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def command(driver: str, words: tuple[str, ...]) -> list[str]:
    """How a driver is run: in the environment of its client."""
    if driver.endswith(".mjs"):
        return ["node", str(DRIVERS / driver), *words]
    environment = "agents" if driver.startswith("agents") or "openai-agents" in words else "py"
    return [str(CACHE / environment / "bin" / "python"), str(DRIVERS / driver), *words]


def lines_of(out: str) -> list[dict[str, Any]]:
    """What a driver printed; other lines are its client's own."""
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"kind"')]


def surroundings(base: str, question: Path) -> dict[str, str]:
    """The environment variables of a driver."""
    made = os.environ | {
        "REALTIME_BASE": f"{base}/v1",
        "REALTIME_KEY": KEY,
        "REALTIME_QUESTION": str(question),
        "NODE_MODULES": str(CACHE / "node" / "node_modules"),
    }
    made.pop("PYTHONPATH", None)
    made.setdefault("CHROMIUM", next(filter(None, map(shutil.which, BROWSERS)), "chromium"))
    return made


def judged(driver: str, *words: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a validator says of events."""
    lines = "".join(json.dumps(event) + "\n" for event in events)
    environment = surroundings("", Path())
    done = subprocess.run(
        command(driver, words),
        env=environment,
        input=lines,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return lines_of(done.stdout)


@dataclass
class Driven:
    """A client that runs or has run. lines: what it printed, in order. wires: its connections."""

    process: subprocess.Popen[str]
    tap: WireTap
    first_wire: int
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wires(self) -> list[Wire]:
        """The connections since it was started."""
        return self.tap.wires[self.first_wire :]

    @property
    def wire(self) -> Wire:
        """Its only connection."""
        [wire] = self.wires
        return wire

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def only(self, kind: str) -> dict[str, Any]:
        """The one line of a kind."""
        [line] = self.of(kind)
        return line

    def finish(self) -> Driven:
        """Wait for its end. Raises AssertionError when it failed."""
        try:
            out, errors = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, errors = self.process.communicate()
        self.lines = lines_of(out)
        assert self.process.returncode == 0, f"{out[-3000:]}\n{errors[-6000:]}"
        self.tap.wait(lambda: all(wire.is_over for wire in self.wires))
        return self


@dataclass(frozen=True)
class Place:
    """A tapped server, and what clients need to reach it."""

    server: RunningServer
    tap: WireTap
    question: Path
    record: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, driver: str, *words: str) -> Driven:
        """Start a client."""
        environment = surroundings(self.server.base, self.question) | self.environment
        process = subprocess.Popen(
            command(driver, words),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Driven(process, self.tap, len(self.tap.wires))

    def drive(self, driver: str, *words: str) -> Driven:
        """Run a client to its end."""
        return self.start(driver, *words).finish()


@contextmanager
def tapped(
    engine: Engine, folder: Path, record: Path, *, ignore_eos: bool = False, **options: Any
) -> Iterator[Place]:
    """Serve with a tap, and write all that passed to the record when the block ends.

    ignore_eos: replies are as long as the server allows. options: of `ServerOptions`.
    """
    tap = WireTap()
    question = folder / "question.pcm"
    samples, rate = soundfile.read(
        str(resources.files("innervoice") / "assets" / "question.wav"), dtype="float32"
    )
    question.write_bytes((soxr.resample(samples, rate, RATE) * 32767).astype("<i2").tobytes())
    environment = {}
    if "ssl_certfile" in options:
        environment["REALTIME_CA"] = str(options["ssl_certfile"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            f"{reply_request.__name__}.Sampling", partial(Sampling, seed=SEED, ignore_eos=ignore_eos)
        )
        with running_server(engine, tap.around, vad="silero", **options) as server:
            yield Place(server, tap, question, record, environment)
    with record.open("a", encoding="utf-8") as out:
        for wire in tap.wires:
            is_beta = "realtime=v1" in wire.headers.get("openai-beta", "")
            for event in wire.sent:
                out.write(json.dumps({"dialect": "beta" if is_beta else "ga", "event": event}) + "\n")
