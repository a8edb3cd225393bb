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

Key = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Place:
    """The place of a program in the store: its first state, forced id and sampling, and the number of each."""

    key: Key
    offsets: tuple[int, int, int]
    sizes: tuple[int, int, int]

    @property
    def columns(self) -> dict[str, int]:
        """As `request_columns` takes them."""
        return dict(zip(("table", "forced", "samplings"), self.offsets, strict=True))


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
    """Room for states, forced ids and samplings of all programs in use; `tensors` is what the kernels read."""

    def __init__(
        self, device: torch.device, *, states: int = 16384, forced: int = 65536, samplings: int = 1024
    ) -> None:
        self.tensors = Programs(
            torch.zeros(states, ProgramColumn.WIDTH, dtype=torch.int32, device=device),
            torch.zeros(forced, dtype=torch.int32, device=device),
            torch.full((samplings, 3), float("nan"), dtype=torch.float32, device=device),
        )
        self._arenas = [_Arena(size) for size in (states, forced, samplings)]
        self._places: dict[Key, Place] = {}
        self._users: dict[Key, int] = {}

    def acquire(self, program: Program) -> Place:
        """The program's place, written if it has none yet; release it when the reply ends.

        Raises OutOfCapacity.
        """
        samplings = sampling_table(program)
        key = (program.table.tobytes(), program.forced.tobytes(), samplings.tobytes())
        if key not in self._places:
            parts = [torch.from_numpy(part) for part in (program.table, program.forced, samplings)]
            place = Place(
                key, self._room([len(part) for part in parts]), (len(parts[0]), len(parts[1]), len(parts[2]))
            )
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
        return self.tensors.table, self.tensors.forced, self.tensors.samplings

    def _room(self, sizes: Sequence[int]) -> tuple[int, int, int]:
        found: list[int] = []
        for arena, size, name in zip(self._arenas, sizes, ("states", "forced ids", "samplings"), strict=True):
            begin = arena.take(size)
            if begin is None:
                for earlier, offset, length in zip(self._arenas, found, sizes, strict=False):
                    earlier.give(offset, length)
                raise OutOfCapacity(
                    f"the schedules in use leave no room for {size} {name} of {arena.size} in all: wait for replies to end",
                    1.0,
                )
            found.append(begin)
        return found[0], found[1], found[2]
