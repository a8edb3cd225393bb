"""Reading a file that a caller names: a missing, unreadable or foreign one is refused in one sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO

AnyPath = str | PathLike[str]


def read_bytes(path: AnyPath, remedy: str) -> bytes:
    """The bytes of a file or a pipe.

    remedy: the end of the message, such as "name an audio file". Raises FileNotFoundError when nothing is
    there, ValueError with the system's reason for a directory, a device and a file that cannot be read.
    """
    with _opened(path, remedy) as file:
        return file.read()


def read_text(path: AnyPath, remedy: str) -> str:
    """The UTF-8 text of a file; otherwise as `read_bytes`. Raises ValueError for other bytes too."""
    try:
        return read_bytes(path, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): {remedy}") from None


def check_readable(path: AnyPath, remedy: str) -> None:
    """Raise what `read_bytes` raises, before a library opens the file and blames its contents."""
    with _opened(path, remedy):
        pass


@contextmanager
def _opened(path: AnyPath, remedy: str) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise ValueError(f"{path} is a device: {remedy}")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist: {remedy}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory: {remedy}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from None
    except ValueError as error:
        if "null byte" in str(error):
            raise ValueError(
                f"{os.fspath(path)!r} cannot be read (a null byte in its name): {remedy}"
            ) from None
        raise
