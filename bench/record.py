"""What a benchmark writes: records of one form, times taken in turns, the arguments that every module of bench/ has.

`python -m bench.NAME [--device cpu|cuda] [--quick] [--json FILE]` prints a line a record and writes the list to FILE.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, NamedTuple

import torch

Better = Literal["lower", "higher"]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


class Goal(NamedTuple):
    """What a ratio should reach: floor at least, stretch at best."""

    floor: float
    stretch: float | None
    better: Better = "higher"


GOALS = {
    "G1": Goal(0.80, 0.88), "G2": Goal(1.10, 1.25), "G3": Goal(5, 7), "G4a": Goal(1.65, 1.8), "G4b": Goal(2.5, 3.2),
    "G5": Goal(1.0, 1.25), "G6": Goal(0.80, 0.90), "G7": Goal(0.70, 0.80), "G8": Goal(1.10, 1.03, "lower"), "G9a": Goal(5, 10),
    "G9b": Goal(1.5, 2.5), "G9c": Goal(3, 5), "G10": Goal(1.5, 1.25, "lower"), "G11": Goal(1.3, 1.6), "G12": Goal(0.5, 0.7),
    "G13": Goal(2, None), "G14a": Goal(1.3, 2.0), "G14b": Goal(1.2, 1.8), "G15": Goal(4, 8), "G16a": Goal(2, 3),
    "G16b": Goal(0.15, 0.06, "lower"), "G17": Goal(1.1, 1.0, "lower"),
}  # fmt: skip

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "transformers",
    "flashinfer-python",
    "flash-attn",
    "llama-cpp-python",
    "onnxruntime",
)
MOST_MOVED = 0.15  # of a plain read beside a measurement, between its deciles
REHEARSAL = "a rehearsal: small shapes on a CPU"
COMMIT = "INNERVOICE_COMMIT"  # names the commit where the tree is not a repository


@dataclass(frozen=True)
class Times:
    """Durations of one thing in seconds, warm-up left out."""

    seconds: tuple[float, ...]
    warmup: int

    @property
    def n(self) -> int:
        """How many."""
        return len(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def p10(self) -> float:
        return _decile(self.seconds, 1)

    @property
    def p90(self) -> float:
        return _decile(self.seconds, 9)

    def ratios_to(self, peer: Times) -> tuple[float, ...]:
        """How many times as long the peer took, round by round; both were taken in turns."""
        return tuple(theirs / ours for ours, theirs in zip(self.seconds, peer.seconds, strict=True))

    def divided_by(self, count: int) -> Times:
        """The durations of one of `count` equal parts."""
        return Times(tuple(seconds / count for seconds in self.seconds), self.warmup)

    @property
    def unsteady(self) -> str | None:
        """Why records beside this plain read say nothing: it moved by more than `MOST_MOVED` within them."""
        moved = self.p90 / self.p10 - 1
        return None if moved <= MOST_MOVED else f"the plain read moved by {moved:.0%} within the record"


def _decile(values: Sequence[float], index: int) -> float:
    return quantiles(values, n=10, method="inclusive")[index - 1] if len(values) > 1 else values[0]


@dataclass(frozen=True)
class Record:
    """One case. ours and peer are in `unit`; ratio is in the goal's own sense, and beside no goal higher is better for us.

    n, median, p10, p90, warmup are of `ours`; peer_p10 and peer_p90 of the peer. invalid: why the ratio says nothing, such as a
    peer that runs below its means.
    """

    name: str
    shape: str
    unit: str
    device: str
    ours: float | None
    goal: str | None = None
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    dtype: str | None = None
    better: Better = "lower"
    n: int | None = None
    median: float | None = None
    p10: float | None = None
    p90: float | None = None
    warmup: int | None = None
    peer_p10: float | None = None
    peer_p90: float | None = None
    bytes: int | None = None
    flops: int | None = None
    invalid: str | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    commit: str = field(default_factory=lambda: commit()[0])
    dirty: bool | None = field(default_factory=lambda: commit()[1])
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    command: str = field(default_factory=lambda: command())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.goal is not None and self.goal not in GOALS:
            raise ValueError(
                f"record {self.name}: there is no goal {self.goal!r}; there are {', '.join(GOALS)}"
            )
        if self.better not in ("lower", "higher"):
            raise ValueError(f"record {self.name}: better is {self.better!r}, expected lower or higher")
        for name in ("ours", "peer", "ratio", "median", "p10", "p90"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"record {self.name}: {name} is {value}, expected a number or None")

    @classmethod
    def of(
        cls,
        name: str,
        shape: str,
        ours: Times,
        *,
        unit: str = "us",
        device: str,
        peer: Times | None = None,
        **more: Any,
    ) -> Record:
        """A record of durations, in `unit` (s, ms or us); ratio, unless given: how many times as long the peer takes."""
        scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
        values = {"ours": ours.median * scale, "n": ours.n, "warmup": ours.warmup}
        values |= {part: getattr(ours, part) * scale for part in ("median", "p10", "p90")}
        if peer is not None:
            values |= {
                "peer": peer.median * scale,
                "peer_p10": peer.p10 * scale,
                "peer_p90": peer.p90 * scale,
            }
            more = {"ratio": peer.median / ours.median} | more
        return cls(name=name, shape=shape, unit=unit, device=device, **values, **more)

    @property
    def ratio_better(self) -> Better:
        """Which way the ratio should go."""
        return "higher" if self.goal is None else GOALS[self.goal].better

    @property
    def key(self) -> str:
        """What makes two records comparable: the case, and the machine it ran on."""
        parts = (self.goal, self.name, self.shape, self.dtype, self.device, self.peer_name, self.unit)
        return json.dumps(parts)

    def line(self) -> str:
        """As it is printed."""
        text = f"{self.goal or '-':5} {self.name:28} {self.shape:34} {_number(self.ours):>10} {self.unit:6}"
        if self.peer is not None:
            text += f" {self.peer_name} {_number(self.peer)}"
        if self.ratio is not None:
            text += f"  ratio {self.ratio:.3f}"
        return text + (f"  INVALID: {self.invalid}" if self.invalid else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    device: str = "cpu",
    rounds: int = 20,
    warmup: int = 3,
    at_least_s: float = 0.0,
    inner: int = 1,
    before: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time things in turns, so that what else the machine does falls on all alike: rounds of each, after warmup of each.

    More rounds are taken until at_least_s seconds have passed. inner: a duration is the mean of so many calls in a row. On cuda
    between two device events, for what is queued in between; on the CPU by the clock: time.process_time leaves out what
    other processes take, and adds up the threads of this one. before: calls ahead of each timed one, by its name, that are
    not timed, such as a pause in which spinning threads go to sleep.
    """
    if rounds < 1 or inner < 1 or not runs:
        raise ValueError(
            f"interleaved: {len(runs)} runs, rounds {rounds}, inner {inner}: expected at least 1 of each"
        )
    once = _once_on_cuda if device.startswith("cuda") else partial(_once_on_cpu, clock)
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + at_least_s
    done = 0
    while done < rounds or time.perf_counter() < end:
        for name, run in runs.items():
            if before is not None and name in before:
                before[name]()
            seconds[name].append(once(run, inner))
        done += 1
    return {name: Times(tuple(values), warmup) for name, values in seconds.items()}


