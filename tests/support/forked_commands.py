"""Runs commands of the command line as processes: a fork each of one that has imported it.

Reads a list of cases as JSON from standard input and prints what came of each: exit code, error output, files
of its folder with their modes. A case has words, and what becomes of the standard streams: `stdin` and `stdout`
are "closed", "cut" (a pipe whose reader is gone) or a path; `stderr` may be "closed"; `signal` is sent once the
first line is out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from innervoice.tools.cli.main import main


def start(case: dict[str, Any], folder: Path, errors: Path, ready: int) -> None:
    """The child's side: streams as the case wants them."""
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    for descriptor, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY | os.O_CREAT)):
        kind = case.get(name, "/dev/null")
        if kind == "closed":
            os.close(descriptor)
            setattr(sys, name, None)
        elif kind == "cut":
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, descriptor)
        else:
            os.dup2(os.open(kind, flags, 0o600), descriptor)
    if case.get("stderr") == "closed":
        os.close(2)
        sys.stderr = None  # type: ignore[assignment]
    if "signal" in case:  # which may be ignored where the tests run, as below nohup
        default = signal.default_int_handler if case["signal"] == signal.SIGINT else signal.SIG_DFL
        signal.signal(case["signal"], default)
        os.dup2(ready, 1)
    sys.argv = [
        "innervoice",
        *(os.fsdecode(word.encode()) for word in case["words"]),
    ]  # as the locale reads them


def outcome(pid: int, folder: Path, errors: Path) -> dict[str, Any]:
    """The parent's side, once the child is over."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
    text = errors.read_text("utf-8", "replace") if errors.exists() else ""
    return {"code": status, "stderr": text, "files": modes}


def run(cases: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """All outcomes in order; None in a child, which is to run its command."""
    made = []
    for number, case in enumerate(cases):
        folder, errors = (
            Path(f"case{case.get('folder', number)}").resolve(),
            Path(f"errors{number}").resolve(),
        )
        folder.mkdir(exist_ok=True)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            start(case, folder, errors, write)
            return None
        os.close(write)
        if "signal" in case:
            os.read(read, 1)
            os.kill(pid, case["signal"])
        made.append(outcome(pid, folder, errors))
        os.close(read)
    return made


if __name__ == "__main__":
    found = run(json.load(sys.stdin))
    if found is None:
        sys.exit(main())
    json.dump(found, sys.stdout)
