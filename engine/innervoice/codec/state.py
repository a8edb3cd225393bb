"""Slots: the streaming state of many sessions in tensors whose first dimension is the slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Slots:
    """State by name, [num_slots, ...] each. A call takes the rows it needs and puts them back: other slots are not touched."""

    def __init__(self, row: Mapping[str, Tensor], num_slots: int) -> None:
        self._tensors = {name: value.new_zeros(num_slots, *value.shape[1:]) for name, value in row.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of one slot."""
        return sum(value[:1].nbytes for value in self._tensors.values())

    def take(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """The state of these slots, in this order, [B, ...] each."""
        return {name: value[self._index(slots)] for name, value in self._tensors.items()}

    def put(self, slots: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Write rows back. Every name must be there: a state is written whole."""
        assert state.keys() == self._tensors.keys(), "a state is written whole"
        for name, value in self._tensors.items():
            value[self._index(slots)] = state[name]

    def reset(self, slot: int) -> None:
        """Back to zeros, the state before the first chunk."""
        for value in self._tensors.values():
            value[slot] = 0

    def copy(self, slot: int, target: int) -> None:
        """Make the target's state that of the slot."""
        for value in self._tensors.values():
            value[target] = value[slot]

    def export(self, slot: int) -> dict[str, Tensor]:
        """A slot's state, copied to the CPU."""
        return {name: value[slot].to("cpu", copy=True) for name, value in self._tensors.items()}

    def restore(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Write what `export` gave. Raises ValueError when it is of another decoder; then nothing is written."""
        for name, value in self._tensors.items():
            found = state.get(name)
            if found is None or (found.shape, found.dtype) != (value.shape[1:], value.dtype):
                raise ValueError(f"the state's {name!r} is not of this decoder: restore it where it was exported")
        for name, value in self._tensors.items():
            value[slot] = state[name].to(value.device)

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, device=next(iter(self._tensors.values())).device)
