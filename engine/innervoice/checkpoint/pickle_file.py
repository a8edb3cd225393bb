"""Weights of a .pt file: a state dict of plain tensors, read without running
anything that the pickle asks for.
"""

from __future__ import annotations

import pickle
import zipfile
from os import PathLike
from pathlib import Path

import torch

from innervoice.files import check_readable


class PickleFile:
    """The tensors of a .pt file, memory-mapped where its format allows (a zip archive, as torch.save writes).

    Raises FileNotFoundError, or ValueError when the file is damaged or holds more than tensors.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._tensors = _load(self.path)

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._tensors)

    def get(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> torch.Tensor:
        """One tensor, moved to device and dtype.

        Raises ValueError when it is missing, of another shape or not of floats.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ValueError(f"{self.path}: tensor {name} is missing: is it the file of this config?")
        if tuple(tensor.shape) != tuple(shape):
            found, expected = list(tensor.shape), list(shape)
            raise ValueError(
                f"{self.path}: tensor {name} has shape {found}, expected {expected}: is it the file of this config?"
            )
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise ValueError(
                f"{self.path}: tensor {name} is not of dense floating-point numbers: use unquantised weights"
            )
        return tensor.to(device=device, dtype=dtype)

    def refuse_others(self, names: set[str]) -> None:
        """Raise ValueError when the file holds a tensor that is not among the names."""
        others = sorted(set(self._tensors) - names)
        if others:
            raise ValueError(
                f"{self.path}: tensor {others[0]} is not expected: is it the file of this config?"
            )


def _load(path: Path) -> dict[str, torch.Tensor]:
    check_readable(path, f"is {path.parent} a checkpoint directory?")
    archive = zipfile.is_zipfile(path)
    try:
        with open(path, "rb") as file:
            # Any name of the file will do for torch, which maps files by UTF-8 names alone.
            place = f"/proc/self/fd/{file.fileno()}"
            data = torch.load(place, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:
        if archive and isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path} holds more than tensors and was not loaded: take it from a source you trust"
            ) from None
        raise ValueError(f"{path} is damaged or no .pt file: download it again") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"{path} holds a {type(data).__name__}, expected tensors by name: is it a state dict?"
        )
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} holds a {type(value).__name__} under {name!r}, expected tensors alone: is it a state dict?"
            )
    return dict(data)
