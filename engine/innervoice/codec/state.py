"""The streaming state of many sessions in tensors whose first dimension is the slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from innervoice_kernels.transfer import to_device


class SlotTensors:
    """State by name, [num_slots, ...] each.

    A call takes the rows it needs and puts them back: other slots are not touched.

    kept: tensors [num_slots, ...] that are too large to be taken, such as keys and values: a call is given
    them whole, with the slots, and writes in place.
    """

    def __init__(
        self, row: Mapping[str, Tensor], num_slots: int, kept: Mapping[str, Tensor] | None = None
    ) -> None:
        self._tensors = {name: value.new_zeros(num_slots, *value.shape[1:]) for name, value in row.items()}
        self.kept = dict(kept or {})
        assert (
            all(len(value) == num_slots for value in self.kept.values())
            and not self.kept.keys() & self._tensors.keys()
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of one slot."""
        return sum(value[:1].nbytes for value in self._all().values())

    def take(self, slots: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """The state of these slots, in this order, [B, ...] each. slots: also as `index` gives them."""
        index = self.index(slots)
        return {name: value[index] for name, value in self._tensors.items()}

    def take_one(self, name: str, slots: Sequence[int] | Tensor) -> Tensor:
        """One of the tensors that `take` gives."""
        return self._tensors[name][self.index(slots)]

    def put(self, slots: Sequence[int] | Tensor, state: Mapping[str, Tensor]) -> None:
        """Write rows back. Every name must be there: a state is written whole."""
        assert state.keys() == self._tensors.keys(), "a state is written whole"
        index = self.index(slots)
        for name, value in self._tensors.items():
            value[index] = state[name]

    def reset(self, slot: int) -> None:
        """Back to zeros, the state before the first chunk."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for value in self._all().values():
            by_type.setdefault(value.dtype, []).append(value[slot])
        for rows in by_type.values():
            torch._foreach_zero_(rows)

    def copy(self, slot: int, target: int) -> None:
        """Make the target's state that of the slot."""
        for value in self._all().values():
            value[target] = value[slot]

    def export(self, slot: int) -> dict[str, Tensor]:
        """A slot's state, copied to the CPU."""
        return {name: value[slot].to("cpu", copy=True) for name, value in self._all().items()}

    def restore(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Write what `export` gave.

        Raises ValueError when it is of another decoder; then nothing is written.
        """
        for name, value in self._all().items():
            found = state.get(name)
            if found is None or (found.shape, found.dtype) != (value.shape[1:], value.dtype):
                raise ValueError(
                    f"the state's {name!r} is not of this decoder: restore it where it was exported"
                )
        for name, value in self._all().items():
            value[slot] = state[name].to(value.device)

    def index(self, slots: Sequence[int] | Tensor) -> Tensor:
        """The slots as a tensor [B] int64, beside the state."""
        if isinstance(slots, Tensor):
            return slots
        return to_device([np.array(slots, np.int64)], next(iter(self._tensors.values())).device)[0]

    def _all(self) -> dict[str, Tensor]:
        return self._tensors | self.kept
