"""The process around a command: standard streams that are closed, cut or full, and signals that end it."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(SystemExit):
    """A signal asked the process to end; raised on the main thread, so that half-written files go."""


class Outlet(io.RawIOBase):
    """A file descriptor that is written to as long as that works; the first error is kept, not raised.

    So a reader that goes away costs a command what it prints, and not what it writes to files.
    """

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True: it takes bytes, also where they are dropped."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it, or drop it once an error was met."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return size


def run_in_shell(run: Callable[[], int]) -> int:
    """Run a command with this process's streams and signals; returns its exit code.

    A cut pipe is no failure. Output that is lost to a full disk is one, with code 2. SIGTERM and SIGHUP, unless
    they are ignored, unwind the command and give 128 and their number, as Ctrl-C does, also where native code has
    made another exception of them.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise Ended(128 + number)

    _fill_closed_descriptors()
    output, errors = Outlet(1), Outlet(2)
    sys.stdout = _text(output, sys.stdout, "replace")
    sys.stderr = _text(errors, sys.stderr, "backslashreplace")
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        code = run()
    except BaseException:
        if not came:
            raise
        code = 128 + came[0]
    sys.stdout.flush()
    if output.error is not None and output.error.errno != errno.EPIPE and code == 0:
        print(f"innervoice: standard output: {output.error.strerror}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    return code


def _fill_closed_descriptors() -> None:
    """Give the three standard descriptors a place, so that no file that is opened later takes their part."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def _text(outlet: Outlet, like: TextIO | None, errors: str) -> TextIO:
    """A text stream over an outlet with encoding and buffering of another; None: the stream was closed."""
    if like is None:
        return open(os.devnull, "w", encoding="utf-8")
    with_lines = bool(getattr(like, "line_buffering", False)) or outlet.isatty()
    buffer = io.BufferedWriter(outlet)
    return io.TextIOWrapper(
        buffer,
        encoding=like.encoding,
        errors=errors,
        line_buffering=with_lines,
        write_through=bool(getattr(like, "write_through", False)),
    )
