"""What a GPU is asked first, in the order of what is worth most: `python -m bench.first --results DIR`.

A GPU may be had for a quarter of an hour in all, ten minutes a command. Each part is a process of its own with a time by which
it is over, counted from the beginning: what one leaves, the next may use. All of it prints as it goes, and a part that is cut
off keeps the records that it had. The folder gets the records of all parts, the tests' report and the log. Without a GPU it is a
rehearsal: the same parts in the same order over small shapes, whose records are marked invalid.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.record import RESULTS, ROOT, read, write

LIMIT_S = (
    530  # of the ten minutes of a command, with a margin for the installation before and the transfer behind
)
RECORDS = "first.json"


@dataclass(frozen=True)
class Part:
    """A process and its place in the order.

    goals: that its records have, in their order. ends_s: seconds after the beginning at which it is stopped. words: of its
    command behind `python`, without the device and the file.
    """

    name: str
    goals: tuple[str, ...]
    ends_s: int
    words: tuple[str, ...]

    def command(self, device: str, results: Path, quick: bool) -> list[str]:
        """How it is started."""
        own = [sys.executable, *self.words]
        if self.name == "tests":
            return [*own, "--junitxml", str(results / "tests.xml")]
        more = ["--quick"] if quick else []
        return [*own, "--device", device, *more, "--json", str(self.records(results))]

    def records(self, results: Path) -> Path:
        """The file of its own records, until they are put to those of all parts."""
        return results / f"first-{self.name}.json"


_TESTS = (
    "-m", "pytest", "-o", "pythonpath=tests/support", "-p", "no:cacheprovider", "-v", "-m", "gpu", "tests/project/test_gpu.py",
    "-k",
)  # fmt: skip
PARTS = (
    Part("decode", ("G1", "G2", "G3"), 120, ("-m", "bench.decode", "--part", "first")),
    Part("formats", ("G4a", "G4b"), 180, ("-m", "bench.formats", "--first")),
    Part(
        "kernels",
        ("G5", "G6", "G8"),
        240,
        ("-m", "bench.kernels", "--only", "decode_attention,head_step,linear"),
    ),
    Part("codec", ("G9a", "G9c"), 300, ("-m", "bench.codec", "--only", "networks,attentions,batches")),
    Part(
        "reply",
        ("G10",),
        360,
        ("-m", "bench.reply"),
    ),
    Part("tests", (), 440, (*_TESTS, "not error_rule")),
    Part("peers", ("G2",), 500, ("-m", "bench.decode", "--part", "compiled")),
    Part("compiled", ("G9b",), LIMIT_S, ("-m", "bench.codec", "--only", "compiled")),
)


class Log:
    """Prints, and writes to a file what it prints."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def line(self, text: str) -> None:
        """Print a line at once."""
        print(text, flush=True)
        self._file.write(text + "\n")
        self._file.flush()


def run(parts: Sequence[Part], device: str, results: Path, quick: bool) -> list[str]:
    """Run the parts in order -> the names of those that failed or were stopped."""
    results.mkdir(parents=True, exist_ok=True)
    for old in (results / RECORDS, *(part.records(results) for part in parts)):
        old.unlink(missing_ok=True)
    log, begin, failed = Log(results / "log.txt"), time.monotonic(), []
    for part in parts:
        left = part.ends_s - (time.monotonic() - begin)
        log.line(f"== {part.name}: {', '.join(part.goals) or 'no goals'}; {left:.0f} s are left for it")
        if left <= 0 or not _is_over_well(
            part.command(device, results, quick), left, log, _environment(device)
        ):
            failed.append(part.name)
        _keep(part.records(results), results / RECORDS)
        log.line(f"== {part.name} ended {time.monotonic() - begin:.0f} s after the beginning")
    log.line(f"== failed or stopped: {', '.join(failed) or 'none'}")
    return failed


def _environment(device: str) -> dict[str, str]:
    """Of a part's process, which prints at once; threads of a rehearsal would wait for each other where cores are taken."""
    own = {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})
    return {**os.environ, **own}


def _is_over_well(command: Sequence[str], limit_s: float, log: Log, environment: dict[str, str]) -> bool:
    """Run a process for a time at most, and print what it prints."""
    words = ["timeout", "--signal=INT", "--kill-after=10", f"{limit_s:.1f}", *command]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in _lines(process):
            log.line(line)
    return process.returncode == 0


def _keep(own: Path, all_of_them: Path) -> None:
    """Put the records of a part to those of the parts before it."""
    if own.exists():
        write([*(read(all_of_them) if all_of_them.exists() else []), *read(own)], all_of_them)
        own.unlink()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip("\n")


def plan() -> str:
    """The order, as a table."""
    lines = [
        f"{part.ends_s:4} s  {part.name:10} {' '.join(part.goals) or '-':12} {' '.join(part.words)}"
        for part in PARTS
    ]
    return "\n".join(["ends at", *lines])


def main(argv: list[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    arguments.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    arguments.add_argument("--quick", action="store_true", help="few cases: does it run, not how fast")
    arguments.add_argument("--plan", action="store_true", help="print the order, and run nothing")
    options = arguments.parse_args(argv)
    if options.plan:
        print(plan())
        return 0
    quick = options.quick or options.device == "cpu"
    return 1 if run(PARTS, options.device, options.results, quick) else 0


if __name__ == "__main__":
    raise SystemExit(main())
