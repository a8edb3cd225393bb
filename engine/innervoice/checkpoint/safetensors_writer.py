"""A safetensors file written tensor by tensor, so that no model has to be in memory: shapes and
types are declared beforehand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


class Layout(NamedTuple):
    """The name, type and shape of a tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorWriter:
    """Writes the tensors of `layouts`, in any order, each once; a context manager.

    Format: github.com/huggingface/safetensors.
    """

    def __init__(
        self, path: str | PathLike[str], layouts: Mapping[str, Layout], metadata: Mapping[str, str]
    ) -> None:
        self._layouts = dict(layouts)
        self._missing = set(layouts)
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._begin: dict[str, int] = {}
        end = 0
        # Wide numbers first, so that every tensor begins at a multiple of its numbers' size.
        for name, layout in sorted(layouts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            begin, end = end, end + layout.num_bytes
            self._begin[name] = begin
            header[name] = {
                "dtype": _NAMES[layout.dtype],
                "shape": list(layout.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self._file = open(path, "xb")  # noqa: SIM115 (it is closed at the end of the block that this object manages)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data + end)

    def write(self, name: str, tensor: Tensor) -> None:
        """One tensor, from whatever device."""
        layout = self._layouts[name]
        assert (tensor.dtype, tuple(tensor.shape)) == layout, (
            f"{name} is {tensor.dtype} {list(tensor.shape)}, the header says {layout}"
        )
        self._missing.remove(name)
        self._file.seek(self._data + self._begin[name])
        self._file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"tensors were not written: {sorted(self._missing)[:3]}"