def _once_on_cpu(clock: Callable[[], float], run: Callable[[], object], inner: int) -> float:
    begin = clock()
    for _ in range(inner):
        run()
    return (clock() - begin) / inner


def _once_on_cuda(run: Callable[[], object], inner: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(inner):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / inner


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every module has; it may add its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    made.add_argument("--quick", action="store_true", help="few cases and rounds: does it run, not how fast")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the list of records goes")
    return made


def add_append(arguments: argparse.ArgumentParser) -> None:
    """Add --append, by which several runs make one file."""
    arguments.add_argument(
        "--append",
        action="store_true",
        help="keep the records of --json's file, but those of cases measured anew",
    )


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A type of arguments: names with commas between them, each one of `known`."""
    every = list(known)

    def names(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in every]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(every)}")
        return text.split(",")

    return names


def report(
    records: Iterable[Record], path: Path | None, *, rehearsal: bool = False, append: bool = False
) -> list[Record]:
    """Print records as they come, and write those there are so far to path after each, so that a cut run leaves what it had.

    rehearsal: the shapes are small and the device is not the goals'; records with a goal are marked invalid.
    append: records of other cases that the file holds stay in it.
    """
    made: list[Record] = []
    before = []
    if path is not None:
        try:
            before = read(path) if append and path.exists() else []
            # A file that cannot be written is told before minutes of measurement.
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            path.open("a", encoding="utf-8").close()
            if is_new:
                path.unlink()
        except (OSError, ValueError) as error:
            raise SystemExit(f"--json {path}: {error}") from None
    try:
        for record in records:
            if rehearsal and record.goal is not None and record.invalid is None:
                record = replace(record, invalid=REHEARSAL)
            made.append(record)
            print(record.line(), flush=True)
            if path is not None:
                anew = {record.key for record in made}
                write([*(record for record in before if record.key not in anew), *made], path)
    except KeyboardInterrupt:
        where = "" if path is None or not made else f", in {path}"
        print(f"interrupted after {len(made)} records{where}", file=sys.stderr)
        raise SystemExit(130) from None
    return made


def write(records: Sequence[Record], path: Path) -> None:
    """A JSON list, a record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "[\n" + ",\n".join(json.dumps(asdict(record)) for record in records) + "\n]\n", encoding="utf-8"
    )


