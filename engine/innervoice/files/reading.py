"""Reading a file that a caller names: a missing, unreadable or foreign one is refused in one sentence."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, BinaryIO

AnyPath = str | PathLike[str]
_MOST_SHOWN = 255  # characters of a path in a message


def read_bytes(path: AnyPath, remedy: str, kind: str = "") -> bytes:
    """The bytes of a file or a pipe.

    remedy: the end of the message, such as "name an audio file"; kind: of file, for the message. Raises
    FileNotFoundError when nothing is there, ValueError with the system's reason for a directory, a device and a
    file that cannot be read.
    """
    with _opened(path, remedy, kind) as file:
        return file.read()


def read_text(path: AnyPath, remedy: str, kind: str = "") -> str:
    """The UTF-8 text of a file; otherwise as `read_bytes`. Raises ValueError for other bytes too."""
    try:
        return read_bytes(path, remedy, kind).decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"{named(path)} is no {kind}, because it" if kind else named(path)
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start}): {remedy}") from None


def parse_json(text: str, where: str, remedy: str) -> Any:
    """The value of a JSON text; where: its file, and its line. Raises ValueError for any other text."""
    try:
        return json.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{where} is not JSON ({reason}): {remedy}")


def check_readable(path: AnyPath, remedy: str) -> None:
    """Raise what `read_bytes` raises, before a library opens the file and blames its contents."""
    with _opened(path, remedy):
        pass


def named(path: AnyPath) -> str:
    """A path for a message, on one line: an empty, unprintable or long one is quoted, and cut."""
    text = os.fsdecode(path)
    if text.strip() and text.isprintable() and len(text) <= _MOST_SHOWN:
        return text
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


@contextmanager
def _opened(path: AnyPath, remedy: str, kind: str = "") -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise ValueError(f"{named(path)} is a device: {remedy}")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        missing = f"there is no {kind} {named(path)}" if kind else f"{named(path)} does not exist"
        raise FileNotFoundError(f"{missing}: {remedy}") from None
    except IsADirectoryError:
        raise ValueError(f"{named(path)} is a directory: {remedy}") from None
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be read ({error.strerror or error}): {remedy}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{named(path)} cannot be read (a lone surrogate in its name): {remedy}") from None
    except ValueError as error:
        if "null byte" in str(error):
            raise ValueError(f"{named(path)} cannot be read (a null byte in its name): {remedy}") from None
        raise
