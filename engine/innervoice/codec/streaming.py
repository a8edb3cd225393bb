"""The interface of a streaming pass: one chunk of many rows through the layers of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Literal, TypeVar

from torch import Tensor

StreamState = Mapping[str, Tensor]
"""Streaming state of the rows of a call by name, [B, ...] each. A name that is missing stands for zeros."""

_Level = TypeVar("_Level")
_Conv = TypeVar("_Conv")
_Unit = TypeVar("_Unit")


class StreamPass(ABC, Generic[_Level, _Conv, _Unit]):
    """The layers of one call. `after` collects the state that each leaves behind.

    A level says at which rate a signal is and where its columns stand in their replies. layout: of every
    signal, [B, C, T] or [B, T, C], that of the kernels beneath.
    """

    layout: ClassVar[Literal["channels first", "time first"]]

    def __init__(self, before: StreamState) -> None:
        self._before = before
        self.after: dict[str, Tensor] = {}

    def before(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A layer's state before the call, or zeros of [B, *shape], B being the rows of `like`."""
        found = self._before.get(name)
        return like.new_zeros(len(like), *shape) if found is None else found

    @abstractmethod
    def conv(self, name: str, x: Tensor, at: _Level, layer: _Conv) -> Tensor:
        """A convolution of x, which sees the columns that it kept of the calls before."""

    @abstractmethod
    def unit(self, name: str, x: Tensor, at: _Level, layer: _Unit) -> Tensor:
        """A residual unit of x, whose convolutions see the columns that they kept."""

    @abstractmethod
    def delay(self, name: str, x: Tensor, at: _Level, steps: int) -> Tensor:
        """x later by so many steps, of the same length."""
