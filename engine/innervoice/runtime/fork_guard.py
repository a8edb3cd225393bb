"""Refuses calls in a process that was forked from the engine's: threads and locks do not survive a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import isfunction
from typing import Any, TypeVar, cast

from innervoice.types import EngineDead

_Owner = TypeVar("_Owner")
_Method = TypeVar("_Method", bound=Callable[..., Any])


class ForkGuard:
    """Remembers the process that it was made in."""

    def __init__(self) -> None:
        self._process_id = os.getpid()

    @property
    def is_at_home(self) -> bool:
        """Whether the calling process is the one that it was made in."""
        return os.getpid() == self._process_id

    def check(self) -> None:
        """Raise EngineDead in any other process, with the numbers of both."""
        if not self.is_at_home:
            raise EngineDead(
                f"the engine was loaded in process {self._process_id} and this is process {os.getpid()}, which was "
                "forked from it: load the engine in this one"
            )


def guarded(method: _Method) -> _Method:
    """Make a method of an object with a `guard` raise EngineDead, before it takes any lock, in a process that
    was forked from the object's.
    """

    @wraps(method)
    def checked(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.guard.check()
        return method(self, *args, **kwargs)

    return cast(_Method, checked)


def all_guarded(owner: type[_Owner]) -> type[_Owner]:
    """Make every public method of a class `guarded`."""
    for name, value in list(vars(owner).items()):
        if isfunction(value) and not name.startswith("_"):
            setattr(owner, name, guarded(value))
    return owner


def refuse_pickling(self: Any) -> Any:
    """Stand in for `__reduce__` of an object that belongs to an engine: raise TypeError with the remedy."""
    raise TypeError(
        f"{type(self).__name__} cannot be sent to another process: load an engine there with Engine.from_pretrained"
    )
