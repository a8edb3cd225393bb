"""Reading a YAML file that speaks of classes and functions: its tags become plain records,
nothing is constructed or called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from innervoice.checkpoint.files import note_unknown, require
from innervoice.files import read_bytes


@dataclass(frozen=True)
class Tagged:
    """A tagged YAML value: kind is new, name, apply or ref; name the dotted name (of a
    ref: the key); value plain data.
    """

    kind: str
    name: str
    value: Any = None

    def __str__(self) -> str:
        return f"!ref <{self.name}>" if self.kind == "ref" else f"!{self.kind}:{self.name}"


class _DataLoader(yaml.SafeLoader):
    """SafeLoader with tags of its own; aliases are refused (they could make the data endless)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"the alias *{self.peek_event().anchor} is not allowed")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


def _reference(loader: yaml.SafeLoader, node: yaml.Node) -> Tagged:
    text = str(node.value)
    match = re.fullmatch(r"<(\w+)>", text)
    if match is None:
        raise ValueError(f"!ref {text} is not supported, only the name of a top-level key in angle brackets")
    return Tagged("ref", match[1])


def _refuse(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise ValueError(f"the tag {node.tag} is not allowed")


for _kind in ("new", "name", "apply"):
    _DataLoader.add_multi_constructor(
        f"!{_kind}:", lambda loader, name, node, kind=_kind: Tagged(kind, name, _plain(loader, node))
    )
_DataLoader.add_constructor("!ref", _reference)
_DataLoader.add_constructor(None, _refuse)


def read_yaml(path: str | PathLike[str]) -> dict[str, Any]:
    """A YAML mapping with Tagged records in it.

    Raises FileNotFoundError, ValueError (bad YAML, a tag that is not allowed).
    """
    file = Path(path)
    content = read_bytes(file, f"is {file.parent} a checkpoint directory?")
    try:
        data = yaml.load(content.decode("utf-8"), Loader=_DataLoader)
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file} is not valid YAML ({problem}{where}): download it again") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text: download it again") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply: download it again") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}; take the file from a source you trust") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no YAML mapping: download it again")
    return data


def tags(value: Any) -> Iterator[Tagged]:
    """Every Tagged record within a value, the value itself included."""
    if isinstance(value, Tagged):
        yield value
        value = value.value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from tags(entry)


def resolve(value: Any, top: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """The value with each !ref replaced by the top-level value it names.

    Raises ValueError for unknown or circular names.
    """
    if isinstance(value, Tagged) and value.kind == "ref":
        if value.name not in top:
            raise ValueError(f"{value} names no key of this file")
        if value.name in path:
            raise ValueError(f"{value} refers back to itself")
        return resolve(top[value.name], top, (*path, value.name))
    if isinstance(value, Tagged):
        return Tagged(value.kind, value.name, resolve(value.value, top, path))
    if isinstance(value, dict):
        return {key: resolve(entry, top, path) for key, entry in value.items()}
    if isinstance(value, list):
        return [resolve(entry, top, path) for entry in value]
    return value


class Section:
    """The mapping behind `!new:NAME` at `path` of a file.

    Raises ValueError when something else stands there.
    """

    def __init__(self, value: Any, name: str, file: Path, path: str) -> None:
        if (
            not isinstance(value, Tagged)
            or (value.kind, value.name) != ("new", name)
            or not isinstance(value.value, dict)
        ):
            raise ValueError(f"{file}: {path} must be !new:{name} with keys of its own, found {short(value)}")
        self.data: Mapping[str, Any] = _named(value.value, f"{file}: {path}")
        self.source = f"{file}: {path}"
        self._file = file
        self._path = path
        self._known: set[str] = set()

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

    def only(
        self, key: str, supported: Any, default: Any = None, data: Mapping[str, Any] | None = None
    ) -> None:
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
            raise ValueError(
                f"{self.source}: {key} is {short(row)}, expected a list of whole numbers above 0"
            )
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
