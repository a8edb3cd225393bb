"""The values that a field takes, read from its annotation: type, width and range, checked and converted here.

Every public option, argument and file field goes through `FieldType`, so that a value is looked at once, at the
edge, and whatever is behind it may rely on its type. A number's annotation has `Limits`; without them its
type cannot be made.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

MOST_INT32 = 2**31 - 1
MOST_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """The numbers that a field takes: from `least`, or above `above`, to `most`, which is among them.

    A number is finite unless is_finite is False; NaN is never one. unit: ends the message.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    unit: str = ""
    is_finite: bool = True

    def holds(self, value: float) -> bool:
        """Whether the number is within the limits."""
        if value != value or (self.is_finite and abs(value) == math.inf):
            return False
        is_above = self.above is None or value > self.above
        return (
            is_above
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    def remedy(self, is_whole: bool) -> str:
        """The end of a sentence that refuses a number."""
        if self.least is not None and self.most is not None:
            bounds = f"{self.least} to {self.most}"
        else:
            bounds = f"above {self.above}" if self.above is not None else ""
            bounds = f"{self.least} or more" if self.least is not None else bounds
            bounds += " and " * bool(bounds and self.most is not None)
            bounds += f"at most {self.most}" if self.most is not None else ""
        if self.is_finite and not is_whole and self.most is None:
            of = "of " if self.least is not None else ""
            bounds = f"a finite number {of}{bounds}".rstrip()
        return f"it must be {bounds}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True)
class Choices:
    """The only strings that a field takes."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Length:
    """The most items of a field that is a sequence, or characters of one that is a string."""

    most: int


@dataclass(frozen=True)
class Encodable:
    """A string that UTF-8 can express: one without lone surrogates."""


ANY_LENGTH = Length(2**24)
"""Of a field whose annotation has none; it also ends iterators that have no end."""

WORDS: Mapping[type, tuple[tuple[str, ...], str]] = {
    bool: (("True", "False"), "flags"),
    int: (("an integer",), "integers"),
    float: (("a number",), "numbers"),
    str: (("a string",), "strings"),
    bytes: (("bytes",), "bytes"),
    NoneType: (("None",), "None"),
}
"""What a value of a type is called, and what several are; others are called by their class."""

Count = Annotated[int, Limits(0, MOST_INT32)]
"""A whole number that the core keeps as int32 or wider."""
AtLeastOne = Annotated[int, Limits(1, MOST_INT32)]
Positive = Annotated[float, Limits(above=0)]
NotNegative = Annotated[float, Limits(0)]
Seconds = Annotated[float, Limits(above=0, is_finite=False)]
"""A time limit; infinity: none."""


class KeptInt(int):
    """An integer of a subclass, which a field keeps as it is instead of making a plain one."""


class _OtherType(Exception):
    """The value is of none of a kind's types."""


@dataclass(frozen=True)
class _Kind:
    """One type of a union. words: what a value of it is called; many: what several are."""

    words: tuple[str, ...]
    many: str

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The value, converted. Raises _OtherType, or ValueError for one outside the limits."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Number(_Kind):
    """int or float. A number of another type, such as numpy's, is converted; a bool is no number."""

    kind: type
    limits: Limits

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The number, as int or float."""
        is_whole = self.kind is int
        if isinstance(value, bool) or not isinstance(value, Integral if is_whole else Real):
            raise _OtherType
        try:
            number = self.kind(value)
        except OverflowError:  # too large for a float
            number = math.nan
        if not self.limits.holds(number):
            raise ValueError(f"{name} {verb} {shown(value)}: {self.limits.remedy(is_whole)}")
        return value if is_whole and isinstance(value, KeptInt) else number


@dataclass(frozen=True)
class _Flag(_Kind):
    """bool, or numpy's."""

    def read(self, value: Any, name: str, verb: str) -> Any:
        """True or False."""
        if not isinstance(value, bool | np.bool_):
            raise _OtherType
        return bool(value)


@dataclass(frozen=True)
class _Word(_Kind):
    """str, of some choices or of any."""

    choices: tuple[str, ...]
    length: Length
    is_encodable: bool

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The string."""
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise _OtherType
        if len(value) > self.length.most:
            raise ValueError(f"{name} has {len(value)} characters: it must have at most {self.length.most}")
        if self.is_encodable and (place := _first_surrogate(value)) is not None:
            raise ValueError(
                f"{name} has a lone surrogate, {value[place]!r}, at {place}: it must be Unicode text"
            )
        return str.__str__(value)  # of a subclass, such as an enumeration's, the plain string


@dataclass(frozen=True)
class _Items(_Kind):
    """Items of one type: any iterable but a string, bytes or a mapping. It becomes a tuple."""

    item: FieldType
    length: Length

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The items, each of them read."""
        if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
            raise _OtherType
        try:
            given = value.tolist() if isinstance(value, np.ndarray) else value
            items = list(islice(iter(given), self.length.most + 1))
        except TypeError:
            raise _OtherType from None
        if len(items) > self.length.most:
            raise ValueError(f"{name} has more than {self.length.most} items: shorten it")
        if items and self.item.holds_integers(items):
            return tuple(items)
        return tuple(self.item.read(one, f"{name}[{place}]") for place, one in enumerate(items))


@dataclass(frozen=True)
class _Table(_Kind):
    """A mapping of one type to another. It becomes a dictionary."""

    key: FieldType
    item: FieldType

    def read(self, value: Any, name: str, verb: str) -> Any:
        """Keys and items, each of them read."""
        if not isinstance(value, Mapping):
            raise _OtherType
        keys = [self.key.read(key, name, "holds") for key in value]
        return {key: self.item.read(value[key], f"{name}.{key}") for key in keys}


@dataclass(frozen=True)
class _Instance(_Kind):
    """An instance of a class, None among them; it stays as it is."""

    kind: type

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The object itself."""
        if not isinstance(value, self.kind):
            raise _OtherType
        return value


@dataclass(frozen=True)
class _Path(_Kind):
    """An object with a path; it stays as it is, but for one whose path is bytes: that path as a string."""

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The object itself, or its path."""
        if not isinstance(value, os.PathLike):
            raise _OtherType
        return value if isinstance(path := os.fspath(value), str) else os.fsdecode(path)


@dataclass(frozen=True)
class _Function(_Kind):
    """Anything that can be called."""

    def read(self, value: Any, name: str, verb: str) -> Any:
        """The function itself."""
        if not callable(value):
            raise _OtherType
        return value


@dataclass(frozen=True)
class FieldType:
    """The types that a field takes; the first of them that fits a value reads it."""

    kinds: tuple[_Kind, ...]

    @classmethod
    def of(cls, hint: Any, *extras: Any) -> FieldType:
        """The type of an evaluated annotation. extras: Limits, Choices or Length for all its members.

        An integer is good for a float. None is refused unless the annotation has it. Raises TypeError for an
        annotation that this module does not know, and for a number without Limits.
        """
        if get_origin(hint) is Annotated:
            inner, *own = get_args(hint)
            return cls.of(inner, *own, *extras)
        if isinstance(hint, UnionType) or get_origin(hint) is Union:
            return cls(tuple(kind for member in get_args(hint) for kind in cls.of(member, *extras).kinds))
        return cls((_kind(hint, extras),))

    def read(self, value: Any, name: str, verb: str = "is") -> Any:
        """The value as the field's type has it: numpy's numbers as Python's, iterables as tuples.

        Raises ValueError: one sentence, which begins with the name.
        """
        refusal: ValueError | None = None
        for kind in self.kinds:
            try:
                return kind.read(value, name, verb)
            except _OtherType:
                continue
            except ValueError as error:
                refusal = error
            except Exception as error:  # of the value's own methods
                why = shown(error)
                refusal = ValueError(f"{name} {verb} {shown(value)}, which fails with {why}: {self.remedy()}")
        raise refusal or ValueError(f"{name} {verb} {shown(value)}: {self.remedy()}")

    def holds_integers(self, items: Sequence[Any]) -> bool:
        """Whether all items are plain integers within the limits, which a long sequence is checked for first."""
        kind = self.kinds[0]
        if not isinstance(kind, _Number) or kind.kind is not int or set(map(type, items)) != {int}:
            return False
        return kind.limits.holds(min(items)) and kind.limits.holds(max(items))

    def remedy(self) -> str:
        """The end of a sentence that refuses a value of another type."""
        words = [word for kind in self.kinds for word in kind.words]
        return f"use {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else f"use {words[0]}"


def read_fields(made: Any, prefix: str = "", names: Mapping[str, str] | None = None) -> None:
    """Check and convert the fields of a dataclass's object, from its `__post_init__`.

    prefix: what stands before a field's name in messages; names: the names of some fields there. Raises
    ValueError.
    """
    for name, value in read_values(made, prefix, names).items():
        object.__setattr__(made, name, value)


def read_values(made: Any, prefix: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields of a dataclass's object, checked and converted; otherwise as `read_fields`."""
    names = names or {}
    return {
        name: kind.read(getattr(made, name), prefix + names.get(name, name))
        for name, kind in types_of(cast(Any, type(made))).items()
    }


@functools.cache
def types_of(made: Any) -> Mapping[str, FieldType]:
    """The types of a dataclass's fields, or of a function's arguments that are annotated, by name.

    A dataclass's field may have Limits, Choices and Length in its metadata as well, under "check".
    """
    hints = get_type_hints(made, include_extras=True)
    if isinstance(made, type):
        return {
            one.name: FieldType.of(hints[one.name], *one.metadata.get("check", ())) for one in fields(made)
        }
    plain = inspect.signature(made).parameters.values()
    named = [one.name for one in plain if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return {name: FieldType.of(hints[name]) for name in named if name in hints}


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Make a public function check and convert its arguments by their annotations.

    An argument that does not fit is a ValueError that names it.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        types = types_of(function)
        for name in bound.arguments.keys() & types.keys():
            bound.arguments[name] = types[name].read(bound.arguments[name], name)
        return function(*bound.args, **bound.kwargs)

    return call


def shown(value: Any) -> str:
    """A value for a message, on one line: its representation, cut in long ones; its class where it has none."""
    short = reprlib.Repr()
    short.maxother = short.maxstring = short.maxlong = 80
    try:
        return " ".join(short.repr(value).split())
    except Exception:
        return f"a {type(value).__name__} without a representation"


def _kind(hint: Any, extras: Sequence[Any]) -> _Kind:
    """The kind of a type that is no union."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    length = _extra(extras, Length) or ANY_LENGTH
    if hint is Any:
        return _Instance(("anything",), "items", object)
    if origin is Literal:
        return _Word(inner, "strings", inner, length, False)
    if origin is str:
        choices = _extra(extras, Choices) or Choices(())
        return _Word(
            choices.words or WORDS[str][0],
            "strings",
            choices.words,
            length,
            _extra(extras, Encodable) is not None,
        )
    if origin in (int, float):
        limits = _extra(extras, Limits)
        if limits is None:
            raise TypeError(f"{hint} has no limits: annotate it with Limits")
        return _Number(*WORDS[origin], origin, limits)
    if origin is bool:
        return _Flag(*WORDS[bool])
    if origin is Callable:
        return _Function(("a function",), "functions")
    if origin is Mapping:
        return _Table(("a mapping",), "mappings", FieldType.of(inner[0]), FieldType.of(inner[1]))
    if origin is Sequence or (origin is tuple and inner[1:] == (...,)):
        item = FieldType.of(inner[0])
        many = " or ".join(kind.many for kind in item.kinds)
        return _Items((f"a tuple of {many}",), "tuples", item, length)
    if origin is os.PathLike:
        return _Path(("a PathLike",), "paths")
    if not isinstance(origin, type):
        raise TypeError(f"{hint} is no annotation that a field can be read by")
    return _Instance(*WORDS.get(origin, ((_one(origin.__name__),), origin.__name__)), origin)


def _one(name: str) -> str:
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def _extra(extras: Sequence[Any], kind: type[T]) -> T | None:
    return next((one for one in extras if isinstance(one, kind)), None)


def _first_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
