"""The work directory: where stages keep their files, how they write them, log them and share the machine."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# Set this variable to keep the work somewhere else; `--work` of `python -m training.run` does the same.
VARIABLE = "INNERVOICE_TRAINING"
# While a file of this name exists in the work directory the stages pause between two utterances or two training steps.
PAUSE = "pause"


def work_dir() -> Path:
    """Return the work directory, outside the repository: `~/.cache/innervoice-training` by default."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "innervoice-training")


def stage_dir(name: str) -> Path:
    """Return the folder of one stage in the work directory, made if it is missing."""
    path = work_dir() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: Path, write: Any) -> None:
    """Call `write(temporary path)` and give the file its name only when it is whole.

    A reader never sees half a file; a job that was stopped leaves at most a file whose name starts with a dot.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as one .npz file, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_atomic(path, write)


def save_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


class Log:
    """A log of JSON lines under `logs/`; every line carries the time and the stage's CPU minutes so far."""

    def __init__(self, stage: str) -> None:
        self.path = stage_dir("logs") / f"{stage}.jsonl"
        self.stage = stage
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        before = json.loads(lines[-1])["cpu_minutes"] if lines else 0.0
        self._before = before - time.process_time() / 60

    @property
    def cpu_minutes(self) -> float:
        """CPU minutes of this process, plus those that earlier runs of the stage have spent."""
        return self._before + time.process_time() / 60

    def write(self, **fields: Any) -> None:
        """Append one line and print it."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stage": self.stage,
            "cpu_minutes": round(self.cpu_minutes, 2),
            **fields,
        }
        text = json.dumps(line, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)


def wait_while_paused() -> None:
    """Sleep as long as the file `PAUSE` exists in the work directory, so that the cores are free for something else."""
    pause = work_dir() / PAUSE
    while pause.exists():
        time.sleep(2.0)


def shards(folder: Path, pattern: str = "*.npz") -> Iterator[Path]:
    """Yield the finished shards of a folder in the order of their names."""
    return iter(sorted(path for path in folder.glob(pattern) if not path.name.startswith(".")))


@contextmanager
def only_process(name: str) -> Iterator[None]:
    """Hold a lock of the work directory: one process at a time has it.

    Raises:
        RuntimeError: Another process holds it.
    """
    path = work_dir() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(
                f"{path} is held by {file.read().strip()}: wait for its end, or end it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} ({' '.join(sys.argv[1:])})")
        file.flush()
        yield
