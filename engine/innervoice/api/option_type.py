"""OptionType: the types that an option takes, read from its annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_WORDS = {
    bool: ("True", "False"),
    int: ("an integer",),
    float: ("a number",),
    str: ("a string",),
    NoneType: ("None",),
}


@dataclass(frozen=True)
class OptionType:
    """The classes of which a value may be an instance.

    An integer is good for a float. A bool is no number, and None is refused unless the annotation has it.
    """

    kinds: tuple[type, ...]

    @classmethod
    def of(cls, hint: Any) -> OptionType:
        """The type of an evaluated annotation: a class, or a union of classes."""
        members = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
        return cls(tuple(get_origin(member) or member for member in members))

    def holds(self, value: Any) -> bool:
        """Whether the value is of one of the types."""
        return any(_is_instance(value, kind) for kind in self.kinds)

    def remedy(self, choices: Sequence[str] = ()) -> str:
        """The end of a sentence that refuses a value. choices: the strings that are taken, if not all are."""
        words = list(choices)
        for kind in self.kinds:
            if kind is not str or not choices:
                words += _WORDS.get(kind, (f"a {kind.__name__}",))
        listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
        return f"use {listed}"


def _is_instance(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return isinstance(value, kind)
