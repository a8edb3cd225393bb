"""Reading checkpoint files: clear errors, unknown keys named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.files import read_bytes

log = logging.getLogger("innervoice")


def read_json(path: str | PathLike[str]) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, or ValueError when the file is no JSON object."""
    file = Path(path)
    content = read_bytes(file, f"is {file.parent} a checkpoint directory?")
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}): download it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds a JSON {type(data).__name__}, expected an object")
    return data


def require(
    data: Mapping[str, Any],
    key: str,
    source: str | PathLike[str],
    kind: type | tuple[type, ...] = (int, float),
) -> Any:
    """data[key], checked to be there and of a type. Raises ValueError naming file and key."""
    if key not in data:
        raise ValueError(f"{source}: key {key!r} is missing")
    value = data[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{source}: {key} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value


def agree(data: Mapping[str, Any], source: str | PathLike[str], *keys: str) -> None:
    """Hold the spellings of one setting to one value; a missing key and null say nothing.

    Raises ValueError, which names two that differ.
    """
    given = [(key, data[key]) for key in keys if data.get(key) is not None]
    for key, value in given[1:]:
        first, expected = given[0]
        if value != expected:
            raise ValueError(
                f"{source}: {first} is {expected!r} and {key} is {value!r}, but they are one setting: "
                "give both the same value, or remove one"
            )


def note_unknown(data: Mapping[str, Any], known: Iterable[str], source: str | PathLike[str]) -> None:
    """Log the keys of a foreign file that mean nothing to us."""
    unknown = sorted(set(data) - set(known))
    if unknown:
        log.info("%s: unknown keys are ignored: %s", source, ", ".join(unknown))


def refuse_unknown(data: Mapping[str, Any], known: Iterable[str], source: str | PathLike[str]) -> None:
    """Raise ValueError for keys that one of our own files should not have."""
    allowed = sorted(known)
    unknown = sorted(set(data) - set(allowed), key=str)
    if unknown:
        raise ValueError(f"{source}: unknown key {unknown[0]!r}; known keys are {', '.join(allowed)}")
