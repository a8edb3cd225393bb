"""One `!new:` mapping of a YAML file, read key by key; every complaint names file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from innervoice.config.files import note_unknown, require
from innervoice.config.yaml_data import Tagged


class Section:
    """The mapping behind `!new:NAME` at `path` of a file. Raises ValueError when something else stands there."""

    def __init__(self, value: Any, name: str, file: Path, path: str) -> None:
        if not isinstance(value, Tagged) or (value.kind, value.name) != ("new", name) or not isinstance(value.value, dict):
            raise ValueError(f"{file}: {path} must be !new:{name} with keys of its own, found {short(value)}")
        self.data: Mapping[str, Any] = _named(value.value, f"{file}: {path}")
        self.source = f"{file}: {path}"
        self._file, self._path, self._known = file, path, set[str]()

    def part(self, key: str, name: str) -> Section:
        """A `!new:` mapping within this one."""
        self._known.add(key)
        return Section(self.data.get(key), name, self._file, f"{self._path}.{key}")

    def mapping(self, key: str) -> dict[str, Any]:
        """A plain mapping."""
        self._known.add(key)
        return _named(require(self.data, key, self.source, dict), f"{self.source}.{key}")

    def integer(self, key: str, data: Mapping[str, Any] | None = None) -> int:
        """A whole number, 1 or more; of `data` where the key stands in a plain mapping."""
        self._known.add(key)
        value = require(self.data if data is None else data, key, self.source, int)
        if value < 1:
            raise ValueError(f"{self.source}: {key} is {value}, expected 1 or more")
        return int(value)

    def number(self, key: str, data: Mapping[str, Any] | None = None) -> float:
        """A finite number, 0 or more."""
        self._known.add(key)
        value = float(require(self.data if data is None else data, key, self.source))
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{self.source}: {key} is {value}, expected 0 or more")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, 1 or more."""
        self._known.add(key)
        return self._tuple(key, require(self.data, key, self.source, list))

    def nested(self, key: str) -> tuple[tuple[int, ...], ...]:
        """A list of such lists."""
        self._known.add(key)
        return tuple(self._tuple(key, row) for row in require(self.data, key, self.source, list))

    def only(self, key: str, supported: Any, default: Any = None, data: Mapping[str, Any] | None = None) -> None:
        """Refuse any other value; `default` is what the original takes where the key is absent."""
        self._known.add(key)
        found = (self.data if data is None else data).get(key, default)
        if found != supported:
            raise ValueError(f"{self.source}: {key} is {short(found)}; only {supported!r} is supported")

    def ignore(self, *keys: str) -> None:
        """Keys that mean nothing for inference."""
        self._known.update(keys)

    def done(self) -> None:
        """Log the keys that were neither read nor ignored."""
        note_unknown(self.data, self._known, self.source)

    def _tuple(self, key: str, row: Any) -> tuple[int, ...]:
        if not isinstance(row, list) or not row or not all(type(n) is int and n > 0 for n in row):
            raise ValueError(f"{self.source}: {key} is {short(row)}, expected a list of whole numbers above 0")
        return tuple(row)


def _named(data: dict[Any, Any], source: str) -> dict[str, Any]:
    for key in data:
        if not isinstance(key, str):
            raise ValueError(f"{source}: the key {key!r} is no name")
    return data


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = str(value) if isinstance(value, Tagged) else "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
