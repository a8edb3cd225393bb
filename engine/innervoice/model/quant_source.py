"""Sources of a product's weights: as the file has them, quantised while they are
read, or quantised in the file.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import Shape, TensorDir, TensorSource
from innervoice.model.quant import (
    FP8,
    Int4Weight,
    Int8Weight,
    Quantized,
    Weight,
    empty,
    quantize,
    tensors_of,
    with_tensors,
)

METADATA = "innervoice.weights"  # of a safetensors file: JSON, name of a weight -> its format, shape, group, symmetric


class WeightSource(ABC):
    """A TensorSource whose weights of products may be quantised."""

    @abstractmethod
    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor; see TensorSource.get."""

    @abstractmethod
    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """The weight of a product, [N, K]; head: of the output layer. Raises ValueError."""


def read_weight(
    tensors: TensorSource,
    name: str,
    shape: Shape,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    head: bool = False,
) -> Weight:
    """The weight of a product, [N, K], in the format that its source has; head: of the output layer.

    Raises ValueError.
    """
    if isinstance(tensors, WeightSource):
        return tensors.weight(name, shape, dtype=dtype, device=device, head=head)
    return tensors.get(name, shape, dtype=dtype, device=device)


class QuantizingSource(WeightSource):
    """Quantises the weights of products while they are read, on the device that they go to."""

    def __init__(self, tensors: TensorSource, to: Quantization) -> None:
        self._tensors, self.to = tensors, to

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor, not quantised; see TensorSource.get."""
        return self._tensors.get(name, shape, dtype=dtype, device=device)

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """One weight; see WeightSource.weight. Raises ValueError naming a weight that cannot be quantised."""
        if head and not self.to.head:
            return self.get(name, shape, dtype=dtype, device=device)
        tensor = self.get(name, shape, device=device)
        try:
            return quantize(tensor, self.to)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from None


class QuantizedDir(WeightSource):
    """A directory that `innervoice quantize` wrote: config.json says what its weights must be, the
    file's metadata what they are.

    Raises FileNotFoundError, and ValueError for a file whose metadata is missing or damaged.
    """

    def __init__(self, directory: TensorDir, to: Quantization) -> None:
        self.directory, self.to = directory, to
        self._described = _descriptions(directory)

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """One tensor that is not quantised; see TensorSource.get."""
        return self.directory.get(name, shape, dtype=dtype, device=device)

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """One weight; see WeightSource.weight.

        Raises ValueError naming a tensor that is missing, misshapen or not finite.
        """
        if head and not self.to.head:
            return self.get(name, shape, dtype=dtype, device=device)
        expected = empty((shape[0], shape[1]), self.to, "meta")
        found, wanted = self._described.get(name), describe(expected)
        if found != wanted:
            raise ValueError(
                f"{self.directory.path}: the file's metadata says {found} of weight {name}, expected {wanted}"
            )
        parts = {}
        for part, blank in tensors_of(expected).items():
            tensor = self.directory.get(f"{name}.{part}", tuple(blank.shape), device=device)
            if tensor.dtype != blank.dtype:
                raise ValueError(
                    f"{self.directory.path}: tensor {name}.{part} holds {_plain(tensor.dtype)}, expected {_plain(blank.dtype)}"
                )
            if tensor.is_floating_point() and not bool(
                torch.isfinite(tensor.float() if tensor.dtype == FP8 else tensor).all()
            ):
                raise ValueError(
                    f"{self.directory.path}: tensor {name}.{part} holds NaN or infinity: quantise the model again"
                )
            parts[part] = tensor
        return with_tensors(expected, parts)


class BlankSource(WeightSource):
    """Every tensor without numbers, on the meta device, whatever device is asked for;
    to None: nothing is quantised.

    names: what was asked for, and whether it is a weight that is quantised.
    """

    def __init__(self, to: Quantization | None) -> None:
        self.to = to
        self.names: dict[str, tuple[Shape, bool]] = {}

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """A tensor of that shape."""
        self.names[name] = (tuple(shape), False)
        return torch.empty(shape, dtype=dtype, device="meta")

    def weight(
        self, name: str, shape: Shape, *, dtype: torch.dtype, device: str | torch.device, head: bool
    ) -> Weight:
        """A weight of that shape."""
        if self.to is None or (head and not self.to.head):
            return self.get(name, shape, dtype=dtype)
        self.names[name] = (tuple(shape), True)
        return empty((shape[0], shape[1]), self.to, "meta")


def describe(weight: Quantized) -> dict[str, Any]:
    """The entry of a weight in a file's metadata."""
    shape: dict[str, Any] = {"shape": list(weight.shape)}
    if isinstance(weight, Int4Weight):
        return {"format": "int4", **shape, "group": weight.group, "symmetric": weight.minimum is None}
    return {"format": "int8" if isinstance(weight, Int8Weight) else "fp8", **shape}


def _descriptions(directory: TensorDir) -> dict[str, Any]:
    text = directory.metadata().get(METADATA)
    try:
        entries = json.loads(text or "")
    except json.JSONDecodeError:
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(
            f"{directory.path}: the weights' metadata has no {METADATA}: quantise the model again"
        )
    return entries


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