def read(path: Path) -> list[Record]:
    """The records of a file. Raises ValueError for a file of another form."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): name another file for the records") from error
    if not isinstance(lines, list):
        raise ValueError(f"{path} holds a {type(lines).__name__}, expected a list of records")
    try:
        return [Record(**line) for line in lines]
    except TypeError as error:
        raise ValueError(f"{path} holds something that is no record: {error}") from error


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor with its cores."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name())
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def cpu_facts() -> str:
    """Family, model and vector instructions of the processor; empty where /proc/cpuinfo is missing."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    flags = sorted(set((fields.get("flags") or fields.get("features") or "").split()))
    vectors = [flag for flag in flags if re.match(r"avx|amx|fma|f16c|bmi|sse|asimd|sve|i8mm|bf16", flag)]
    numbers = [
        f"{name} {fields[name]}"
        for name in ("vendor_id", "cpu family", "model", "stepping")
        if name in fields
    ]
    return ", ".join([*numbers, " ".join(vectors)])


def gpu_state() -> dict[str, float | None]:
    """clock_mhz and power_w of the GPU now, None where nvidia-smi does not say: take it right behind a measurement."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        numbers = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split(
            ","
        )
        return {"clock_mhz": float(numbers[0]), "power_w": float(numbers[1])}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {"clock_mhz": None, "power_w": None}


@cache
def commit() -> tuple[str, bool | None]:
    """The commit, and whether the tree differs from it; ("unknown", None) where nothing says."""
    if COMMIT in os.environ:
        return os.environ[COMMIT], None
    try:
        head, status = (
            subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown", None
    return head, bool(status)


@cache
def versions() -> dict[str, str]:
    """Python, the packages that are installed, CUDA and the driver."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def command() -> str:
    """How this process was started, from the project's root; of an absolute path the last part: the rest is one machine's own."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    words = ["python", "-m", spec.name] if spec is not None else ["python", Path(sys.argv[0]).name]
    return shlex.join([*words, *(re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:])])
