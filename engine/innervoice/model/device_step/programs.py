"""Compiled schedules in device memory, each once however many replies follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from innervoice.schedule.compile import Program
from innervoice.schedule.pack import sampling_table
from innervoice.types import OutOfCapacity
from innervoice_kernels.sampling.cursor import Programs
from innervoice_kernels.sampling.cursor_columns import ProgramColumn

Key = tuple[bytes, ...]
_PARTS = {"table": "states", "forced": "forced ids", "samplings": "samplings", "sets": "words of sets"}


@dataclass(frozen=True)
class Place:
    """The place of a program in the store: the first state, forced id, sampling and set, and the number of each."""

    key: Key
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def columns(self) -> dict[str, int]:
        """As `request_columns` takes them."""
        return dict(zip(_PARTS, self.offsets, strict=True))


class _Arena:
    """Places in one tensor, first fit."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = [(0, size)]

    def take(self, number: int) -> int | None:
        """The first place for so many in a row, None: there is none."""
        for index, (begin, end) in enumerate(self._free):
            if end - begin >= number:
                self._free[index] = (begin + number, end)
                return begin
        return None

    def give(self, begin: int, number: int) -> None:
        """Take back what `take` gave."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self._free, (begin, begin + number)]):
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            elif low < high:
                merged.append((low, high))
        self._free = merged


class ProgramStore:
    """Room for states, forced ids, samplings and sets of all programs in use; `tensors` is what the kernels read.

    sets: words of 32 ids; by default 99 sets of GLM-4-Voice's vocabulary.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        states: int = 16384,
        forced: int = 65536,
        samplings: int = 1024,
        sets: int = 1 << 19,
    ) -> None:
        self.tensors = Programs(
            torch.zeros(states, ProgramColumn.WIDTH, dtype=torch.int32, device=device),
            torch.zeros(forced, dtype=torch.int32, device=device),
            torch.full((samplings, 3), float("nan"), dtype=torch.float32, device=device),
            torch.zeros(sets, dtype=torch.int32, device=device),
        )
        self._arenas = [_Arena(size) for size in (states, forced, samplings, sets)]
        self._places: dict[Key, Place] = {}
        self._users: dict[Key, int] = {}

    def acquire(self, program: Program) -> Place:
        """The program's place, written if it has none yet; release it when the reply ends.

        Raises OutOfCapacity.
        """
        arrays = (program.table, program.forced, sampling_table(program), program.sets)
        key = tuple(array.tobytes() for array in arrays)
        if key not in self._places:
            parts = [torch.from_numpy(array) for array in arrays]
            sizes = tuple(map(len, parts))
            place = Place(key, self._room(sizes), sizes)
            for target, part, offset in zip(self._parts, parts, place.offsets, strict=True):
                target[offset : offset + len(part)].copy_(part, non_blocking=True)
            self._places[key] = place
        self._users[key] = self._users.get(key, 0) + 1
        return self._places[key]

    def release(self, place: Place) -> None:
        """One reply fewer follows it."""
        self._users[place.key] -= 1
        if self._users[place.key] == 0:
            del self._users[place.key], self._places[place.key]
            for arena, offset, size in zip(self._arenas, place.offsets, place.sizes, strict=True):
                arena.give(offset, size)

    @property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self.tensors, name) for name in _PARTS)

    def _room(self, sizes: Sequence[int]) -> tuple[int, ...]:
        found: list[int] = []
        for arena, size, name in zip(self._arenas, sizes, _PARTS.values(), strict=True):
            begin = arena.take(size)
            if begin is None:
                for earlier, offset, length in zip(self._arenas, found, sizes, strict=False):
                    earlier.give(offset, length)
                raise OutOfCapacity(
                    f"the schedules in use leave no room for {size} {name} of {arena.size} in all: wait for replies to end",
                    1.0,
                )
            found.append(begin)
        return tuple(found)
