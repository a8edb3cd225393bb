"""Weights by name: one safetensors file, a directory of them, or random ones of the same shapes.

One tensor is read at a time.
"""

from __future__ import annotations

import zlib
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from innervoice.checkpoint.files import read_json
from innervoice.files import check_readable

Shape = tuple[int, ...]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorSource(Protocol):
    """A source of weights: a checkpoint or `DummyTensors`."""

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """One tensor of that shape. Raises ValueError."""
        ...


class TensorFile:
    """One memory-mapped safetensors file.

    Raises FileNotFoundError, or ValueError for a truncated or foreign file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        self._names = list(self._file.keys())
        self._known = frozenset(self._names)

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def metadata(self) -> dict[str, str]:
        """The metadata that the header holds for the whole file."""
        return dict(self._file.metadata() or {})

    def shape(self, name: str) -> Shape:
        """A tensor's shape, read from the header. Raises ValueError when there is no such tensor."""
        return tuple(self._file.get_slice(self._checked(name)).get_shape())

    def get(
        self,
        name: str,
        shape: Shape | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> torch.Tensor:
        """One tensor, moved to device and dtype (None: as stored).

        On the CPU an unconverted one stays a view of the mapped file.

        Raises ValueError when the tensor is missing, has another shape than `shape`, or holds
        integers where `dtype` is a float.
        """
        found = self.shape(name)
        if shape is not None and found != tuple(shape):
            raise ValueError(
                f"{self.path}: tensor {name} has shape {list(found)}, expected {list(shape)}: is it the file of this config?"
            )
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, RuntimeError, OSError, TypeError) as error:
            raise ValueError(
                f"{self.path}: tensor {name} cannot be read ({error}): download it again"
            ) from None
        if dtype is not None and dtype.is_floating_point and not tensor.is_floating_point():
            raise ValueError(
                f"{self.path}: tensor {name} holds {_plain(tensor.dtype)}, expected floating point: use unquantised weights"
            )
        return tensor.to(device=device, dtype=dtype)

    def _checked(self, name: str) -> str:
        if name not in self._known:
            raise ValueError(f"{self.path}: tensor {name} is missing: is it the file of this config?")
        return name


class TensorDir:
    """The safetensors files of a checkpoint directory: model.safetensors, or the shards that
    model.safetensors.index.json lists.

    Raises FileNotFoundError when a file is missing, ValueError when the index is damaged or names a
    tensor that its shard lacks.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        self.path = Path(directory)
        single, index = self.path / SINGLE, self.path / INDEX
        if not single.exists() and not index.exists():
            raise FileNotFoundError(
                f"{self.path} holds neither {SINGLE} nor {INDEX}: name a checkpoint directory"
            )
        self._files = _whole(single) if single.exists() else _sharded(index)

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def metadata(self) -> dict[str, str]:
        """The metadata of all headers; later files override earlier ones."""
        return {
            key: value
            for file in dict.fromkeys(self._files.values())
            for key, value in file.metadata().items()
        }

    def shape(self, name: str) -> Shape:
        """A tensor's shape, read from the header. Raises ValueError when there is no such tensor."""
        return self._file(name).shape(name)

    def get(
        self,
        name: str,
        shape: Shape | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> torch.Tensor:
        """One tensor; see TensorFile.get."""
        return self._file(name).get(name, shape, dtype=dtype, device=device)

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise ValueError(f"{self.path}: tensor {name} is missing: are these the files of this config?")
        return self._files[name]


class DummyTensors:
    """Random weights for runs without a checkpoint: vectors called bias are 0, other vectors
    (norms, scales) 1, the rest normal.

    std is the deviation of the normal ones. A tensor depends on its name, shape, seed,
    dtype and kind of device alone.
    """

    def __init__(self, seed: int = 0, std: float = 0.02) -> None:
        self.seed = seed
        self.std = std

    def get(
        self, name: str, shape: Shape, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """One tensor of that shape; dtype None: float32."""
        tensor = torch.empty(shape, dtype=dtype or torch.float32, device=device)
        if tensor.numel() == max(shape, default=1) and len(shape) != 2:
            return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        generator = torch.Generator(device=tensor.device).manual_seed(zlib.crc32(name.encode()) + self.seed)
        return tensor.normal_(0.0, self.std, generator=generator)


def _open(path: Path) -> Any:
    check_readable(path, f"is {path.parent} a whole checkpoint directory?")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): download it again") from None


def _whole(path: Path) -> dict[str, TensorFile]:
    file = TensorFile(path)
    return dict.fromkeys(file.names(), file)


def _sharded(index: Path) -> dict[str, TensorFile]:
    shard_of = _weight_map(index)
    shards = {shard: TensorFile(index.with_name(shard)) for shard in sorted(set(shard_of.values()))}
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise ValueError(
                f"{index} says that tensor {name} is in {shard}, which lacks it: download the checkpoint again"
            )
    return {name: shards[shard] for name, shard in shard_of.items()}


def _weight_map(index: Path) -> dict[str, str]:
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index}: weight_map is missing or empty: download it again")
    for shard in shard_of.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{index}: weight_map names {shard!r}, expected the name of a file beside it: download it again"
            )
    return shard_of


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
