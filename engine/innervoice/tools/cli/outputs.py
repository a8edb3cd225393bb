"""Files that a command writes: all of them appear together, or none does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from innervoice.files import replacing, sound_format


@dataclass(frozen=True)
class ReplyFiles:
    """The files that a reply is written to; None: not asked for."""

    audio: Path
    events: Path | None = None
    trace: Path | None = None

    @property
    def paths(self) -> dict[str, Path]:
        """The paths that were asked for, by field."""
        return {f.name: path for f in fields(self) if (path := getattr(self, f.name)) is not None}


@contextmanager
def staged(outputs: ReplyFiles) -> Iterator[ReplyFiles]:
    """Hidden files beside the outputs, moved into their places when the block ends well and removed when it
    does not.

    A hidden file that the block removes leaves its output as it was. Raises OSError or ValueError at once when
    an output cannot be written.
    """
    sound_format(outputs.audio)
    with all_reserved(outputs.paths) as parts:
        yield ReplyFiles(**parts)


@contextmanager
def all_reserved(outputs: Mapping[str, Path | None]) -> Iterator[dict[str, Path]]:
    """The hidden files of several outputs by name, as `reserved` makes them; None: not asked for.

    Raises OSError, and ValueError for two outputs of one path.
    """
    targets = {name: path for name, path in outputs.items() if path is not None}
    places = [os.path.realpath(path) for path in targets.values()]
    if len(set(places)) < len(places):
        raise ValueError(f"two outputs go to {max(places)}: give each a path of its own")
    with ExitStack() as stack:
        yield {name: stack.enter_context(reserved(target)) for name, target in targets.items()}


@contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """The hidden file that is to replace `path`, created now: a place that cannot be written to is known before
    the work begins.

    Raises OSError.
    """
    with replacing(path) as part:
        if not part.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: there is no directory {path.parent}, so create it or name another"
            )
        try:
            part.touch(exist_ok=False)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror}, so name another place") from None
        yield part


def create_folder(path: Path) -> None:
    """Create a directory and its parents. Raises OSError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot create the directory {path}: {error.strerror}, so name another") from None


def is_same(source: Path, targets: Iterable[Path]) -> bool:
    """Whether a file is one of others, behind whatever links."""
    return os.path.realpath(source) in map(os.path.realpath, targets)


def refuse_same(source: Path, target: Path) -> None:
    """Raise ValueError when an output is the input."""
    if is_same(source, [target]):
        raise ValueError(f"{source} is the input and would be overwritten: name another output")
