"""A file, or a directory, that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from innervoice.files.reading import named

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_NAME_BYTES = 255
_RANDOM_BYTES = 4


@contextmanager
def replacing(path: str | PathLike[str], *, folder: bool = False) -> Iterator[Path]:
    """Give the path of a hidden file beside `path`, to be written whole or not at all.

    It takes the place of `path` when the block ends well, with the mode of the file that was there, and is
    removed when it does not. A block that leaves no hidden file leaves `path` as it was. Behind a symbolic
    link the file is replaced, not the link. folder: it is to become a directory, and `path` does not exist or
    is an empty one. Raises ValueError for a name that no file has, and OSError, which names `path` and the reason:
    before the block where `path` cannot be replaced, else when a write fails.
    """
    target = check_replaceable(path, folder=folder)
    part = _beside(target)
    try:
        yield part
        if part.exists():
            _take_over_mode(target, part)
            os.replace(part, target)
    except OSError as error:
        is_hidden = str(error.filename).startswith(str(part))
        if is_hidden or (error.filename is None and error.errno in _NO_ROOM):
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise
    finally:
        with suppress(OSError):  # its folder is gone or was never one
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def check_replaceable(path: str | PathLike[str], *, folder: bool = False) -> Path:
    """Refuse what `replacing` refuses before its block -> the path with symbolic links followed.

    Those are a device, a pipe, a directory where a file is to be, and a file that may not be written to. Raises
    OSError, and ValueError for a name that no file has.
    """
    try:
        target = Path(os.path.realpath(path))
        _check(Path(path), folder)
    except ValueError as error:  # of null bytes and lone surrogates
        reason = "a lone surrogate" if isinstance(error, UnicodeError) else "a null byte"
        raise ValueError(f"{named(path)} cannot be written ({reason} in its name): name another") from None
    return target


def _check(target: Path, folder: bool) -> None:
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if folder:
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no directory, so name another", str(target))
    elif not stat.S_ISREG(mode):
        kind = "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
        raise OSError(
            errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"{kind}, so name another", str(target)
        )
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it may not be written to, so name another", str(target))


def _beside(target: Path) -> Path:
    """A hidden name in the same directory that no other process or thread uses, no longer than names may be."""
    mark = f".{secrets.token_hex(_RANDOM_BYTES)}.part{target.suffix}"
    stem = os.fsencode(target.stem)[: max(0, _MOST_NAME_BYTES - 1 - len(os.fsencode(mark)))]
    return target.with_name(f".{os.fsdecode(stem)}{mark}")


def _take_over_mode(target: Path, part: Path) -> None:
    """Give the new file owner and mode of the old one, where there is one and as far as that is allowed."""
    with suppress(FileNotFoundError):
        old, new = target.stat(), part.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with suppress(PermissionError):
                os.chown(part, old.st_uid, old.st_gid)
        os.chmod(part, stat.S_IMODE(old.st_mode))
